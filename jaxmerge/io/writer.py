"""A checkpoint that appears whole or not at all, and whose writing may be interrupted.

Shapes are known before values, so all headers are written first and every leaf goes straight to its
place, in any order, from any thread; no shard is ever held in memory.

    out/            the finished checkpoint: renamed into place by `commit`, after a sync; with an
                    output that is to be replaced it changes places in one step
    .out.partial/   while it is being written: the shards, and journal.jsonl
    .out.lock       while somebody writes: who (`jaxmerge.io.places.Lock`)

The journal names the leaves that are done.  After a crash `resume=True` goes on behind them: lines
written since the machine started are trusted as they are, older ones up to the last sync.
"""

from __future__ import annotations

import ctypes
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
from jaxmerge.io.places import Lock, Place, boot, delete, working, write_all
from jaxmerge.io.safetensors import pack

SYNC_EVERY = 256 << 20  # bytes between two syncs in the background
INDEX = "model.safetensors.index.json"

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> (dtype code, shape)


def plan_shards(
    tensors: Tensors, shard_size: int, single: str = "model.safetensors", stem: str = "model"
) -> dict[str, list[str]]:
    """File name -> leaves, in order; a shard is closed before it would exceed `shard_size` bytes.

    >>> plan_shards({"a": ("U8", (6,)), "b": ("U8", (6,))}, 10)
    {'model-00001-of-00002.safetensors': ['a'], 'model-00002-of-00002.safetensors': ['b']}
    """
    groups: list[list[str]] = [[]]
    used = 0
    for name, (code, shape) in tensors.items():
        need = header.nbytes(code, shape)
        if groups[-1] and used + need > shard_size:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += need
    if len(groups) == 1:
        return {single: groups[0]}
    n = len(groups)
    return {f"{stem}-{i:05d}-of-{n:05d}.safetensors": g for i, g in enumerate(groups, 1)}


def plan_parts(tensors: Tensors, shard_size: int, parts: Mapping[str, str]) -> dict[str, list[str]]:
    """The same for a pipeline: the leaves of every component in a sub-folder of its own.

    >>> plan_parts({"vae/a": ("U8", (6,))}, 10, {"vae": "model.safetensors"})
    {'vae/model.safetensors': ['vae/a']}
    """
    out: dict[str, list[str]] = {}
    for part, single in parts.items():
        own = {n: t for n, t in tensors.items() if n.startswith(f"{part}/")}
        stem = single.removesuffix(".safetensors")
        files = plan_shards(own, shard_size, single, stem) if own else {}
        out |= {f"{part}/{file}": leaves for file, leaves in files.items()}
    return out


def partial_folder(out: Path) -> Path:
    """Where an output is while it is being written."""
    return out.parent / f".{out.name}.partial"


def old_folder(out: Path) -> Path:
    """Where an output that is replaced goes before it is deleted."""
    return out.parent / f".{out.name}.old"


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
        self._digest, self._guard = digest, threading.Lock()
        self._fds: dict[str, int] = {}
        self._journal, self.group = -1, group
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
            self._journal = self._place.open(
                self._journal_name, os.O_RDWR | os.O_CREAT | os.O_APPEND
            )
            self.done = self._read_journal() & self.mine
            self._make_shards(metadata)
        except BaseException:
            self.close()
            raise

    def _prepare(self, resume: bool, discard: bool, force: bool) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._lock = working(self.out)
        if _occupied(self.out) and not force:
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
            self._append({"leaf": name})
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
                self._append({"synced": count})
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
            if name.startswith("journal") and name.endswith(".jsonl"):
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
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1
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

    @property
    def _journal_name(self) -> str:
        return f"journal.{self.group.index}.jsonl" if self.group.index else "journal.jsonl"

    def _read_journal(self) -> set[str]:
        text = self.place.read(self._journal_name)
        lines, sound = [], 0
        for line in text.split(b"\n")[:-1]:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(entry, dict):
                break
            lines.append(entry)
            sound += len(line) + 1
        head = {"merge": self._digest, "boot": boot()}
        names: list[str] = []
        if lines:
            if lines[0].get("merge") != self._digest:
                raise UserError(
                    f"The interrupted merge into {self.out} is another one (its recipe, its inputs "
                    "or an option changed); --force starts over."
                )
            counts = [c for line in lines[1:] if type(c := line.get("synced")) is int]
            synced = max(counts, default=0)
            names = [n for line in lines[1:] if isinstance(n := line.get("leaf"), str)]
            if lines[0].get("boot") == head["boot"]:
                os.ftruncate(self._journal, sound)
                return set(names)
            names = names[:synced]
        os.ftruncate(self._journal, 0)
        self._append(head, *({"leaf": n} for n in names))
        return set(names)

    def _append(self, *lines: dict) -> None:
        write_all(self._journal, "".join(json.dumps(line) + "\n" for line in lines).encode())

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


def install(folder: Path, out: Path, force: bool) -> None:
    """Put a folder that is complete in the place of an output; an older one is there until then.

    Raises:
        UserError: something is there, without `force`.
    """
    old = old_folder(out)
    delete(old)
    if not os.path.lexists(out):
        os.rename(folder, out)
    elif not force and _occupied(out):
        raise UserError(f"{out} appeared meanwhile; --resume --force replaces it.")
    elif _exchange(folder, out):
        os.rename(folder, old)
    else:  # for a moment there is no output; both are whole
        os.rename(out, old)
        os.rename(folder, out)
    _fsync(out.parent)
    delete(old)


def _occupied(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return any(path.iterdir())
    return os.path.lexists(path)


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot (it is Linux's)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and not rename(here, os.fsencode(a), here, os.fsencode(b), swap)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
