"""Tensors out of a torch pickle (`.bin`, `.pt`) without torch and without running its code.

A pickle is a program for a stack machine.  Python's own machine calls what the program names, even
where `find_class` is restricted: an instruction may change an object that was handed out.
`Machine` runs the program instead: it knows the instructions that a state dict is made of, its
values are plain data (numbers, texts, tuples, lists, mappings, `Name`, `Storage`, `View`), and the
dozen names that it accepts are texts to it.  Anything else is refused, and so are programs and
mappings beyond a bound; archives that are compressed; entries and views that reach outside of what
holds them; and the format of torch before 1.6, which is no archive.
"""

from __future__ import annotations

import math
import os
import pickletools
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxmerge.io.safetensors import Like, Stamp, Whole
from jaxmerge.io.untrusted import open_regular

MAX_PROGRAM = 16 << 20  # bytes of data.pkl; 100 000 tensors take 13 MB
MAX_ENTRIES = 200_000  # files in the archive, and values in its mappings
MAX_DEPTH = 16  # mappings inside mappings
MAX_AXES = 32
BROKEN = (zipfile.BadZipFile, EOFError, RuntimeError)  # RuntimeError: said to be encrypted

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


class Name(NamedTuple):
    """Something that a program names; here it is nothing but its name."""

    module: str
    name: str


class Storage(NamedTuple):
    """A file of the archive, as an array of one dtype."""

    key: str
    kind: str
    size: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(STORAGES[self.kind])


class View(NamedTuple):
    """A tensor of the file: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


ORDERED = Name("collections", "OrderedDict")
TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
PARAMETER = Name("torch._utils", "_rebuild_parameter")


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


class Machine:
    """Runs a pickle whose values are plain data.

    A mark on the stack is the stack below it, set aside.  Every instruction costs memory in
    proportion to its own length, so the program's bound is the bound of all.
    """

    def __init__(self, program: bytes):
        self.program = program
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the program leaves.

        Raises:
            PickleRefused: an instruction, a name or an object that no state dict needs.
        """
        for code, value, _ in pickletools.genops(self.program):
            step = STEPS.get(code.name)
            if step is None:
                raise PickleRefused(
                    f"the pickle holds the instruction {code.name}; only tensors are read. Save it "
                    "as safetensors."
                )
            step(self, value)
        return self.stack.pop()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def above(self) -> list[Any]:
        """What lies above the last mark, which is taken away."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, count: int) -> tuple:
        """The last so many values, taken away."""
        if len(self.stack) < count:
            raise PickleRefused("the program takes more than there is.")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return tuple(items)

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def put(self, index: Any) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def name(self, module: Any, name: Any) -> None:
        reference = Name(module, name)
        storage = module in ("torch", "torch.storage") and name in STORAGES
        if not storage and reference not in (ORDERED, TENSOR, PARAMETER):
            raise PickleRefused(
                f"the pickle wants {module}.{name}; only tensors are read. Save it as safetensors."
            )
        self.push(reference)

    def storage(self, _: Any) -> None:
        match self.stack.pop():
            case ("storage", Name() as kind, str(key), str(), int(size)) if kind.name in STORAGES:
                self.push(Storage(key, kind.name, size))
            case _:
                raise PickleRefused("a storage is described in an unknown way.")

    def call(self, _: Any) -> None:
        what, arguments = self.top(2)
        match what, arguments:
            case Name("collections", _), ():
                self.push({})
            case Name(_, "_rebuild_parameter"), (View() as data, *_):
                self.push(data)
            case (
                Name(_, "_rebuild_tensor_v2"),
                (Storage() as storage, offset, tuple(shape), tuple(strides), *_),
            ):
                self.push(View(storage, offset, shape, strides))
            case _:
                raise PickleRefused("the pickle builds something that is no tensor.")

    def build(self, _: Any) -> None:
        """Attributes of an ordered dictionary (torch's `_metadata`): they are nobody's weights."""
        target, _ = self.top(2)
        if not isinstance(target, dict):
            raise PickleRefused("the pickle sets attributes of something that is no dictionary.")
        self.push(target)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleRefused("the pickle sets items of something that is no dictionary.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise PickleRefused("a key of a dictionary is neither text nor a number.")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise PickleRefused("the pickle appends to something that is no list.")
        self.stack[-1].extend(items)


Step = Callable[[Machine, Any], None]
_VALUES = """
    BININT BININT1 BININT2 LONG1 INT BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BINFLOAT
    SHORT_BINSTRING BINSTRING SHORT_BINBYTES BINBYTES
"""
STEPS: dict[str, Step] = {
    **dict.fromkeys(_VALUES.split(), Machine.push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": Machine.mark,
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "TUPLE": lambda m, _: m.push(tuple(m.above())),
    "TUPLE1": lambda m, _: m.push(m.top(1)),
    "TUPLE2": lambda m, _: m.push(m.top(2)),
    "TUPLE3": lambda m, _: m.push(m.top(3)),
    "LIST": lambda m, _: m.push(m.above()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.push(m.memo[i])),
    "GLOBAL": lambda m, text: m.name(*text.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.top(2)),
    "BINPERSID": Machine.storage,
    "REDUCE": Machine.call,
    "BUILD": Machine.build,
    "SETITEM": lambda m, _: m.set_items(list(m.top(2))),
    "SETITEMS": lambda m, _: m.set_items(m.above()),
    "APPEND": lambda m, _: m.extend(list(m.top(1))),
    "APPENDS": lambda m, _: m.extend(m.above()),
    "POP": lambda m, _: m.top(1) and None,
}


def _state_dict(tree: Any) -> Any:
    for _ in range(MAX_DEPTH):
        if not isinstance(tree, Mapping):
            break
        inner = [k for k in ("state_dict", "model") if isinstance(tree.get(k), Mapping)]
        if not inner or any(isinstance(v, View) for v in tree.values()):
            break
        tree = tree[inner[0]]
    return tree
