"""Memories of examples with a fixed size: reservoirs, equal shares of classes, a ring, draws.

A buffer is a pytree ``{"rows": leaves [size, ...], "met": int32}``.  What is stored is up to the
method: stored inputs, targets, task, logits, int8 activations.  Where two examples of a batch are
given one place the later one has it, as if they had come one by one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.core.ranges import Count, unfit
from jaxmerge.core.types import Array, Tree
from jaxmerge.errors import listed

__all__ = [
    "Buffer",
    "balanced",
    "draw",
    "draw_distinct",
    "empty",
    "filled",
    "reservoir",
    "ring",
    "size_of",
    "weighted",
    "write",
]

Buffer = dict[str, Any]  # {"rows": leaves [size, ...], "met": int32}


def empty(size: int, like: Tree) -> Buffer:
    """A buffer without examples.

    Copies of the first example stand in the free places. They have weight 0 wherever they are
    drawn, yet a model reads them, and of zeros, such as a sentence without tokens, it may make NaN,
    which no weight takes away.

    Args:
        size: how many examples it has room for, 1 or more.
        like: a batch of what is stored, leaves ``[B, ...]``; of leaves that are given as their
            shapes alone the places are zeros.

    Raises:
        ValueError: a size that is no whole number from 1 on; a batch without a row.

    >>> buffer = empty(2, {"x": jnp.ones((4, 3)), "z": jax.ShapeDtypeStruct((4, 1), jnp.int32)})
    >>> buffer["rows"]["x"].tolist(), buffer["rows"]["z"].tolist()
    ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [[0], [0]])
    """

    wrong = unfit(Count, size=size)
    if any(x.ndim < 1 or not x.shape[0] for x in jax.tree.leaves(jax.eval_shape(lambda: like))):
        wrong.append("what a buffer stores comes in batches [B, ...] of one row or more")
    if wrong:
        raise ValueError(listed(wrong))

    def room(x):
        shape = (size, *x.shape[1:])
        form = isinstance(x, jax.ShapeDtypeStruct)
        return jnp.zeros(shape, x.dtype) if form else jnp.broadcast_to(jnp.asarray(x)[:1], shape)

    return {"rows": jax.tree.map(room, like), "met": jnp.int32(0)}


def size_of(buffer: Buffer) -> int:
    """How many examples it has room for.

    Args:
        buffer: of `empty`.

    >>> buffer = empty(2, jnp.zeros((1,)))
    >>> size_of(buffer)
    2
    """
    return jax.tree.leaves(buffer["rows"])[0].shape[0]


def filled(buffer: Buffer) -> Array:
    """int32, how many examples it holds.

    Args:
        buffer: of `empty`.

    >>> buffer = empty(2, jnp.zeros((1,)))
    >>> int(filled(buffer)), int(filled(ring(buffer, jnp.ones(3), jnp.ones(3))))
    (0, 2)
    """
    return jnp.minimum(buffer["met"], size_of(buffer))


def reservoir(
    buffer: Buffer, rows: Tree, weight: Array, key: Array, batchwise: bool = False
) -> Buffer:
    """Reservoir sampling: of all examples met, each is there with the same probability.

    Args:
        buffer: of `empty`.
        key: PRNG key of the draws.
        rows: leaves ``[B, ...]``.
        weight: ``[B]``; examples of weight 0 are not met.
        batchwise: every example of a batch is drawn against the number of those before the batch
            and of those that found a free place (the online papers' code); no exact reservoir.

    Source: Vitter, Random sampling with a reservoir, ACM TOMS 1985, algorithm R.

    >>> buffer = empty(2, jnp.zeros((1,)))
    >>> buffer = reservoir(buffer, jnp.arange(2.0), jnp.ones(2), jax.random.key(0))
    >>> buffer["rows"].tolist(), int(buffer["met"])
    ([0.0, 1.0], 2)
    """
    place = buffer["met"] + jnp.cumsum(weight > 0) - 1
    place = place.astype(jnp.int32)
    size = size_of(buffer)
    last = jnp.maximum(place, 0)
    if batchwise:
        last = jnp.full_like(
            place, jnp.maximum(buffer["met"], jnp.minimum(place[-1] + 1, size)) - 1
        )
    drawn = jax.random.randint(key, place.shape, 0, last + 1)
    return write(buffer, rows, jnp.where(place < size, place, drawn), weight)


def ring(buffer: Buffer, rows: Tree, weight: Array) -> Buffer:
    """The last examples met, first in, first out.

    Args:
        buffer: of `empty`.
        rows: leaves ``[B, ...]``, as what is stored.
        weight: ``[B]``; examples of weight 0 are not met.

    >>> buffer = empty(2, jnp.zeros((1,)))
    >>> ring(buffer, jnp.arange(3.0), jnp.ones(3))["rows"].tolist()
    [2.0, 1.0]
    """
    place = (buffer["met"] + jnp.cumsum(weight > 0) - 1).astype(jnp.int32)
    return write(buffer, rows, place % size_of(buffer), weight)


def weighted(weight: Array, losses: Array) -> Array:
    """Losses ``[B]`` times their weight; 0 where the weight is 0, whatever the loss is.

    Where there is no example yet, what stands in its place may have an infinite loss, for its label
    need not be among the columns that compete; 0 times that would be no number.

    Args:
        weight: ``[B]``, of `draw` and `draw_distinct`.
        losses: ``[B]``.

    >>> weighted(jnp.array([0.0, 2.0]), jnp.array([jnp.inf, 3.0])).tolist()
    [0.0, 6.0]
    """
    return jnp.where(weight > 0, weight * losses, 0)


def write(buffer: Buffer, rows: Tree, place: Array, weight: Array) -> Buffer:
    """Put examples into places; of several for one place the last one stays.

    Args:
        buffer: of `empty`.
        rows: leaves ``[B, ...]``, as what is stored.
        place: int32 ``[B]``; outside of the buffer: not stored.
        weight: ``[B]``; examples of weight 0 are not stored.

    >>> buffer = empty(2, jnp.zeros((1,)))
    >>> write(buffer, jnp.array([5.0, 6.0]), jnp.array([1, -1]), jnp.ones(2))["rows"].tolist()
    [0.0, 5.0]
    """
    size, real = size_of(buffer), weight > 0
    place = jnp.where(real & (place >= 0), place, size)
    later = jnp.arange(place.size)[:, None] < jnp.arange(place.size)
    beaten = jnp.any(later & (place[:, None] == place), axis=1)
    place = jnp.where(beaten, size, place)
    put = lambda old, new: old.at[place].set(new.astype(old.dtype), mode="drop")
    met = buffer["met"] + jnp.sum(real, dtype=jnp.int32)
    return {"rows": jax.tree.map(put, buffer["rows"], rows), "met": met}


def draw(buffer: Buffer, key: Array, count: int) -> tuple[Tree, Array]:
    """Examples drawn with replacement, and their weight: 0 while the buffer is empty.

    Args:
        buffer: of `empty`.
        key: PRNG key.
        count: how many.

    >>> buffer = empty(2, jnp.zeros((1,)))
    >>> rows, weight = draw(buffer, jax.random.key(0), 3)
    >>> rows.shape, weight.tolist()
    ((3,), [0.0, 0.0, 0.0])
    """
    filled_rows = filled(buffer)
    place = jax.random.randint(key, (count,), 0, jnp.maximum(filled_rows, 1))
    rows = jax.tree.map(lambda x: x[place], buffer["rows"])
    return rows, jnp.broadcast_to((filled_rows > 0).astype(jnp.float32), (count,))


def draw_distinct(buffer: Buffer, key: Array, count: int) -> tuple[Tree, Array]:
    """Examples drawn without replacement, and their weight: 0 where there are too few.

    Args:
        buffer: of `empty`.
        key: PRNG key.
        count: how many; of more than it has room for, as many as it has.

    >>> buffer = empty(2, jnp.zeros((1,)))
    >>> buffer = ring(buffer, jnp.ones(1), jnp.ones(1))
    >>> draw_distinct(buffer, jax.random.key(0), 2)[1].tolist()
    [1.0, 0.0]
    """
    place, there = distinct_places(buffer, key, count)
    return jax.tree.map(lambda x: x[place], buffer["rows"]), there.astype(jnp.float32)


def distinct_places(buffer: Buffer, key: Array, count: int) -> tuple[Array, Array]:
    """Places drawn without replacement, and whether an example is there; those without come last.

    Args:
        buffer: of `empty`.
        key: PRNG key.
        count: how many.

    >>> buffer = ring(empty(2, jnp.zeros((1,))), jnp.ones(1), jnp.ones(1))
    >>> [x.tolist() for x in distinct_places(buffer, jax.random.key(0), 2)]
    [[0, 1], [True, False]]
    """
    size, filled_rows = size_of(buffer), filled(buffer)
    rank = jnp.where(jnp.arange(size) < filled_rows, jax.random.uniform(key, (size,)), 2.0)
    place = jnp.argsort(rank)[:count]
    return place, place < filled_rows


def balanced(
    buffer: Buffer, rows: Tree, weight: Array, key: Array, labels: Array, stored: Array,
    classes: int, released: bool = False,
) -> Buffer:  # fmt: skip
    """Reservoir sampling with equal shares of classes, example by example.

    While there is room an example takes the next place.  In a full buffer it is stored if its
    reservoir draw r is a place, or if its class has fewer than the median of the classes present.
    It takes the ``r mod c``-th place of the largest class, which has c.

    Args:
        buffer: of `empty`.
        key: PRNG key of the draws.
        rows, weight: as in `reservoir`.
        labels: int ``[B]``, of the batch.
        stored: int ``[size]``, the labels of the rows in the buffer.
        classes: how many there are.
        released: count as mammoth's code does: an unused place counts as a row of class 0, so that
            class 0 has `size` too few and is hardly ever replaced.

    Differs:
        The released counts were reconstructed from all 80 decisions of a run of it, not read.

    >>> buffer = empty(2, jnp.zeros((1,)))
    >>> labels, key = jnp.array([0, 1, 1]), jax.random.key(0)
    >>> rows, stored = labels.astype(float), jnp.zeros(2, int)
    >>> buffer = balanced(buffer, rows, jnp.ones(3), key, labels, stored, classes=2)
    >>> sorted(buffer["rows"].tolist())
    [0.0, 1.0]
    """
    size, real = size_of(buffer), weight > 0
    number = (buffer["met"] + jnp.cumsum(real) - 1).astype(jnp.int32)
    drawn = jax.random.randint(key, number.shape, 0, jnp.maximum(number, 0) + 1)
    used = jnp.arange(size) < buffer["met"]
    stored = jnp.where(used, stored, 0)
    counts = jnp.zeros(classes, jnp.int32).at[stored].add(used.astype(jnp.int32))
    if released:
        counts = counts.at[0].add(-filled(buffer))

    def one(carry, x):
        counts, stored, met = carry
        label, r, ok = x
        full = met >= size
        largest = jnp.argmax(counts)
        which = jnp.where(counts[largest] > 0, r % jnp.maximum(counts[largest], 1), 0)
        order = jnp.cumsum(stored == largest) - 1
        place = jnp.where(full, jnp.argmax((stored == largest) & (order == which)), met)
        take = ok & (~full | (r < size) | (counts[label] < _median_of_positive(counts)))
        out = jnp.where(full | released, stored[place], classes)  # from an unused place: no class
        counts = counts.at[label].add(take).at[out].add(-take.astype(jnp.int32), mode="drop")
        place = jnp.where(take, place, size).astype(jnp.int32)
        return (counts, stored.at[place].set(label, mode="drop"), met + ok), place

    start = counts, stored, buffer["met"]
    _, places = jax.lax.scan(one, start, (labels.astype(stored.dtype), drawn, real))
    return write(buffer, rows, places, weight)


def _median_of_positive(counts: Array) -> Array:
    """The median of the counts above 0; -inf where there is none."""
    ordered = jnp.sort(jnp.where(counts > 0, counts, jnp.iinfo(counts.dtype).max))
    n = jnp.sum(counts > 0)
    at = lambda i: ordered[jnp.clip(i, 0, len(ordered) - 1)].astype(jnp.float32)
    return jnp.where(n > 0, (at((n - 1) // 2) + at(n // 2)) / 2, -jnp.inf)
