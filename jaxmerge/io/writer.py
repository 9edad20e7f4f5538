"""A checkpoint that appears whole or not at all, and whose writing may be interrupted.

Shapes are known before values, so all headers are written first and every leaf goes straight to its
place, in any order, from any thread; no shard is ever held in memory.

    out/            the finished checkpoint: renamed into place by `commit`, after a sync; with an
                    output that is to be replaced it changes places in one step
    .out.partial/   while it is being written: the shards, and what of them is done
                    (`jaxmerge.io.journal`)
    .out.lock       while somebody writes: who (`jaxmerge.io.places.Lock`)

After a crash `resume=True` goes on behind the leaves that are done.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io import header
from jaxmerge.io.install import install, occupied, partial_folder
from jaxmerge.io.journal import Journal, is_journal
from jaxmerge.io.places import Lock, Place, delete, working
from jaxmerge.io.safetensors import pack
from jaxmerge.io.shard_plan import Tensors, plan_parts, plan_shards

SYNC_EVERY = 256 << 20  # bytes between two syncs in the background


class Group(NamedTuple):
    """The processes that write one checkpoint together, each its own shards, on a shared disk.

    Attributes:
        index, count: this process among how many.
        barrier: waits until all have called it with the same word.
    """

    index: int = 0
    count: int = 1
    barrier: Callable[[str], None] = lambda word: None


class Writer:
    """Write one checkpoint.

    Args:
        out: the folder that shall appear.
        tensors: every leaf's dtype code and shape, in the order of the file.
        digest: identifies this very merge; partial work of another one is not resumed.
        metadata: strings for the header, such as ``{"format": "pt"}``.
        resume: go on behind what the journal says is done.
        force: replace an output, discard partial work (unless `resume`).
        once: there is no going on: what an interrupted one left is discarded.
        single: name of the file where one is enough.
        group: of processes; the first of them prepares the folder and commits.
        parts: component -> name of its file, for a pipeline (`jaxmerge.io.pipelines`).

    Attributes:
        done: names of leaves that are written already, by this process.
        mine: names of the leaves that this process is to write.

    Raises:
        UserError: the output exists, partial work exists, belongs to another merge or is being
            written by another process, or the disk has too little space.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        tensors: Tensors,
        *,
        digest: str,
        metadata: Mapping[str, str] | None = None,
        shard_size: int = 5_000_000_000,
        resume: bool = False,
        force: bool = False,
        once: bool = False,
        single: str = "model.safetensors",
        group: Group = Group(),
        parts: Mapping[str, str] | None = None,
    ):
        self.out, self.tensors, self.force = Path(os.path.abspath(out)), dict(tensors), force
        self.folder = partial_folder(self.out)
        self.parts = dict(parts or {})
        self.shards = (
            plan_parts(self.tensors, shard_size, self.parts)
            if self.parts
            else plan_shards(self.tensors, shard_size, single)
        )
        self._guard = threading.Lock()
        self._fds: dict[str, int] = {}
        self._journal: Journal | None = None
        self.group = group
        self._lock: Lock | None = None
        self._place: Place | None = None
        self._since_sync, self._syncer, self._error = 0, None, None
        own = list(self.shards.items())[group.index :: group.count]
        self.own = {file for file, _ in own}
        self.mine = {n for _, names in own for n in names}
        try:
            if group.index == 0:
                self._prepare(resume, force or once, force)
            group.barrier("prepared")
            self._place = Place(self.folder)
            self._journal = Journal(self._place, group.index, digest, self.out)
            self.done = self._journal.leaves & self.mine
            self._make_shards(metadata)
        except BaseException:
            self.close()
            raise

    def _prepare(self, resume: bool, discard: bool, force: bool) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._lock = working(self.out)
        if occupied(self.out) and not force:
            raise UserError(f"{self.out} exists; choose another output, or --force replaces it.")
        if os.path.lexists(self.folder) and not resume:
            if not discard:
                raise UserError(
                    f"An interrupted merge into {self.out} is there: --resume goes on with it, "
                    "--force starts over."
                )
            delete(self.folder)

    @property
    def place(self) -> Place:
        """The folder that is written."""
        if self._place is None:
            raise ValueError(f"the writer of {self.out} is closed.")
        return self._place

    @property
    def journal(self) -> Journal:
        """What is written so far."""
        if self._journal is None:
            raise ValueError(f"the writer of {self.out} is closed.")
        return self._journal

    # ------------------------------------------------------------ leaves

    def write(self, name: str, values: np.ndarray, start: int = 0) -> None:
        """Entries of a leaf, flat, from entry `start` on; any thread, any order."""
        code, _ = self.tensors[name]
        data = pack(values).data
        entry = self.entries[name]
        offset = entry.start + start * header.DTYPES[code][1] // 8
        if offset + len(data) > entry.stop or start * header.DTYPES[code][1] % 8:
            raise ValueError(f"leaf {name!r}: {len(data)} bytes at entry {start} do not fit.")
        file = self.where[name]
        while data:
            try:
                n = os.pwrite(self._fds[file], data, offset)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.folder / file)) from None
            data, offset = data[n:], offset + n

    def finish_leaf(self, name: str) -> None:
        """Enter a leaf into the journal: all of it is written."""
        self._check()
        entry = self.entries[name]
        with self._guard:
            self.journal.append({"leaf": name})
            self.done.add(name)
            self._since_sync += entry.stop - entry.start
            if self._since_sync >= SYNC_EVERY and self._syncer is None:
                self._since_sync = 0
                self._syncer = threading.Thread(target=self._sync, args=(len(self.done),))
                self._syncer.start()

    def _sync(self, count: int) -> None:
        try:
            for fd in self._fds.values():
                os.fdatasync(fd)
            with self._guard:
                self.journal.append({"synced": count})
        except OSError as error:
            self._error = error
        finally:
            self._syncer = None

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # ------------------------------------------------------------ the end

    def commit(self, files: Mapping[str, bytes | Path]) -> None:
        """Write the index and `files` (name -> bytes, or a path to copy), sync, rename."""
        missing = [n for n in self.mine if n not in self.done]
        if missing:
            raise RuntimeError(f"{len(missing)} leaves are not written, e.g. {missing[:3]}")
        self._join()
        self._check()
        for fd in self._fds.values():
            os.fsync(fd)
        self.group.barrier("written")
        if self.group.index == 0:
            self._finish(dict(files))
        self.close()
        self.group.barrier("committed")

    def _finish(self, files: dict[str, bytes | Path]) -> None:
        for part in self.parts or ("",):
            at = f"{part}/" if part else ""
            here = {n: f for n, f in self.where.items() if n.startswith(at)}
            if len(set(here.values())) > 1:
                total = sum(header.nbytes(*self.tensors[n]) for n in here)
                table = {n[len(at) :]: f[len(at) :] for n, f in sorted(here.items())}
                index = {"metadata": {"total_size": total}, "weight_map": table}
                single = self.parts.get(part, "model.safetensors")
                files[f"{at}{single}.index.json"] = (json.dumps(index, indent=2) + "\n").encode()
        for name, content in files.items():
            self.place.write(name, content)
        self.place.sync()
        for name in os.listdir(self.place.fd):
            if is_journal(name):
                self.place.remove(name)
        self._rename()

    def _rename(self) -> None:
        here = os.stat(self.folder, follow_symlinks=False)
        if not os.path.samestat(here, os.fstat(self.place.fd)):
            raise UserError(f"{self.folder} was replaced while it was written; merge again.")
        install(self.folder, self.out, self.force)

    def close(self) -> None:
        """Let go of the files; partial work stays for `resume`."""
        self._join()
        for fd in self._fds.values():
            os.close(fd)
        self._fds = {}
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._place is not None:
            self._place.close()
            self._place = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def discard(self) -> None:
        """Let go of the files, and of what was written: it is of no use for `resume`."""
        if self._lock is not None and self.folder.exists():
            delete(self.folder)
        self.close()

    def _join(self) -> None:
        syncer = getattr(self, "_syncer", None)
        if syncer is not None:
            syncer.join()

    # ------------------------------------------------------------ the beginning

    def _make_shards(self, metadata: Mapping[str, str] | None) -> None:
        self.where = {n: file for file, names in self.shards.items() for n in names}
        self.entries: dict[str, header.Entry] = {}
        heads = {}
        for file, names in self.shards.items():
            part, slash, _ = file.rpartition("/")
            at = len(part + slash)  # a component's file does not name it
            here = {n[at:]: self.tensors[n] for n in names}
            heads[file], entries = header.build(here, metadata)
            self.entries |= {n: entries[n[at:]] for n in names}
        sizes = {f: len(heads[f]) for f in self.shards}
        for n, e in self.entries.items():
            sizes[self.where[n]] = max(sizes[self.where[n]], e.stop)
        there = [p.lstat() for f in sizes if (p := self.folder / f).is_file()]
        need = sum(sizes.values()) - sum(stat.st_blocks * 512 for stat in there)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            if not self.done:
                delete(self.folder)
            raise UserError(
                f"{self.out.parent} has {free / 1e9:.2f} GB free, the output needs "
                f"{need / 1e9:.2f} GB more; free some space or write elsewhere."
            )
        for file in self.own:
            fd = self.place.open(file)
            self._fds[file] = fd
            if os.fstat(fd).st_size != sizes[file]:  # a shard that somebody deleted since
                self.done -= set(self.shards[file])
            try:
                os.ftruncate(fd, sizes[file])
                os.pwrite(fd, heads[file], 0)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.folder / file)) from None
