"""Order statistics without sorting, in compiled code: the exact k-th largest magnitude.

Magnitudes become unsigned integers of the same order (`magnitude_bits`), and the k-th largest
integer is found digit by digit, by a histogram for each digit.  On a CPU a digit has 16 bits: two
passes for float32, four for float64, and entries are scattered into 2^16 bins.  An accelerator
reads its memory in no time and is slow at scattering: there a digit has 4 bits, and its 16 bins are
16 sums of one pass.  Counts add up, so leaves, files and devices may be visited in any order.
`jaxmerge.numerics.host_order_statistics` does the same for arrays that lie on the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.types import Array, numpy_of
from jaxmerge.numerics.hash_rng import entry_numbers

WIDTHS = {"cpu": 16}  # bits of a digit, by backend
ACCELERATOR = 4  # elsewhere
PLACE = 32  # bits of the number of an entry in its leaf


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


def word() -> int:
    """How many bits a magnitude has."""
    return 64 if double() else 32


def width() -> int:
    """How many bits a digit has here."""
    return WIDTHS.get(jax.default_backend(), ACCELERATOR)


def digits() -> int:
    """How many passes find a magnitude."""
    return word() // width()


def places() -> int:
    """How many passes find the place of an entry in its leaf."""
    return PLACE // width()


def double() -> bool:
    """Whether this thread computes in float64 (x64 enabled)."""
    return jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]


def radix_count(x: Array, value: Array, turn: Any) -> Array:
    """Histograms of digit `turn` among the entries that share the digits found so far.

    Args:
        value: digits found so far, one number for each rank sought, shape [R].
        turn: 0 for the first digit, which must be a number; an array also, for later ones.

    Returns:
        int32 [R, bins], or [1, bins] for the first digit.
    """
    bits = magnitude_bits(x)  # in its shape: flattening would gather a leaf cut along a later axis
    shift = jnp.asarray(width() * (digits() - 1 - turn), bits.dtype)
    digit = (bits >> shift) & bits.dtype.type((1 << width()) - 1)
    if isinstance(turn, int) and turn == 0:
        return leaf_histogram(digit, 1, 1 << width())[None]
    above = shift + bits.dtype.type(width())
    prefix, sought = bits >> above, value >> above
    return _histograms(digit, [prefix == v for v in sought], sought[:, None] == sought[None])


def up_to(x: Array, value: Array, place: Array | None = None, key: Any = None) -> Array:
    """The entries that rank no lower than the one of magnitude `value` at `place`.

    Larger magnitudes rank first; equal ones in the order of the leaf, or alike without a place.

    Args:
        value: as `magnitude_bits`, a scalar.
        place: the number of the entry in the leaf, a uint32 scalar.
        key: ``ctx.key`` of the cell, which knows where a piece of a leaf begins.
    """
    bits = magnitude_bits(x)
    if place is None:
        return bits >= value
    behind = entry_numbers(key, x.shape) > place  # where only larger ones rank high enough
    most = bits.dtype.type(jnp.iinfo(bits.dtype).max - 1)  # above all entries; two more would be 0
    return bits >= jnp.minimum(value, most) + behind.astype(bits.dtype)


def place_count(x: Array, value: Array, place: Array, turn: Any) -> Array:
    """Histograms of digit `turn` of the places of entries of these magnitudes, [R, bins]."""
    bits, number = magnitude_bits(x), entry_numbers(None, x.shape)
    shift = jnp.asarray(width() * (places() - 1 - turn), number.dtype)
    digit = (number >> shift) & number.dtype.type((1 << width()) - 1)
    # of the digits above, of which there are none in turn 0: two shifts, since none by all bits
    above = lambda n: (n >> shift) >> number.dtype.type(width())
    prefix, sought = above(number), above(place)
    inside = [(bits == v) & (prefix == p) for v, p in zip(value, sought, strict=True)]
    alike = (value[:, None] == value[None]) & (sought[:, None] == sought[None])
    return _histograms(digit, inside, alike)


def _histograms(digit: Array, inside: Sequence[Array], alike: Array) -> Array:
    """Histograms of a digit among the entries of each of R masks, [R, bins].

    Scattering is what takes the time, so entries are scattered once, those of every mask into bins
    of their own; what is in none adds 0 to one of a few bins, which stay in the cache.

    Args:
        inside: the masks; any two are equal or have no entry in common.
        alike: which of them are equal, [R, R]; those share the bins of the first.
    """
    bins = 1 << width()
    if width() == ACCELERATOR:
        return jnp.stack([leaf_histogram(digit, m.astype(jnp.int32), bins) for m in inside])
    digit = digit.astype(jnp.int32)
    place, weight = digit & 63, jnp.zeros_like(digit)
    for r, mask in reversed(list(enumerate(inside))):
        place, weight = jnp.where(mask, digit + r * bins, place), jnp.where(mask, 1, weight)
    hist = leaf_histogram(place, weight, len(inside) * bins).reshape(len(inside), bins)
    return hist[jnp.argmax(alike, axis=1)]


def place_refine(place: Array, rank: Array, hist: Array, turn: int) -> tuple[Array, Array]:
    """One digit more of every place sought (rank 1 = the first), and the rank left in its bin."""
    xp = numpy_of(place, rank, hist)
    upto = xp.cumsum(hist, axis=1)
    b = xp.minimum(xp.sum(upto < rank[:, None], axis=1), hist.shape[1] - 1)
    before = xp.take_along_axis(upto - hist, b[:, None], axis=1)[:, 0]
    digit = xp.asarray(b, np.uint32) << xp.asarray(width() * (places() - 1 - turn), np.uint32)
    return xp.asarray(place, np.uint32) | digit, rank - before


@functools.partial(jax.jit, static_argnums=2)
def leaf_histogram(digit: Array, weight: Array | int, bins: int) -> Array:
    """How often every number below `bins` occurs in a leaf, weighted; it adds up over the pieces
    of a leaf that is cut, as `jaxmerge.core.types.leaf_sum` does."""
    if bins <= 1 << ACCELERATOR:
        return jnp.stack([jnp.sum(jnp.where(digit == b, weight, 0)) for b in range(bins)])
    empty = jnp.zeros(bins, jnp.int32)
    return empty.at[digit.astype(jnp.int32)].add(weight, mode="promise_in_bounds")


def radix_refine(value: Array, rank: Array, hist: Array, turn: int) -> tuple[Array, Array]:
    """One digit more of every value sought, and the rank left inside its bin."""
    xp = numpy_of(value, rank, hist)
    kind = f"uint{word()}"
    at_least = xp.cumsum(hist[:, ::-1], axis=1)[:, ::-1]
    b = xp.sum(at_least >= rank[:, None], axis=1) - 1
    at_least, hist = (xp.broadcast_to(a, (len(rank), hist.shape[1])) for a in (at_least, hist))
    here = xp.take_along_axis(at_least - hist, b[:, None], axis=1)[:, 0]
    digit = xp.asarray(b, kind) << xp.asarray(width() * (digits() - 1 - turn), kind)
    return xp.asarray(value, kind) | digit, rank - here


def other_digits(x: Array, value: Array, rank: Array) -> tuple[Array, Array]:
    """The values of which the first digit is found, in compiled code, and the ranks left among
    entries equal to them; arrays [R]."""

    def step(turn, found):
        value, rank = found
        return radix_refine(value, rank, radix_count(x, value, turn), turn)

    return _turns(1, digits(), step, (jnp.asarray(value), jnp.asarray(rank)))


def places_among_equals(x: Array, value: Array, rank: Array) -> Array:
    """The places of the entries that have these ranks among those equal to the values; [R]."""

    def step(turn, found):
        place, left = found
        return place_refine(place, left, place_count(x, value, place, turn), turn)

    return _turns(0, places(), step, (jnp.zeros(rank.shape, jnp.uint32), jnp.asarray(rank)))[0]


def _turns(first: int, last: int, step: Callable[[Any, Any], Any], start: Any) -> Any:
    """``step(turn, found)`` for every turn; many as a loop, or compiling one pass fifteen times
    would take longer than to run them."""
    if last - first > 2:
        return jax.lax.fori_loop(first, last, step, start)
    for turn in range(first, last):
        start = step(turn, start)
    return start
