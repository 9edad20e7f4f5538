"""Memories of examples with a fixed size: reservoir sampling, a ring, draws from them.

A buffer is a pytree ``{"rows": leaves [size, ...], "met": int32}``.  What is stored is up to the
method: stored inputs, targets, task, logits, int8 activations.  Where two examples of a batch are
given one place the later one has it, as if they had come one by one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array


def empty(size: int, like: Any) -> dict[str, Any]:
    """A buffer without examples.

    Args:
        like: a batch of what is stored, leaves ``[B, ...]``; arrays or their shapes.
    """
    room = lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype)
    return {"rows": jax.tree.map(room, like), "met": jnp.int32(0)}


def size_of(buffer: dict[str, Any]) -> int:
    """How many examples it has room for."""
    return jax.tree.leaves(buffer["rows"])[0].shape[0]


def filled(buffer: dict[str, Any]) -> Array:
    """int32, how many examples it holds."""
    return jnp.minimum(buffer["met"], size_of(buffer))


def reservoir(buffer: dict[str, Any], rows: Any, weight: Array, key: Array) -> dict[str, Any]:
    """Reservoir sampling: of all examples met, each is there with the same probability.

    Args:
        rows: leaves ``[B, ...]``.
        weight: ``[B]``; examples of weight 0 are not met.

    Source: Vitter, Random sampling with a reservoir, ACM TOMS 1985, algorithm R.
    """
    place = buffer["met"] + jnp.cumsum(weight > 0) - 1
    place = place.astype(jnp.int32)
    size = size_of(buffer)
    drawn = jax.random.randint(key, place.shape, 0, jnp.maximum(place, 0) + 1)
    return write(buffer, rows, jnp.where(place < size, place, drawn), weight)


def ring(buffer: dict[str, Any], rows: Any, weight: Array) -> dict[str, Any]:
    """The last examples met, first in, first out."""
    place = (buffer["met"] + jnp.cumsum(weight > 0) - 1).astype(jnp.int32)
    return write(buffer, rows, place % size_of(buffer), weight)


def write(buffer: dict[str, Any], rows: Any, place: Array, weight: Array) -> dict[str, Any]:
    """Put examples into places; of several for one place the last one stays.

    Args:
        place: int32 ``[B]``; outside of the buffer: not stored.
        weight: ``[B]``; examples of weight 0 are not stored.
    """
    size, real = size_of(buffer), weight > 0
    place = jnp.where(real & (place >= 0), place, size)
    later = jnp.arange(place.size)[:, None] < jnp.arange(place.size)
    beaten = jnp.any(later & (place[:, None] == place), axis=1)
    place = jnp.where(beaten, size, place)
    put = lambda old, new: old.at[place].set(new.astype(old.dtype), mode="drop")
    met = buffer["met"] + jnp.sum(real, dtype=jnp.int32)
    return {"rows": jax.tree.map(put, buffer["rows"], rows), "met": met}


def draw(buffer: dict[str, Any], key: Array, count: int) -> tuple[Any, Array]:
    """Examples drawn with replacement, and their weight: 0 while the buffer is empty."""
    held = filled(buffer)
    place = jax.random.randint(key, (count,), 0, jnp.maximum(held, 1))
    rows = jax.tree.map(lambda x: x[place], buffer["rows"])
    return rows, jnp.broadcast_to((held > 0).astype(jnp.float32), (count,))


def draw_distinct(buffer: dict[str, Any], key: Array, count: int) -> tuple[Any, Array]:
    """Examples drawn without replacement, and their weight: 0 where there are too few."""
    size, held = size_of(buffer), filled(buffer)
    rank = jnp.where(jnp.arange(size) < held, jax.random.uniform(key, (size,)), 2.0)
    place = jnp.argsort(rank)[:count]
    rows = jax.tree.map(lambda x: x[place], buffer["rows"])
    return rows, (place < held).astype(jnp.float32)
