"""Order statistics without sorting, on the host: guess a bracket from a sample, then verify.

One entry in 67 tells roughly where the k-th largest magnitude lies.  The next pass counts, exactly,
the entries above that bracket and gathers those inside, which as a rule settles the k-th; a guess
that missed, or a bracket too wide, costs another pass.  A leaf is read in blocks that stay in the
processor's cache, at about 1 ns an entry; `np.partition` takes five times as long, XLA's sort two
hundred times.  All results are the integers of `jaxmerge.numerics.order_statistics.magnitude_bits`.
"""

from __future__ import annotations

import abc
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.numerics.order_statistics import BINS, DIGIT, digits, double

STRIDE = 67  # one entry in so many is sampled; a prime, so no column of a matrix is missed
FINE = 1 << 18  # counters of one pass inside a bracket
BLOCK = 1 << 17  # entries read at once: few enough for the cache, so many that threads seldom meet
PROCESSORS = min(8, os.cpu_count() or 1)
BRACKET_ENTRIES = 1 << 21  # entries inside a bracket that one thread keeps
SMALL = 1 << 15  # leaves up to this size are ranked by np.partition

Interval = tuple[int, int]  # bits from low to high, both included


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
        wide = double() if wide is None else wide
        kind, word = (np.float64, np.uint64) if wide else (np.float32, np.uint32)
        exact = np.float64 if wide and self.arrays[0].dtype == np.float64 else np.float32
        mask = word(np.iinfo(word).max >> 1)
        infinite = np.asarray(np.inf, kind).view(word)
        first, last = self.span
        size = -(-self.size // stride)
        buffer = np.empty(min(BLOCK, size), kind)
        for start in range(0, size, BLOCK):
            part = slice(
                first + start * stride, min(last, first + (start + BLOCK) * stride), stride
            )
            parts = [x[part].astype(exact, copy=False) for x in self.arrays]
            out = buffer[: parts[0].size]
            if len(parts) == 2:
                np.subtract(*parts, out=out, dtype=exact)
            else:
                out[:] = parts[0]
            bits = out.view(word)
            np.bitwise_and(bits, mask, out=bits)
            if self.zero:
                bits[bits >= infinite] = 0
            yield bits

    def parts(self) -> list[Row]:
        """The same entries as one row for each processor, if there are enough of them."""
        many = min(PROCESSORS, self.size // (4 * BLOCK)) or 1
        cuts = [self.span[0] + self.size * i // many for i in range(many + 1)]
        return [self.between(*ab) for ab in itertools.pairwise(cuts)]

    def between(self, start: int, stop: int) -> Row:
        """The entries start:stop of the same arrays."""
        return Row(*self.arrays, zero=self.zero, span=(start, stop))

    def blocks(self) -> list[Interval]:
        """First entry and end of every block in which the parts are read, in order."""
        starts = [(s, p.span[1]) for p in self.parts() for s in range(*p.span, BLOCK)]
        return [(s, min(s + BLOCK, end)) for s, end in starts]


class Sliced(abc.ABC):
    """A flat array that is read when it is sliced."""

    dtype: np.dtype
    size: int

    @abc.abstractmethod
    def __getitem__(self, part: slice) -> np.ndarray: ...

    @abc.abstractmethod
    def load(self) -> np.ndarray:
        """All of it, in its shape."""


class Tally:
    """The entries found inside a bracket, as counts once there are many; tallies join."""

    dtype = np.dtype(object)

    def __init__(self, values: list[np.ndarray]):
        self.values, self.stored, self.dense = values, sum(v.size for v in values), 0

    def join(self, other: Tally) -> Tally:
        """Both together; takes over what they hold."""
        self.values += other.values
        self.stored += other.stored
        self.dense = self.dense + other.dense
        if self.stored > 1 << 20:
            self.dense, self.values, self.stored = self.histogram(), [], 0
        return self

    def histogram(self) -> np.ndarray:
        """Counts of the values 0 to 2^18 - 1."""
        if not self.values:
            return np.zeros(FINE, np.int64) + self.dense
        values = np.concatenate(self.values).astype(np.int64)  # numpy 2.0 counts no uint64
        return np.bincount(values, minlength=FINE) + self.dense


def sample(row: Row, stride: int = STRIDE) -> np.ndarray:
    """A histogram of the first digit of one entry in `stride`, scaled to the size of the leaf."""
    counts = np.zeros(BINS, np.int64)
    for bits in row.bits(stride):
        first = bits >> bits.dtype.type(DIGIT * (digits() - 1))
        counts += np.bincount(first.astype(np.int64), minlength=BINS)
    return counts * stride


def guess(
    histogram: np.ndarray, size: int, ranks: np.ndarray, stride: int = STRIDE
) -> tuple[Interval, ...]:
    """Intervals that should hold the entries of these ranks (1 = the largest): five deviations."""
    at_least = np.cumsum(histogram[::-1])[::-1] * (size / max(1, histogram.sum()))
    share = ranks / size
    slack = 5 * np.sqrt(stride * size * share * (1 - share)) + 2 * stride
    place = lambda sought: np.searchsorted(-at_least, -sought, "right") - 1  # the last bin so full
    low, high = (np.maximum(0, place(r)).tolist() for r in (ranks + slack, ranks - slack))
    shift = DIGIT * (digits() - 1)
    intervals = ((a << shift, ((b + 1) << shift) - 1) for a, b in zip(low, high, strict=True))
    return tuple(
        x if r else (above_all(), above_all()) for x, r in zip(intervals, ranks, strict=True)
    )


def above_all() -> int:
    """A bound that no magnitude reaches: what holds rank 0."""
    return (1 << DIGIT * digits()) - 1


def enclose(sampled: np.ndarray, size: int, ranks: np.ndarray) -> tuple[Interval, ...]:
    """The same from the sampled entries themselves, and as narrow as pays: three deviations.

    Few entries inside make the pass that gathers them faster by half; one leaf in 400 is missed.
    """
    share = 1 - ranks / size
    slack = 3 * np.sqrt(sampled.size * share * (1 - share)) + 2
    low = np.floor(sampled.size * share - slack).astype(np.int64)
    high = np.ceil(sampled.size * share + slack).astype(np.int64)
    places = np.clip(np.stack([low, high]), 0, sampled.size - 1)
    first, last = np.partition(sampled, np.unique(places))[places]
    first[low < 0], last[high >= sampled.size] = 0, np.iinfo(sampled.dtype).max >> 1
    return tuple(zip(first.tolist(), last.tolist(), strict=True))


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
        return 0 if self.values is None else int(np.partition(self.values, i)[i])

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

    parts = _by_part(row, run)
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

    results = _by_part(row, run)
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
            np.greater(bits, word(high), out=other)
            entries = bits.take(np.flatnonzero(np.not_equal(mask, other, out=mask)))
            inside.append(np.subtract(entries, word(low), out=entries))
        yield inside, np.array(not_below, np.int64)


def _by_part(row: Row, run: Callable[[Row, bool], Any]) -> list[Any]:
    """What `run` gives for every part of a row, on a thread each if there are several."""
    wide = double()  # belongs to this thread: tell the others
    parts = row.parts()
    if len(parts) == 1:
        return [run(row, wide)]
    return list(_threads().map(run, parts, itertools.repeat(wide)))


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(PROCESSORS, "jaxmerge-select")


def narrow(
    intervals: tuple[Interval, ...], ranks: np.ndarray, counts: dict[str, Any]
) -> tuple[Interval, ...]:
    """Smaller intervals by exact counts; one that missed gives way to its neighbour."""
    new = []
    for (low, high), rank, n, tally in zip(
        intervals, ranks, counts["not_below"], counts["inside"], strict=True
    ):
        if rank == 0:
            new.append((low, high))
            continue
        histogram = tally.histogram()
        above = n - histogram.sum()
        if rank <= above:
            new.append((high + 1, (1 << (DIGIT * digits() - 1)) - 1))
        elif rank > n:
            new.append((0, low - 1))
        else:
            at_least = above + np.cumsum(histogram[::-1])[::-1]
            b, shift = int(np.sum(at_least >= rank)) - 1, shift_of(low, high)
            first = low + (b << shift)
            new.append((first, min(high, first + (1 << shift) - 1)))
    return tuple(new)


def settled(intervals: tuple[Interval, ...]) -> bool:
    """Whether every interval is down to one value."""
    return all(low == high for low, high in intervals)


def in_one_leaf(row: Row, ranks: np.ndarray, exact: bool = False) -> tuple[np.ndarray, Any]:
    """The values of these ranks in one leaf; if `exact` also the places of the entries there.

    Entries of equal magnitude rank in the order in which they stand; a place of 2^32 - 1 says that
    all of them are in.
    """
    flat = ranks.reshape(-1)
    value, place = _in_one_leaf(row, np.maximum(flat, 1), exact)
    bits = np.array(value, f"uint{DIGIT * digits()}")
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
    intervals = enclose(np.concatenate([x.copy() for x in row.bits(STRIDE)]), row.size, flat)
    while True:
        not_below, inside = gather(row, intervals)
        if inside is not None:
            at = not_below - flat  # places from the smallest of those inside, if it is there
            if all(0 <= i < x.size for i, x in zip(at, inside, strict=True)):
                return [low for low, _ in intervals], not_below, inside
        intervals = narrow(intervals, flat, count(row, intervals))


def values(intervals: tuple[Interval, ...]) -> np.ndarray:
    """What settled intervals are down to, as bits."""
    return np.array([low for low, _ in intervals], f"uint{DIGIT * digits()}")


def shift_of(low: int, high: int) -> int:
    """How many of the last bits one pass leaves open, to make do with its counters."""
    return max(0, (high - low).bit_length() - (FINE.bit_length() - 1))
