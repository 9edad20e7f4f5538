"""Tensors out of a torch pickle (`.bin`, `.pt`) without torch and without running its code.

A pickle is a program.  This unpickler knows the dozen names that a state dict consists of
(tensor, parameter, storage, ordered dict) and refuses every other one before anything is called;
tensors become descriptions, whose bytes are read from the archive when asked for.  Refused as well:
archives that are compressed, views that reach outside of their storage, and the format of torch
before 1.6, which is no archive.
"""

from __future__ import annotations

import collections
import math
import os
import pickle
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxmerge.io.safetensors import Like, Whole

MAX_PROGRAM = 64 << 20  # bytes of data.pkl

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class PickleRefused(ValueError):
    """A pickle that is more than a dictionary of tensors, or is damaged."""


class Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int


class View(NamedTuple):
    """A tensor of the file: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


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
        if not zipfile.is_zipfile(self.path):
            raise PickleRefused(
                f"{self.path} is no torch archive (torch before 1.6, or no checkpoint). Save it "
                "again as safetensors."
            )
        self._zip = zipfile.ZipFile(self.path)
        infos = {i.filename: i for i in self._zip.infolist()}
        programs = [n for n in infos if n.endswith("/data.pkl")]
        if len(programs) != 1 or infos[programs[0]].file_size > MAX_PROGRAM:
            raise PickleRefused(f"{self.path} holds no data.pkl of a reasonable size.")
        packed = [n for n, i in infos.items() if i.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise PickleRefused(
                f"{self.path}: {packed[0]!r} is compressed, which torch never does."
            )
        self._root = programs[0].removesuffix("data.pkl")
        self._sizes = {n: i.file_size for n, i in infos.items()}
        with self._zip.open(programs[0]) as program:
            try:
                tree = _Unpickler(program).load()
            except PickleRefused as error:
                raise PickleRefused(f"{self.path}: {error}") from None
            except Exception as error:
                raise PickleRefused(f"{self.path} is damaged ({error}).") from None
        self._views = dict(_tensors(_state_dict(tree)))
        if not self._views:
            raise PickleRefused(f"{self.path} holds no dictionary of tensors.")
        for name, view in self._views.items():
            self._check(name, view)
        self.like = {n: Like(v.shape, v.storage.dtype) for n, v in self._views.items()}

    def _check(self, name: str, view: View) -> None:
        size = self._sizes.get(f"{self._root}data/{view.storage.key}")
        item = view.storage.dtype.itemsize
        numbers = (view.offset, *view.shape, *view.strides)
        sound = (
            size is not None
            and len(view.shape) == len(view.strides)
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
        dtype = view.storage.dtype
        with self._lock:
            data = self._zip.read(f"{self._root}data/{view.storage.key}")
        strides = tuple(s * dtype.itemsize for s in view.strides)
        if not math.prod(view.shape):
            return np.empty(view.shape, dtype)
        return np.ndarray(view.shape, dtype, data, view.offset * dtype.itemsize, strides)

    def close(self) -> None:
        self._zip.close()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _parameter
        if module in ("torch", "torch.storage") and name in STORAGES:
            return np.dtype(STORAGES[name])
        raise PickleRefused(
            f"the pickle wants {module}.{name}; only tensors are read. Save it as safetensors."
        )

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", np.dtype() as dtype, str(key), str(), int(size)):
                return Storage(key, dtype, size)
        raise PickleRefused("a storage is described in an unknown way.")


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *rest: Any) -> View:
    if not isinstance(storage, Storage):
        raise PickleRefused("a tensor has no storage.")
    return View(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: View, *rest: Any) -> View:
    return data


def _state_dict(tree: Any) -> Any:
    while isinstance(tree, Mapping):
        inner = [k for k in ("state_dict", "model") if isinstance(tree.get(k), Mapping)]
        if not inner or any(isinstance(v, View) for v in tree.values()):
            break
        tree = tree[inner[0]]
    return tree


def _tensors(tree: Any, prefix: str = "", depth: int = 0):
    if isinstance(tree, View):
        yield prefix, tree
    elif isinstance(tree, Mapping) and depth < 16:
        for key, value in tree.items():
            yield from _tensors(value, f"{prefix}.{key}" if prefix else str(key), depth + 1)
