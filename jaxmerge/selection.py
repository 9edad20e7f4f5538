"""Order statistics without sorting: the exact k-th largest magnitude of a leaf or of a model.

Magnitudes become unsigned integers of the same order (`magnitude_bits`), and the k-th largest
integer is found digit by digit, by counting:

* in compiled code, a histogram of 2^16 bins for each digit of 16 bits (`radix_count`): two passes
  for float32, four for float64;
* on the host, `np.partition` for one leaf in memory, and for a whole model a bracket guessed from
  a sample, then verified and narrowed by exact counts (`bracket_count`): two passes as a rule.

Counts add up, so leaves, files and devices may be visited in any order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core import Array, concrete

DIGIT = 16
BINS = 1 << DIGIT
STRIDE = 67  # one entry in so many is sampled; a prime, so no column of a matrix is missed
FINE = 1 << 18  # counters of one pass inside a bracket


def magnitude_bits(x: Array) -> Array:
    """|x| as an unsigned integer: |a| < |b|  <=>  bits(a) < bits(b).

    32 bits; 64 with x64 enabled, where float64 leaves must be told apart exactly.

    >>> bool(magnitude_bits(jnp.float32(-2)) > magnitude_bits(jnp.float32(1)))
    True
    """
    wide = jax.config.jax_enable_x64
    x = jnp.abs(x).astype(jnp.float64 if wide else jnp.float32)
    return jax.lax.bitcast_convert_type(x, jnp.uint64 if wide else jnp.uint32)


def host_bits(x: np.ndarray) -> np.ndarray:
    """`magnitude_bits` in numpy, flat."""
    wide = jax.config.jax_enable_x64
    x = np.ascontiguousarray(x, np.float64 if wide else np.float32).reshape(-1)
    if wide:
        return x.view(np.uint64) & np.uint64(2**63 - 1)
    return x.view(np.uint32) & np.uint32(2**31 - 1)


def bits_to_magnitude(bits: Array) -> Array:
    """The magnitude behind `magnitude_bits`."""
    return jax.lax.bitcast_convert_type(bits, jnp.dtype(f"float{8 * bits.dtype.itemsize}"))


def digits() -> int:
    """How many digits of 16 bits a magnitude has."""
    return 4 if jax.config.jax_enable_x64 else 2


# ------------------------------------------------------------ compiled: radix select


def radix_count(x: Array, value: Array, turn: int) -> Array:
    """Histograms of digit `turn` among the entries that share the digits found so far.

    Args:
        value: digits found so far, one number for each rank sought, shape [R].

    Returns:
        int32 [R, 2^16], or [1, 2^16] for the first digit.
    """
    bits = magnitude_bits(x).reshape(-1)
    shift = bits.dtype.type(DIGIT * (digits() - 1 - turn))
    digit = (bits >> shift) & bits.dtype.type(BINS - 1)
    if turn == 0:
        return jnp.zeros((1, BINS), jnp.int32).at[0, digit].add(1)
    above = bits.dtype.type(DIGIT * (digits() - turn))
    rows = []
    for v in value:
        inside = ((bits >> above) == (v >> above)).astype(jnp.int32)
        rows.append(jnp.zeros(BINS, jnp.int32).at[digit].add(inside))
    return jnp.stack(rows)


def radix_refine(value: Array, rank: Array, hist: Array, turn: int) -> tuple[Array, Array]:
    """One digit more of every value sought, and the rank left inside its bin."""
    xp = np if concrete(value, rank, hist) else jnp
    kind = f"uint{DIGIT * digits()}"
    at_least = xp.cumsum(hist[:, ::-1], axis=1)[:, ::-1]
    b = xp.sum(at_least >= rank[:, None], axis=1) - 1
    at_least, hist = (xp.broadcast_to(a, (len(rank), BINS)) for a in (at_least, hist))
    here = xp.take_along_axis(at_least - hist, b[:, None], axis=1)[:, 0]
    digit = xp.asarray(b, kind) << xp.asarray(DIGIT * (digits() - 1 - turn), kind)
    return xp.asarray(value, kind) | digit, rank - here


# ------------------------------------------------------------ host: bracket and verify


def sample_count(bits: np.ndarray) -> np.ndarray:
    """A histogram of the first digit of a sample, scaled to the size of the leaf."""
    top = bits[::STRIDE] >> bits.dtype.type(DIGIT * (digits() - 1))
    return np.bincount(top, minlength=BINS) * STRIDE


Interval = tuple[int, int]  # bits from low to high, both included


def bracket(sample: np.ndarray, n: int, ranks: np.ndarray) -> tuple[Interval, ...]:
    """Intervals of bits that should hold the entries of these ranks; the next pass verifies."""
    at_least = np.cumsum(sample[::-1])[::-1] * (n / max(1, sample.sum()))
    share = ranks / n
    slack = 8 * np.sqrt(STRIDE * n * share * (1 - share)) + 2 * STRIDE
    low = [max(0, int(np.sum(at_least >= r)) - 1) for r in ranks + slack]
    high = [max(0, int(np.sum(at_least >= r)) - 1) for r in ranks - slack]
    shift = DIGIT * (digits() - 1)
    return tuple((a << shift, ((b + 1) << shift) - 1) for a, b in zip(low, high, strict=True))


def bracket_count(bits: np.ndarray, intervals: tuple[Interval, ...]) -> np.ndarray:
    """For each interval: how many entries lie above it, and a histogram of those inside.

    Returns:
        int64 [R, 1 + 2^18].
    """
    out = np.zeros((len(intervals), 1 + FINE), np.int64)
    kind = bits.dtype.type
    for row, (low, high) in zip(out, intervals, strict=True):
        row[0] = np.count_nonzero(bits > kind(high))
        inside = bits - kind(low)
        inside = inside[inside <= kind(high - low)] >> kind(_shift(low, high))
        row[1:] = np.bincount(inside, minlength=FINE)
    return out


def bracket_refine(
    intervals: tuple[Interval, ...], ranks: np.ndarray, counts: np.ndarray
) -> tuple[Interval, ...]:
    """Narrow every interval by exact counts; an interval that missed is left for its neighbour."""
    new = []
    for (low, high), rank, row in zip(intervals, ranks, counts, strict=True):
        top = (1 << (DIGIT * digits())) - 1
        at_least = row[0] + np.cumsum(row[:0:-1])[::-1]
        if rank <= row[0]:
            new.append((high + 1, top))
        elif rank > at_least[0]:
            new.append((0, low - 1))
        else:
            b, shift = int(np.sum(at_least >= rank)) - 1, _shift(low, high)
            first = low + (b << shift)
            new.append((first, min(high, first + (1 << shift) - 1)))
    return tuple(new)


def _shift(low: int, high: int) -> int:
    return max(0, (high - low).bit_length() - (FINE.bit_length() - 1))
