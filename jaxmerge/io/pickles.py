"""Tensors out of a torch pickle (`.bin`, `.pt`) without torch and without running its code.

A pickle is a program, which `jaxmerge.io.pickle_machine` runs instead of Python.  Refused are also
programs and mappings beyond a bound; archives that are compressed; entries and views that reach
outside of what holds them; and the format of torch before 1.6, which is no archive.
"""

from __future__ import annotations

import math
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.io.pickle_machine import (
    Machine,
    PickleRefused,
    View,
)
from jaxmerge.io.safetensors import Like, Stamp, Whole
from jaxmerge.io.untrusted import open_regular

MAX_PROGRAM = 16 << 20  # bytes of data.pkl; 100 000 tensors take 13 MB
MAX_ENTRIES = 200_000  # files in the archive, and values in its mappings
MAX_DEPTH = 16  # mappings inside mappings
MAX_AXES = 32
BROKEN = (zipfile.BadZipFile, EOFError, RuntimeError)  # RuntimeError: said to be encrypted


class Pickle(Whole):
    """The tensors of a torch archive.

    Entries of nested dictionaries are joined with "."; a single outer "state_dict" or "model" is
    left out of the names.  What is no tensor is left out.

    Raises:
        PickleRefused: see the module's docstring.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path, self._lock = Path(path), threading.Lock()
        self._file = os.fdopen(open_regular(self.path), "rb")
        try:
            self._views = self._read()
        except BaseException:
            self.close()
            raise
        self.stamps = {self.path: Stamp.of(self._file.fileno())}
        self.like = {n: Like(v.shape, v.storage.dtype) for n, v in self._views.items()}

    def _read(self) -> dict[str, View]:
        total = os.fstat(self._file.fileno()).st_size
        try:
            self._zip = zipfile.ZipFile(self._file)
            infos = {i.filename: i for i in self._zip.infolist()}
        except (*BROKEN, ValueError, OSError):
            raise PickleRefused(
                f"{self.path} is no torch archive (torch before 1.6, or no checkpoint). Save it "
                "again as safetensors."
            ) from None
        programs = [n for n in infos if n.endswith("/data.pkl")]
        if len(programs) != 1 or infos[programs[0]].file_size > MAX_PROGRAM:
            raise PickleRefused(
                f"{self.path} holds {len(programs)} data.pkl; expected one of at most "
                f"{MAX_PROGRAM} bytes."
            )
        if len(infos) > MAX_ENTRIES:
            raise PickleRefused(f"{self.path} holds {len(infos)} files; at most {MAX_ENTRIES}.")
        packed = [n for n, i in infos.items() if i.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise PickleRefused(
                f"{self.path}: {packed[0]!r} is compressed, which torch never does."
            )
        outside = [n for n, i in infos.items() if i.header_offset + i.file_size > total]
        if outside:
            raise PickleRefused(f"{self.path}: {outside[0]!r} reaches beyond the end of the file.")
        self._root = programs[0].removesuffix("data.pkl")
        self._sizes = {n: i.file_size for n, i in infos.items()}
        try:
            tree = Machine(self._zip.read(programs[0])).run()
        except PickleRefused as error:
            raise PickleRefused(f"{self.path}: {error}") from None
        except (*BROKEN, ValueError, LookupError, TypeError, OSError) as error:
            reason = "" if isinstance(error, LookupError) else f" ({error})"
            raise PickleRefused(f"{self.path}: its data.pkl is damaged{reason}.") from None
        views = dict(self._tensors(_state_dict(tree), "", 0, [0]))
        if not views:
            raise PickleRefused(f"{self.path} holds no dictionary of tensors.")
        for name, view in views.items():
            self._check(name, view)
        return views

    def _tensors(
        self, tree: Any, prefix: str, depth: int, seen: list[int]
    ) -> Iterator[tuple[str, View]]:
        """Every tensor of nested mappings under its joined name; `seen` counts their values."""
        if isinstance(tree, View):
            yield prefix, tree
        elif isinstance(tree, Mapping) and depth < MAX_DEPTH:
            seen[0] += len(tree)
            if seen[0] > MAX_ENTRIES:
                raise PickleRefused(f"{self.path}: its mappings hold over {MAX_ENTRIES} values.")
            for key, value in tree.items():
                where = f"{prefix}.{key}" if prefix else str(key)
                yield from self._tensors(value, where, depth + 1, seen)

    def _check(self, name: str, view: View) -> None:
        size = self._sizes.get(f"{self._root}data/{view.storage.key}")
        item = view.storage.dtype.itemsize
        numbers = (view.offset, *view.shape, *view.strides)
        sound = (
            size is not None
            and len(view.shape) == len(view.strides) <= MAX_AXES
            and all(type(n) is int and n >= 0 for n in numbers)
        )
        if size is not None and sound and math.prod(view.shape):
            last = view.offset + sum(
                (n - 1) * s for n, s in zip(view.shape, view.strides, strict=True)
            )
            sound = (last + 1) * item <= size and math.prod(view.shape) * item <= size
        if not sound:
            raise PickleRefused(f"{self.path}: tensor {name!r} reaches outside of its storage.")

    def load(self, name: str) -> np.ndarray:
        view = self._views[name]
        dtype, count = view.storage.dtype, math.prod(view.shape)
        if not count:
            return np.empty(view.shape, dtype)
        pairs = zip(view.shape, view.strides, strict=True)
        need = (1 + sum((n - 1) * s for n, s in pairs)) * dtype.itemsize
        try:
            with self._lock, self._zip.open(f"{self._root}data/{view.storage.key}") as file:
                file.seek(view.offset * dtype.itemsize)
                data = file.read(need)
        except BROKEN as error:
            raise PickleRefused(f"{self.path}: tensor {name!r} is damaged ({error}).") from None
        if len(data) < need:
            raise PickleRefused(f"{self.path}: tensor {name!r} ends after {len(data)} bytes.")
        strides = tuple(s * dtype.itemsize for s in view.strides)
        return np.ndarray(view.shape, dtype, data, 0, strides)

    def close(self) -> None:
        self._file.close()

    def __del__(self):
        if hasattr(self, "_file"):
            self._file.close()


def _state_dict(tree: Any) -> Any:
    for _ in range(MAX_DEPTH):
        if not isinstance(tree, Mapping):
            break
        inner = [k for k in ("state_dict", "model") if isinstance(tree.get(k), Mapping)]
        if not inner or any(isinstance(v, View) for v in tree.values()):
            break
        tree = tree[inner[0]]
    return tree
