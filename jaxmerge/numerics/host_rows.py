"""Leaves on the host, read in blocks that stay in the cache, on a thread for each processor."""

from __future__ import annotations

import abc
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmerge.numerics.order_statistics import double

BLOCK = 1 << 17  # entries read at once: few enough for the cache, so many that threads seldom meet
SHORT = 1 << 15  # entries up to which a row is counted together with others
PROCESSORS = min(8, os.cpu_count() or 1)


class Row:
    """One leaf of a task vector on the host, model - base, formed block by block as it is read.

    Args:
        model, base: arrays, or anything with dtype, size and flat slices that are read when asked
            for; such a leaf is never in memory as a whole.
        zero: entries that are not finite count as 0.
        span: which entries; by default all.
    """

    def __init__(self, model: Any, base: Any = None, zero: bool = False, span: Any = None):
        given = [x for x in (model, base) if x is not None]
        self.arrays = [x if isinstance(x, Sliced) else np.asarray(x).reshape(-1) for x in given]
        self.zero, self.span = zero, span or (0, self.arrays[0].size)
        self.size = self.span[1] - self.span[0]

    def bits(self, stride: int = 1, wide: bool | None = None) -> Iterator[np.ndarray]:
        """The magnitudes of all entries, or of one in `stride`; every block reuses one buffer."""
        first, last = self.span
        size = -(-self.size // stride)
        buffer = self._buffer(min(BLOCK, size), wide)
        for start in range(0, size, BLOCK):
            end = min(last, first + (start + BLOCK) * stride)
            part = slice(first + start * stride, end, stride)
            yield self._bits([x[part] for x in self.arrays], buffer)

    def runs(self, stride: int, length: int) -> np.ndarray:
        """The magnitudes of the first `length` of every `stride` entries, [runs, length]."""
        first, many, count = self.span[0], max(1, BLOCK // stride), self.size // stride
        buffer = self._buffer(count * length)
        for run in range(0, count, many):
            stop = min(count, run + many)
            part = slice(first + run * stride, first + stop * stride)
            begins = lambda x: x.reshape(-1, stride)[:, :length].reshape(-1)
            self._bits([begins(x[part]) for x in self.arrays], buffer[run * length :])
        return buffer.view(f"u{buffer.itemsize}").reshape(count, length)

    @staticmethod
    def _buffer(size: int, wide: bool | None = None) -> np.ndarray:
        return np.empty(size, np.float64 if (double() if wide is None else wide) else np.float32)

    def _bits(self, parts: list[np.ndarray], buffer: np.ndarray) -> np.ndarray:
        """The magnitudes of these parts of the model and the base, in a buffer of floats."""
        kind = buffer.dtype.type
        wide = buffer.dtype == parts[0].dtype == np.float64
        exact = np.float64 if wide else np.float32
        complex_ = any(x.dtype.kind == "c" for x in parts)
        exact = np.result_type(exact, np.complex64) if complex_ else exact
        parts = [x.astype(exact, copy=False) for x in parts]
        out = buffer[: parts[0].size]
        if complex_:  # by the function that the compiled stages compare with
            out[:] = jnp.abs(np.subtract(*parts) if len(parts) == 2 else parts[0])
        elif len(parts) == 2:
            np.subtract(*parts, out=out, dtype=exact)
        else:
            out[:] = parts[0]
        bits = out.view(f"u{out.itemsize}")
        np.bitwise_and(bits, bits.dtype.type(np.iinfo(bits.dtype).max >> 1), out=bits)
        if self.zero:
            bits[bits >= np.asarray(np.inf, kind).view(bits.dtype)] = 0
        return bits

    def parts(self) -> list[Row]:
        """The same entries as one row for each processor, if there are enough of them."""
        many = min(PROCESSORS, self.size // (4 * BLOCK)) or 1
        cuts = [self.span[0] + self.size * i // many for i in range(many + 1)]
        return [self.between(*ab) for ab in itertools.pairwise(cuts)]

    def between(self, start: int, stop: int) -> Row:
        """The entries start:stop of the same arrays."""
        return Row(*self.arrays, zero=self.zero, span=(start, stop))

    def blocks(self) -> list[tuple[int, int]]:
        """First entry and end of every block in which the parts are read, in order."""
        starts = [(s, p.span[1]) for p in self.parts() for s in range(p.span[0], p.span[1], BLOCK)]
        return [(s, min(s + BLOCK, end)) for s, end in starts]


class Gathered:
    """Rows of few entries joined to longer ones: what counts entries starts with an empty histogram
    for every row, which takes longer than to count some hundred of them.

    >>> short = Gathered()
    >>> [list(short.add(Row(np.float32([-1, x])))) for x in (2, 3)]
    [[], []]
    >>> [next(row.bits()).view(np.float32).tolist() for row in short.rest()]
    [[1.0, 2.0, 1.0, 3.0]]
    """

    def __init__(self):
        self.magnitudes: list[np.ndarray] = []
        self.size = 0

    def add(self, row: Row) -> Iterator[Row]:
        """The rows that are to be counted now, this one among them if it is long."""
        if row.size > SHORT:
            yield row
            return
        kind = np.float64 if double() else np.float32
        self.magnitudes += [bits.copy().view(kind) for bits in row.bits()]
        self.size += row.size
        if self.size >= BLOCK:
            yield from self.rest()

    def rest(self) -> Iterator[Row]:
        """The short ones not counted yet, as one row of magnitudes; none if there are none."""
        if self.magnitudes:
            yield Row(np.concatenate(self.magnitudes))
        self.magnitudes, self.size = [], 0


class Sliced(abc.ABC):
    """A flat array that is read when it is sliced."""

    dtype: np.dtype
    size: int

    @abc.abstractmethod
    def __getitem__(self, part: slice) -> np.ndarray: ...

    @abc.abstractmethod
    def load(self) -> np.ndarray:
        """All of it, in its shape."""


def by_part(row: Row, run: Callable[[Row, bool], Any]) -> list[Any]:
    """What `run` gives for every part of a row, on a thread each if there are several."""
    wide = double()  # belongs to this thread: tell the others
    parts = row.parts()
    if len(parts) == 1:
        return [run(row, wide)]
    return list(_threads().map(run, parts, itertools.repeat(wide)))


def by_span(size: int, run: Callable[[int, int], Any], least: int | None = None) -> list[Any]:
    """What ``run(start, stop)`` gives for every span of so many entries, on a thread each.

    Args:
        least: entries that are worth a thread; by default for what only reads them.
    """
    many = min(PROCESSORS, size // (least or 4 * BLOCK)) or 1
    cuts = [size * i // many for i in range(many + 1)]
    if many == 1:
        return [run(0, size)]
    return list(_threads().map(run, cuts[:-1], cuts[1:]))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(PROCESSORS, "jaxmerge-select")
