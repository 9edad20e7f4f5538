"""Order statistics without sorting, on the host: guess a bracket from a sample, then verify.

A sample (one entry in 67; of one leaf, runs of entries) tells roughly where the k-th largest
magnitude lies.  The next pass counts, exactly, the entries above that bracket and gathers those
inside, which as a rule settles the k-th; a guess that missed, or a bracket too wide, costs another
pass.  A leaf is read in blocks that stay in the processor's cache, at about 1 ns an entry;
`np.partition` takes five times as long, XLA's sort two hundred times.  All results are the integers
of `jaxmerge.numerics.order_statistics.magnitude_bits`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.numerics.brackets import (
    DIGIT,
    RUN,
    STRIDE,
    Interval,
    Tally,
    above_all,
    enclose,
    narrow,
    shift_of,
    stride_of,
)
from jaxmerge.numerics.host_rows import Row, by_part
from jaxmerge.numerics.host_select import smallest
from jaxmerge.numerics.order_statistics import word

BRACKET_ENTRIES = 1 << 21  # entries inside a bracket that one thread keeps
SMALL = 1 << 15  # leaves up to this size are looked through whole


def sample(row: Row, stride: int = STRIDE) -> np.ndarray:
    """A histogram of the first 16 bits of one entry in `stride`, scaled to the size of the leaf."""
    counts = np.zeros(1 << DIGIT, np.int64)
    for bits in row.bits(stride):
        first = bits >> bits.dtype.type(word() - DIGIT)
        counts += np.bincount(first.astype(np.int64), minlength=1 << DIGIT)
    return counts * stride


class Inside(NamedTuple):
    """The entries of a row inside an interval, in their order.

    Attributes:
        values: the entries, less the low end; None of an interval of one value.
        ends: for every block of the row, how many of them lie in it or before it.
    """

    values: np.ndarray | None
    ends: np.ndarray

    @property
    def size(self) -> int:
        return int(self.ends[-1])

    def smallest(self, i: int) -> int:
        """The i-th of them from the smallest, i = 0 for the smallest itself."""
        return 0 if self.values is None else smallest(self.values, [i])[0]

    def above(self, value: int) -> int:
        """How many are larger."""
        return 0 if self.values is None else int(np.count_nonzero(self.values > value))

    def equal(self, value: int) -> int:
        """How many are equal."""
        return self.size if self.values is None else int(np.count_nonzero(self.values == value))

    def place(self, row: Row, value: int, bits: int, n: int) -> int:
        """Where in the row the n-th of the entries `value` (`bits` in the row) stands, n >= 1.

        One block is read again for it.
        """
        at = n - 1 if self.values is None else np.flatnonzero(self.values == value)[n - 1]
        block = int(np.searchsorted(self.ends, at, "right"))
        first = int(self.ends[block - 1]) if block else 0
        before = at - first
        if self.values is not None:
            before = np.count_nonzero(self.values[first:at] == value)
        start, stop = row.blocks()[block]
        (again,) = row.between(start, stop).bits()
        return start - row.span[0] + int(np.flatnonzero(again == bits)[before])


def gather(
    row: Row, intervals: tuple[Interval, ...], most: int = BRACKET_ENTRIES
) -> tuple[np.ndarray, list[Inside] | None]:
    """For each interval: how many entries are not below it, and those inside.

    None in place of those inside where a part of the row has more than `most` of them to keep.
    """

    def run(part: Row, wide: bool) -> tuple[np.ndarray, list[list[np.ndarray]], np.ndarray] | None:
        inside: list[list[np.ndarray]] = [[] for _ in intervals]
        not_below, sizes, total = np.zeros(len(intervals), np.int64), [], 0
        for values, count in _inside(part, intervals, wide):
            not_below += count
            sizes.append([x.size for x in values])
            for i, (low, high) in enumerate(intervals):
                if low < high:
                    inside[i].append(values[i])
                    total += values[i].size
            if total > most:
                return None
        return not_below, inside, np.array(sizes)

    parts = by_part(row, run)
    if any(p is None for p in parts):
        return np.zeros(0, np.int64), None
    ends = np.cumsum(np.concatenate([sizes for *_, sizes in parts]), axis=0)
    blocks = [[x for _, inside, _ in parts for x in inside[i]] for i in range(len(intervals))]
    values = [np.concatenate(b) if b else None for b in blocks]
    total = np.sum([n for n, *_ in parts], axis=0)
    return total, [Inside(x, e) for x, e in zip(values, ends.T, strict=True)]


def count(row: Row, intervals: tuple[Interval, ...]) -> dict[str, Any]:
    """For each interval: how many entries are not below it, and which lie inside (a `Tally`)."""
    shifts = [shift_of(low, high) for low, high in intervals]

    def run(part: Row, wide: bool) -> tuple[np.ndarray, list[Tally]]:
        tallies, not_below = [Tally([]) for _ in intervals], np.zeros(len(intervals), np.int64)
        for parts_inside, count in _inside(part, intervals, wide):
            not_below += count
            for tally, x, s in zip(tallies, parts_inside, shifts, strict=True):
                tally.join(Tally([x >> x.dtype.type(s)]))
        return not_below, tallies

    results = by_part(row, run)
    inside = functools.reduce(
        lambda a, b: [x.join(y) for x, y in zip(a, b, strict=True)],
        [counted for _, counted in results],
    )
    return {"not_below": np.sum([n for n, _ in results], axis=0), "inside": tuple(inside)}


def _inside(
    part: Row, intervals: tuple[Interval, ...], wide: bool
) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Block by block, for each interval: the entries inside, less its low end; how many are not
    below it."""
    mask = other = np.empty(0, bool)
    for bits in part.bits(wide=wide):
        if mask.size != bits.size:
            mask, other = np.empty(bits.size, bool), np.empty(bits.size, bool)
        word, inside, not_below = bits.dtype.type, [], []
        for low, high in intervals:
            np.greater_equal(bits, word(low), out=mask)
            not_below.append(np.count_nonzero(mask))
            np.not_equal(mask, np.greater(bits, word(high), out=other), out=mask)
            if low == high:  # nothing but how many
                inside.append(np.zeros(np.count_nonzero(mask), bits.dtype))
                continue
            entries = bits.take(np.flatnonzero(mask))
            inside.append(np.subtract(entries, word(low), out=entries))
        yield inside, np.array(not_below, np.int64)


