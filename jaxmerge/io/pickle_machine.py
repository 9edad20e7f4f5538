"""A machine for the programs that pickles are, which knows the instructions of a state dict only.

Python's own machine calls what the program names, even where `find_class` is restricted: an
instruction may change an object that was handed out.  The values of `Machine` are plain data
(numbers, texts, tuples, lists, mappings, `Name`, `Storage`, `View`), and the dozen names that it
accepts are texts to it.  Anything else is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

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


Step = Callable[[Machine, Any], Any]
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
