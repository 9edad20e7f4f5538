"""Checkpoints on disk as lazy mappings: a name gives an array, read when asked for.

`File` is one safetensors file.  `Leaves` is the interface of everything that holds a model (files,
sharded folders, adapters over them): a read-only mapping ``name -> numpy array`` which also says
what a leaf is without reading it (`like`) and reads a part of one (`read`).  Such a mapping goes
wherever a flat mapping of arrays goes: into `jm.merge`, `jm.compare`, a loop.
"""

from __future__ import annotations

import abc
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmerge.io import header
from jaxmerge.io.header import DTYPES, Entry
from jaxmerge.io.places import write_all
from jaxmerge.io.untrusted import open_regular


class Like(NamedTuple):
    """What a leaf is: its shape and dtype (numpy, with ml_dtypes for bfloat16 and smaller).

    Attributes:
        storage: the dtype in which an output stores the leaf where nothing else is asked for; None
            stands for `dtype`.  A leaf that is computed when it is read (dequantised, with an
            adapter on it) is read in float32 and stored in the model's dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: np.dtype | None = None

    @property
    def stored(self) -> np.dtype:
        """The dtype of the leaf in an output."""
        return self.dtype if self.storage is None else self.storage

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.size * self.dtype.itemsize


class Stamp(NamedTuple):
    """What changes when a file is changed or replaced, as the file system notes it."""

    inode: int
    size: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, where: int | str | os.PathLike) -> Stamp:
        """The stamp of a path, or of an open file."""
        stat = os.stat(where)
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


def changed(models: Iterable[Leaves]) -> list[str]:
    """The files that are no longer what they were when these models were opened."""
    wrong = {}
    for path, stamp in {p: s for m in models for p, s in m.stamps.items()}.items():
        try:
            if Stamp.of(path) != stamp:
                wrong[str(path)] = "changed"
        except OSError as error:
            wrong[str(path)] = (error.strerror or str(error)).lower()
    return [f"{path} ({why})" for path, why in wrong.items()]


class Leaves(Mapping[str, np.ndarray]):
    """A model that is read leaf by leaf.

    Attributes:
        like: name -> `Like`, known without reading.
        stamps: file -> what it was when it was opened, for all that the model is read from.
    """

    like: dict[str, Like]
    stamps: dict[Path, Stamp] = {}  # noqa: RUF012 - replaced, never changed
    __eq__ = object.__eq__  # a model is itself; comparing values would read it
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    @abc.abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Entries ``start:stop`` of the flattened leaf, as a flat array."""

    def into(self, out: np.ndarray, name: str, start: int = 0) -> None:
        """Read ``len(out)`` entries of the flattened leaf into an array."""
        out[:] = self.read(name, start, start + len(out))

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.like[name].shape
        return self.read(name).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)

    def __contains__(self, name: object) -> bool:
        return name in self.like

    def replaced(self) -> list[str]:
        """Files of a bucket that are no longer what they were when they were opened."""
        return []

    def close(self) -> None:
        """Give back what is open."""


class File(Leaves):
    """One safetensors file.

    Raises:
        HeaderError: the header is unsound (see `jaxmerge.io.header`).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._fd = open_regular(self.path)
        self.stamps = {self.path: Stamp.of(self._fd)}
        self.entries, self.metadata = header.read(self.path, self._fd)
        self.like = {n: Like(e.shape, e.dtype) for n, e in self.entries.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        entry = self.entries[name]
        stop = entry.size if stop is None else stop
        if DTYPES[entry.code][1] == 4:
            return _unpack(self.raw(name), entry)[start:stop]
        out = aligned(stop - start, entry.dtype)
        self.into(out, name, start)
        return out

    def into(self, out: np.ndarray, name: str, start: int = 0) -> None:
        entry = self.entries[name]
        if DTYPES[entry.code][1] == 4:
            out[:] = self.read(name, start, start + len(out))
        elif out.size:
            offset = entry.start + start * entry.dtype.itemsize
            self._fill(out.view(np.uint8).data, offset, name)
            if entry.code == "BOOL" and out.view(np.uint8).max() > 1:
                raise header.HeaderError(f"{self.path}: leaf {name!r} holds bytes beside 0 and 1.")

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Bytes ``start:stop`` of a leaf as they are in the file."""
        entry = self.entries[name]
        stop = entry.stop - entry.start if stop is None else stop
        out = memoryview(bytearray(stop - start))
        self._fill(out, entry.start + start, name)
        return out

    def _fill(self, out: memoryview, offset: int, name: str) -> None:
        done = 0
        while done < len(out):
            got = os.preadv(self._fd, [out[done:]], offset + done)
            if got == 0:
                raise OSError(
                    f"{self.path}: leaf {name!r} ends after {done} of {len(out)} bytes; the file "
                    "was cut while it was read."
                )
            done += got

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self, close=os.close):
        if getattr(self, "_fd", -1) >= 0:
            close(self._fd)


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """An uninitialised flat array on a 64-byte boundary, which XLA reads without a copy."""
    dtype = np.dtype(dtype)
    raw = np.empty(size * dtype.itemsize + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + size * dtype.itemsize].view(dtype)


def _unpack(data: memoryview, entry: Entry) -> np.ndarray:
    """4-bit entries, two a byte, the first in the low half."""
    pairs = np.frombuffer(data, np.uint8)
    halves = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[: entry.size]
    if entry.code == "I4":
        halves = ((halves.astype(np.int8) ^ 8) - 8).view(np.uint8)
    return (
        halves.view(entry.dtype)
        if entry.code == "F4"
        else halves.astype(np.int8).astype(entry.dtype)
    )


def pack(values: np.ndarray) -> np.ndarray:
    """The bytes of a leaf in a file (4-bit entries two a byte)."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if DTYPES[header.CODES[flat.dtype]][1] != 4:
        return flat.view(np.uint8)
    halves = flat.view(np.uint8) & 15
    halves = np.concatenate([halves, np.zeros(halves.size % 2, np.uint8)])
    return halves[::2] | halves[1::2] << 4


def save_file(path: Path, leaves: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write one file, leaf by leaf; it appears whole or not at all, with an older one in place
    until then.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; names the file.
    """
    arrays = {n: np.asarray(x) for n, x in leaves.items()}
    head, _ = header.build(
        {n: (header.CODES[x.dtype], x.shape) for n, x in arrays.items()}, metadata
    )
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.unlink(missing_ok=True)  # of a process that was killed, where numbers begin anew
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        try:
            write_all(fd, head)
            for x in arrays.values():
                write_all(fd, pack(x).data)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(new, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        new.unlink(missing_ok=True)


class Whole(Leaves):
    """Leaves that can only be had whole.

    Each thread keeps the leaf whose parts it is reading, until its last entry is read: a leaf that
    is merged in pieces costs one load.
    """

    def __init__(self) -> None:
        self._open = threading.local()

    @abc.abstractmethod
    def load(self, name: str) -> np.ndarray:
        """The leaf, in its shape."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        size = self.like[name].size
        stop = size if stop is None else stop
        last = getattr(self._open, "last", None)
        if last is None or last[0] != name:
            self._open.last = last = None  # let go of the one before
            last = (name, np.ascontiguousarray(self.load(name)).reshape(-1))
        self._open.last = last if stop < size else None
        return last[1][start:stop]