def in_one_leaf(row: Row, ranks: np.ndarray, exact: bool = False) -> tuple[np.ndarray, Any]:
    """The values of these ranks in one leaf; if `exact` also the places of the entries there.

    Entries of equal magnitude rank in the order in which they stand; a place of 2^32 - 1 says that
    all of them are in.
    """
    flat = ranks.reshape(-1)
    value, place = _in_one_leaf(row, np.maximum(flat, 1), exact)
    bits = np.array(value, f"uint{word()}")
    bits[flat == 0] = above_all()
    if not exact:
        return bits.reshape(ranks.shape), None
    last = np.where(flat == 0, ALL, place).astype(np.uint32)
    return bits.reshape(ranks.shape), last.reshape(ranks.shape)


ALL = (1 << 32) - 1  # the place that says that all entries of a magnitude are in


def _in_one_leaf(row: Row, flat: np.ndarray, exact: bool) -> tuple[list[int], list[int]]:
    """Of every rank the value, and if `exact` where the last entry of that value stands."""
    if row.size <= SMALL:
        (bits,) = row.bits()
        one = Inside(bits, np.array([bits.size]))
        lows, not_below, inside = [0] * flat.size, [row.size] * flat.size, [one] * flat.size
    else:
        lows, not_below, inside = _bracketed(row, flat)
    values, places = [], []
    for low, n, x, rank in zip(lows, not_below, inside, flat, strict=True):
        value = x.smallest(int(n - rank))
        values.append(int(low) + value)
        if exact:
            left = int(rank - (n - x.size) - x.above(value))
            everything = left == x.equal(value)
            places.append(ALL if everything else x.place(row, value, values[-1], left))
    return values, places


def _bracketed(row: Row, flat: np.ndarray) -> tuple[list[int], np.ndarray, list[Inside]]:
    """For every rank an interval around it: its low end, the entries not below it, those inside."""
    stride = stride_of(row.size)
    intervals = enclose(row.runs(stride, RUN), row.size, flat)
    while True:
        not_below, inside = gather(row, intervals)
        if inside is not None:
            at = not_below - flat  # places from the smallest of those inside, if it is there
            if all(0 <= i < x.size for i, x in zip(at, inside, strict=True)):
                return [low for low, _ in intervals], not_below, inside
        intervals = narrow(intervals, flat, count(row, intervals))
