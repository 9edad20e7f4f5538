"""The header of a safetensors file, read as if an enemy had written it.

A file is ``8 bytes: N (little-endian) | N bytes of JSON | data``; the JSON maps every name to
``{"dtype", "shape", "data_offsets": [begin, end]}`` with offsets into the data.  `parse` believes
nothing: the header must fit the file, names must be unique, every tensor must have exactly the
bytes that its dtype and shape need, and together they must cover the data without hole or overlap.
`build` writes such a header.  Neither touches the data.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from jaxmerge.errors import closest
from jaxmerge.io.untrusted import open_regular

MAX_HEADER = 16 << 20  # bytes; a header of 150 000 tensors fits, and parsing stays under 1 GB
MAX_NAME = 1000  # characters of a tensor's name

DTYPES: dict[str, tuple[np.dtype, int]] = {  # code -> (numpy dtype, bits an entry)
    code: (np.dtype(kind), bits)
    for code, kind, bits in (
        ("BOOL", np.bool_, 8),
        ("U8", np.uint8, 8),
        ("I8", np.int8, 8),
        ("U16", np.uint16, 16),
        ("I16", np.int16, 16),
        ("U32", np.uint32, 32),
        ("I32", np.int32, 32),
        ("U64", np.uint64, 64),
        ("I64", np.int64, 64),
        ("F16", np.float16, 16),
        ("BF16", ml_dtypes.bfloat16, 16),
        ("F32", np.float32, 32),
        ("F64", np.float64, 64),
        ("C64", np.complex64, 64),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn, 8),
        ("F8_E5M2", ml_dtypes.float8_e5m2, 8),
        ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz, 8),
        ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz, 8),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu, 8),
        ("F4", ml_dtypes.float4_e2m1fn, 4),
        ("I4", ml_dtypes.int4, 4),
        ("U4", ml_dtypes.uint4, 4),
    )
}
CODES = {kind: code for code, (kind, _) in DTYPES.items()}


class Entry(NamedTuple):
    """One tensor of a file.

    Attributes:
        code: the format's name of the dtype, a key of `DTYPES`.
        shape: its axes.
        start, stop: where its bytes are in the file.
    """

    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.code][0]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class HeaderError(ValueError):
    """A file that is not a sound safetensors file."""


def read(path: str | os.PathLike, fd: int | None = None) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a file and its metadata; reads nothing but the header.

    Args:
        fd: the file, if it is open already.

    Raises:
        HeaderError: the file is truncated, or its header does not describe it; says what and where.
        OSError: it cannot be read.
    """
    if fd is None:
        fd = open_regular(path)
        try:
            return read(path, fd)
        finally:
            os.close(fd)
    total = os.fstat(fd).st_size
    first = os.pread(fd, 8, 0)
    if len(first) < 8:
        raise HeaderError(f"{path}: {total} bytes are too few for a safetensors file.")
    (length,) = struct.unpack("<Q", first)
    if length > total - 8:
        raise HeaderError(
            f"{path}: the header should have {length} bytes, the file has {total - 8} left; "
            "it is truncated, or no safetensors file."
        )
    if length > MAX_HEADER:
        raise HeaderError(
            f"{path}: the header has {length} bytes; more than {MAX_HEADER} are refused."
        )
    text = os.pread(fd, length, 8)
    if len(text) < length:
        raise HeaderError(f"{path}: the header ends after {len(text)} of {length} bytes.")
    try:
        return parse(text, total - 8 - length, 8 + length)
    except HeaderError as error:
        raise HeaderError(f"{path}: {error}") from None


def parse(text: bytes, data: int, offset: int = 0) -> tuple[dict[str, Entry], dict[str, str]]:
    """Check a header against the number of data bytes behind it.

    Args:
        text: the JSON.
        data: how many bytes follow it.
        offset: where the data start in the file.
    """
    if not text.lstrip(b" ").startswith(b"{"):
        raise HeaderError("the header is not a JSON object.")
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise HeaderError(f"the header is not UTF-8 text (at byte {error.start}).") from None
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"the header is not JSON ({_short(error)}).") from None
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderError("__metadata__ must map strings to strings.")
    entries = {name: _entry(name, value, data) for name, value in table.items()}
    end = 0
    for name, e in sorted(entries.items(), key=lambda item: item[1][2:]):
        if e.start != end:
            what = "overlaps the tensor before it" if e.start < end else "leaves a hole before it"
            raise HeaderError(f"tensor {_short(name)!r} {what} (begins at {e.start}, not {end}).")
        end = e.stop
    if end != data:
        raise HeaderError(f"the tensors cover {end} bytes, the file holds {data}.")
    at = {n: e._replace(start=e.start + offset, stop=e.stop + offset) for n, e in entries.items()}
    return at, metadata


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    pairs = list(pairs)
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [k for k, _ in pairs]
        twice = sorted({k for k in names if names.count(k) > 1}) if len(names) < 10_000 else "..."
        raise HeaderError(f"the header names {_short(twice)} twice.")
    return table


def _entry(name: str, value: object, data: int) -> Entry:
    short = _short(name)
    if len(name) > MAX_NAME:
        raise HeaderError(f"tensor {short!r} has a name of {len(name)} characters.")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"tensor {short!r} must have dtype, shape and data_offsets, no more.")
    code, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        hint = closest(str(code)[:20], DTYPES)
        raise HeaderError(f"tensor {short!r} has an unknown dtype {_short(code)!r}: {hint}.")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise HeaderError(f"tensor {short!r} has no valid shape: {_short(shape)}.")
    if len(shape) > 32:
        raise HeaderError(f"tensor {short!r} has {len(shape)} axes; at most 32 are read.")
    if not isinstance(span, list) or len(span) != 2 or not all(type(n) is int for n in span):
        raise HeaderError(f"tensor {short!r} has no valid data_offsets: {_short(span)}.")
    start, stop = span
    if not 0 <= start <= stop <= data:
        raise HeaderError(f"tensor {short!r} lies at {start}:{stop}, outside of {data} data bytes.")
    if nbytes(code, [n or 1 for n in shape]) >= 2**63:
        raise HeaderError(f"tensor {short!r} has a shape that no array has: {_short(shape)}.")
    need = nbytes(code, shape)
    if need != stop - start:
        raise HeaderError(
            f"tensor {short!r}, {code}{_short(shape)}, needs {need} bytes and has {stop - start}."
        )
    return Entry(code, tuple(shape), start, stop)


def nbytes(code: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor in a file; two 4-bit entries share a byte.

    >>> nbytes("BF16", [2, 3]), nbytes("F4", [3])
    (12, 2)
    """
    return (math.prod(shape) * DTYPES[code][1] + 7) // 8


def build(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, Entry]]:
    """The bytes before the data, and where every tensor goes, from codes and shapes alone.

    The data start at a multiple of 64 bytes, and tensors follow in the order given.

    >>> head, entries = build({"w": ("F32", (2, 2))})
    >>> len(head) % 64, entries["w"].stop - entries["w"].start
    (0, 16)
    """
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    spans, end = {}, 0
    for name, (code, shape) in tensors.items():
        stop = end + nbytes(code, shape)
        table[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, stop]}
        spans[name] = (code, tuple(shape), end, stop)
        end = stop
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    head = struct.pack("<Q", len(text)) + text
    return head, {
        n: Entry(code, shape, len(head) + a, len(head) + b)
        for n, (code, shape, a, b) in spans.items()
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
