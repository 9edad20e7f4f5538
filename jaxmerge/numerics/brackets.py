"""Brackets around order statistics: guessed from a sample, made smaller by exact counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmerge.numerics.host_select import smallest
from jaxmerge.numerics.order_statistics import word

DIGIT = 16  # bits of a bin of the sample
FINE = 1 << 18  # counters of one pass inside a bracket
STRIDE = 67  # one entry in so many is sampled; primes, so no column of a matrix is missed
STRIDES = (521, 1031, 2053, 4099)  # of one leaf, by its size
RUN = 32  # entries sampled in a row there: a line of memory where weights have 16 bits
Interval = tuple[int, int]  # bits from low to high, both included


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


def guess(
    histogram: np.ndarray, size: int, ranks: np.ndarray, stride: int = STRIDE
) -> tuple[Interval, ...]:
    """Intervals that should hold the entries of these ranks (1 = the largest): five deviations."""
    at_least = np.cumsum(histogram[::-1])[::-1] * (size / max(1, histogram.sum()))
    share = ranks / size
    slack = 5 * np.sqrt(stride * size * share * (1 - share)) + 2 * stride
    place = lambda sought: np.searchsorted(-at_least, -sought, "right") - 1  # the last bin so full
    low, high = (np.maximum(0, place(r)).tolist() for r in (ranks + slack, ranks - slack))
    shift = word() - DIGIT
    intervals = ((a << shift, ((b + 1) << shift) - 1) for a, b in zip(low, high, strict=True))
    return tuple(
        x if r else (above_all(), above_all()) for x, r in zip(intervals, ranks, strict=True)
    )


def above_all() -> int:
    """A bound that no magnitude reaches: what holds rank 0."""
    return (1 << word()) - 1


def stride_of(size: int) -> int:
    """In how many entries of a leaf one run is sampled, for `enclose`.

    Every run is a line of memory of its own, and s of them leave size / sqrt(s) entries inside the
    bracket, each some ten times the cost of one outside: the sum of both is least where the stride
    grows as the cube root of the size.

    >>> stride_of(1 << 15), stride_of(1 << 22), stride_of(1 << 30)
    (521, 2053, 4099)
    """
    return next((s for s in STRIDES if s >= 10 * size ** (1 / 3)), STRIDES[-1])


def enclose(runs: np.ndarray, size: int, ranks: np.ndarray) -> tuple[Interval, ...]:
    """The same from the sampled entries themselves, [runs, length], and as narrow as pays.

    Few entries inside make the pass that gathers them faster by half; at three deviations one leaf
    in 400 is missed.  Neighbours may be alike, so a deviation is taken from how the runs differ.
    """
    count, sampled = runs.shape[0], runs.reshape(-1)
    below = sampled.size * (1 - ranks / size)
    deviation = np.sqrt(below * ranks / size)
    for r, place in enumerate(np.minimum(below / runs.shape[1], count - 1).astype(int)):
        (near,) = smallest(runs[:, 0], [place])
        differ = np.sqrt(count) * np.std(np.count_nonzero(runs < runs.dtype.type(near), axis=1))
        deviation[r] = max(deviation[r], differ)
    slack = 3 * deviation + 2
    low, high = np.floor(below - slack).astype(int), np.ceil(below + slack).astype(int)
    places = np.clip(np.concatenate([low, high]), 0, sampled.size - 1)
    first, last = np.array(smallest(sampled, places), runs.dtype).reshape(2, -1)
    first[low < 0], last[high >= sampled.size] = 0, np.iinfo(runs.dtype).max >> 1
    return tuple(zip(first.tolist(), last.tolist(), strict=True))


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
            new.append((high + 1, (1 << (word() - 1)) - 1))
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


def values(intervals: tuple[Interval, ...]) -> np.ndarray:
    """What settled intervals are down to, as bits."""
    return np.array([low for low, _ in intervals], f"uint{word()}")


def shift_of(low: int, high: int) -> int:
    """How many of the last bits one pass leaves open, to make do with its counters."""
    return max(0, (high - low).bit_length() - (FINE.bit_length() - 1))
