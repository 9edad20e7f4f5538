"""A GGUF file's header, read as if an enemy had written it.

    "GGUF" | u32 version | u64 tensors | u64 entries | entries | tensor list | data

An entry is a key, a type and a value; a tensor is a name, dimensions (fastest first), a type and an
offset into the data, which begin at the next multiple of `general.alignment`. `parse` believes
nothing: every count, length and offset is compared with the bytes that are there before anything
is made of it, names must be unique, and tensors must lie in the file without overlap.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.io.header import HeaderError
from jaxmerge.io.untrusted import open_regular

MAX_HEADER = 512 << 20  # bytes before the data; a vocabulary of a million tokens fits
MAX_STRING = 64 << 20
MAX_NAME = 1000  # bytes of a key, and of a tensor's name
MAX_TENSORS = 1 << 17
MAX_ENTRIES = 1 << 16

SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9


class Tensor(NamedTuple):
    """One tensor of a file.

    Attributes:
        kind: the number of its type.
        shape: slowest axis first, as numpy and torch have it.
        start, stop: where its bytes are in the file.
    """

    kind: int
    shape: tuple[int, ...]
    start: int
    stop: int


class Contents(NamedTuple):
    """A file's header.

    Attributes:
        metadata: key -> number, text, or array (a list of texts, a numpy array of numbers).
        tensors: name -> `Tensor`, in the order of the file.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def types() -> dict[int, tuple[str, int, int]]:
    """Number of a type -> its name, weights a block, bytes a block; those that can be read."""
    import gguf

    plain = ("F32", "F16", "F64", "I8", "I16", "I32", "I64")
    return {
        int(kind): (kind.name, *size)
        for kind, size in gguf.constants.GGML_QUANT_SIZES.items()
        if kind.name in plain or kind in gguf.quants._type_traits
    }


class _Cursor:
    """Reads a file from its start, never more than is there."""

    def __init__(self, file, size: int):
        self.file, self.size, self.at = file, min(size, MAX_HEADER), 0

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            raise HeaderError(f"{what} needs {count:,} bytes, {self.size - self.at:,} are left")
        self.at += count
        return self.file.read(count)

    def number(self, code: str, what: str) -> Any:
        kind = np.dtype(code)
        return np.frombuffer(self.take(kind.itemsize, what), kind)[0].item()

    def text(self, what: str, most: int = MAX_STRING) -> str:
        length = struct.unpack("<Q", self.take(8, what))[0]
        if length > most:
            raise HeaderError(f"{what} is a text of {length:,} bytes")
        return self.take(length, what).decode("utf-8", "replace")

    def value(self, kind: int, what: str) -> Any:
        if kind in SCALARS:
            number = self.number(SCALARS[kind], what)
            return bool(number) if kind == BOOL else number
        if kind == STRING:
            return self.text(what)
        if kind != ARRAY:
            raise HeaderError(f"{what} is of type {kind}, expected 0 to 12")
        inner, count = struct.unpack("<IQ", self.take(12, what))
        least = 8 if inner == STRING else np.dtype(SCALARS.get(inner, "<u1")).itemsize
        if inner != STRING and inner not in SCALARS:
            raise HeaderError(f"{what} is an array of type {inner}, expected numbers or texts")
        if count * least > self.size - self.at:
            raise HeaderError(f"{what} has {count:,} entries, more than the file has room for")
        if inner == STRING:
            return [self.text(what) for _ in range(count)]
        return np.frombuffer(self.take(count * least, what), SCALARS[inner])


def parse(path: str | os.PathLike) -> Contents:
    """The header of a GGUF file (versions 2 and 3, little-endian).

    Raises:
        HeaderError: anything is wrong with it; says what and where.
        UserError: no regular file.
    """
    path = Path(path)
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _parse(_Cursor(file, size), size)
        except HeaderError as error:
            raise HeaderError(
                f"{path} is no sound GGUF file: {error}. Copy or convert it anew."
            ) from None


def _parse(cursor: _Cursor, size: int) -> Contents:
    magic = cursor.take(4, "the magic number")
    if magic != b"GGUF":
        raise HeaderError(f"it begins with {magic!r}, expected b'GGUF'")
    version = cursor.number("<u4", "the version")
    if version not in (2, 3):
        big = version in (2 << 24, 3 << 24)
        raise HeaderError(f"version {version}{' (big-endian)' * big}, expected 2 or 3")
    tensors, entries = (cursor.number("<u8", "a count") for _ in range(2))
    if tensors > MAX_TENSORS or entries > MAX_ENTRIES:
        raise HeaderError(f"it announces {tensors:,} tensors and {entries:,} entries")
    metadata: dict[str, Any] = {}
    for index in range(entries):
        key = cursor.text(f"the key of entry {index}", MAX_NAME)
        if key in metadata:
            raise HeaderError(f"the key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.number("<u4", f"{key!r}"), f"{key!r}")
    listed = [_tensor(cursor, index) for index in range(tensors)]
    align = metadata.get("general.alignment", 32)
    if not isinstance(align, int) or not 0 < align <= 1 << 20 or align & (align - 1):
        raise HeaderError(f"general.alignment is {align!r}, expected a power of two")
    data = -(-cursor.at // align) * align
    by_name: dict[str, Tensor] = {}
    for name, kind, shape, offset, count in listed:
        start = data + offset
        if name in by_name:
            raise HeaderError(f"the tensor {name!r} occurs twice")
        if offset % align or start + count > size:
            raise HeaderError(
                f"the tensor {name!r} would be at bytes {start:,} to {start + count:,} of {size:,}"
                f", aligned to {align}"
            )
        by_name[name] = Tensor(kind, shape, start, start + count)
    last, before = data, ""
    for name, tensor in sorted(by_name.items(), key=lambda item: item[1].start):
        if tensor.start < last:
            raise HeaderError(f"the tensors {before!r} and {name!r} overlap")
        last, before = tensor.stop, name
    return Contents(metadata, by_name)


def _tensor(cursor: _Cursor, index: int) -> tuple[str, int, tuple[int, ...], int, int]:
    name = cursor.text(f"the name of tensor {index}", MAX_NAME)
    axes = cursor.number("<u4", f"the tensor {name!r}")
    if axes > 4:
        raise HeaderError(f"the tensor {name!r} has {axes} axes, expected at most 4")
    dims = [cursor.number("<u8", f"the tensor {name!r}") for _ in range(axes)]
    kind, offset = cursor.number("<u4", f"{name!r}"), cursor.number("<u8", f"{name!r}")
    known = types()
    if kind not in known:
        raise HeaderError(
            f"the tensor {name!r} is of type {kind}, which is not read (known: "
            f"{', '.join(n for n, *_ in known.values())})"
        )
    called, block, width = known[kind]
    if not all(dims) or math.prod(dims) >= 1 << 48:
        raise HeaderError(f"the tensor {name!r} has the shape {dims}")
    if (dims[0] if dims else 1) % block:
        raise HeaderError(f"the tensor {name!r} has rows of {dims[0]}, {called} blocks of {block}")
    return name, kind, tuple(dims[::-1]), offset, math.prod(dims) // block * width
