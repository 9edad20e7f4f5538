"""Order statistics without sorting, in compiled code: the exact k-th largest magnitude.

Magnitudes become unsigned integers of the same order (`magnitude_bits`), and the k-th largest
integer is found digit by digit, by a histogram of 2^16 bins for each digit of 16 bits: two passes
for float32, four for float64.  Counts add up, so leaves, files and devices may be visited in any
order.  `jaxmerge.numerics.host_order_statistics` does the same for arrays that lie on the host.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array, numpy_of

DIGIT = 16
BINS = 1 << DIGIT


def magnitude_bits(x: Array) -> Array:
    """|x| as an unsigned integer: |a| < |b|  <=>  bits(a) < bits(b).

    32 bits; 64 with x64 enabled, where float64 leaves must be told apart exactly.

    >>> bool(magnitude_bits(jnp.float32(-2)) > magnitude_bits(jnp.float32(1)))
    True
    """
    wide = double()
    x = jnp.abs(x).astype(jnp.float64 if wide else jnp.float32)
    return jax.lax.bitcast_convert_type(x, jnp.uint64 if wide else jnp.uint32)


def bits_to_magnitude(bits: Array) -> Array:
    """The magnitude behind `magnitude_bits`."""
    return jax.lax.bitcast_convert_type(bits, jnp.dtype(f"float{8 * bits.dtype.itemsize}"))


def digits() -> int:
    """How many digits of 16 bits a magnitude has."""
    return 4 if double() else 2


def double() -> bool:
    """Whether this thread computes in float64 (x64 enabled)."""
    return jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]


def radix_count(x: Array, value: Array, turn: int) -> Array:
    """Histograms of digit `turn` among the entries that share the digits found so far.

    Args:
        value: digits found so far, one number for each rank sought, shape [R].

    Returns:
        int32 [R, 2^16], or [1, 2^16] for the first digit.
    """
    bits = magnitude_bits(x)  # in its shape: flattening would gather a leaf cut along a later axis
    shift = bits.dtype.type(DIGIT * (digits() - 1 - turn))
    digit = (bits >> shift) & bits.dtype.type(BINS - 1)
    if turn == 0:
        return _histogram(digit, 1)[None]
    above = bits.dtype.type(DIGIT * (digits() - turn))
    rows = []
    for v in value:
        inside = ((bits >> above) == (v >> above)).astype(jnp.int32)
        rows.append(_histogram(digit, inside))
    return jnp.stack(rows)


def _histogram(digit: Array, weight: Array | int) -> Array:
    empty = jnp.zeros(BINS, jnp.int32)
    return empty.at[digit.astype(jnp.int32)].add(weight, mode="promise_in_bounds")


def radix_refine(value: Array, rank: Array, hist: Array, turn: int) -> tuple[Array, Array]:
    """One digit more of every value sought, and the rank left inside its bin."""
    xp = numpy_of(value, rank, hist)
    kind = f"uint{DIGIT * digits()}"
    at_least = xp.cumsum(hist[:, ::-1], axis=1)[:, ::-1]
    b = xp.sum(at_least >= rank[:, None], axis=1) - 1
    at_least, hist = (xp.broadcast_to(a, (len(rank), BINS)) for a in (at_least, hist))
    here = xp.take_along_axis(at_least - hist, b[:, None], axis=1)[:, 0]
    digit = xp.asarray(b, kind) << xp.asarray(DIGIT * (digits() - 1 - turn), kind)
    return xp.asarray(value, kind) | digit, rank - here
