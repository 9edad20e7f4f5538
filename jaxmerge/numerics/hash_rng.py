"""Random numbers by hashing the index of an entry: cheap enough to draw one for every weight.

A mask over a whole model needs one random number for each weight and each model; jax's threefry
takes some 40 times as long for it as the merge itself on a CPU.  Here the number of entry i under
a key is a keyed integer hash of i: two rounds of the "lowbias32" finaliser (two multiplications
and three xor-shifts each) with a word of the key before each.  It draws the same numbers on every
device, leaf by leaf and sharded, and fuses into the loop that uses them.  It is no cryptographic
generator; `tests/test_rng.py` checks mean, spread, and independence of neighbours, keys and bits.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.core.keys import Piece
from jaxmerge.core.types import Array

__all__ = ["bits", "coin", "uniform"]


def bits(key: Any, shape: tuple[int, ...]) -> Array:
    """Random uint32 numbers; the same for one key, shape and entry, wherever they are drawn."""
    key, start = key if isinstance(key, Piece) else (key, jnp.uint32(0))
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    return _mix(_mix(entry_index(start, shape) ^ first) + second)


def uniform(key: Any, shape: tuple[int, ...]) -> Array:
    """Random float32 numbers in [0, 1), multiples of 2^-24."""
    return (bits(key, shape) >> jnp.uint32(8)).astype(jnp.int32).astype(jnp.float32) * 2.0**-24


def coin(key: Any, probability: Any, shape: tuple[int, ...]) -> Array:
    """True with the given probability (a number, or an array of that shape).

    >>> [bool(coin(jax.random.key(0), p, (5,)).all()) for p in (1.0, 0.0)]
    [True, False]
    """
    return uniform(key, shape) < probability


def entry_numbers(key: Any, shape: tuple[int, ...]) -> Array:
    """The number of every entry in its leaf, where the key of the cell says which piece it is of.

    >>> entry_numbers(None, (2, 3)).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    return entry_index(key.start if isinstance(key, Piece) else jnp.uint32(0), shape)


@partial(jax.jit, static_argnums=1)
def entry_index(start: Array, shape: tuple[int, ...]) -> Array:
    """The number of every entry in row-major order, modulo 2^32, without a reshape; the first is
    `start`.  `jaxmerge.drivers.files.elementwise_proof` knows this function by its name: cutting a
    leaf keeps it right."""
    index = jnp.broadcast_to(start, shape)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return index


def _mix(h: Array) -> Array:
    h = (h ^ (h >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
    h = (h ^ (h >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
    return h ^ (h >> jnp.uint32(16))
