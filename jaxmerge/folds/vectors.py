"""A leaf as one vector, or as many: lengths, directions, angles.

``per="leaf"`` takes the whole leaf for one vector, ``per="row"`` every ``x[i]``, ``per="column"``
every ``x[..., j]``; transposing a leaf swaps the two.  A kernel [in, out] has one output unit a
column, torch's [out, in] one a row.  Leaves with fewer than two axes are one vector always.

A zero vector has length 0, direction 0 and cosine 0 with every other; slopes stay finite there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from jaxmerge.core.types import Array, leaf_sum


def angle(cos: Array) -> Array:
    """arccos, with a finite slope at the ends."""
    return 2 * jnp.arctan2(root(1 - cos), root(1 + cos))


def root(square: Array) -> Array:
    """The square root, 0 with slope 0 where there is nothing positive."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def split(rows: Array, per: str) -> tuple[Array, Callable[[Array], Array]]:
    """Rows [T, *leaf] as vectors [V, T, E], and the way back from [V, E] to the leaf."""
    shape = rows.shape[1:]
    if per == "leaf" or len(shape) < 2:
        return rows.reshape(1, len(rows), -1), lambda x: x.reshape(shape)
    if per == "column":
        turned, back = split(jnp.moveaxis(rows, -1, 1), "row")
        return turned, lambda x: jnp.moveaxis(back(x), 0, -1)
    flat = rows.reshape(len(rows), shape[0], -1)
    return jnp.moveaxis(flat, 0, 1), lambda x: x.reshape(shape)


def dots(rows: Sequence[Array]) -> Array:
    """Inner products [1, T, T] of all pairs of rows, each a whole leaf."""
    at = {(i, j): leaf_sum(rows[i] * rows[j]) for i in range(len(rows)) for j in range(i + 1)}
    pairs = [[at[max(i, j), min(i, j)] for j in range(len(rows))] for i in range(len(rows))]
    return jnp.stack([jnp.stack(row) for row in pairs])[None]


def cosines(vectors: Array) -> tuple[Array, Array]:
    """Of vectors [V, T, E] the lengths [V, T] and the cosines of all pairs [V, T, T]."""
    return from_dots(vectors @ vectors.mT)


def from_dots(dots: Array) -> tuple[Array, Array]:
    """Lengths and cosines from the inner products of all pairs, [V, T, T]."""
    lengths = root(jnp.diagonal(dots, axis1=1, axis2=2))
    both = lengths[:, :, None] * lengths[:, None, :]
    return lengths, jnp.where(both > 0, dots / jnp.where(both > 0, both, 1), 0)


def square(c: Array, cosines: Array) -> Array:
    """The squared length of sum_t c_t u_t, [V, 1]."""
    return jnp.einsum("vt,vts,vs->v", c, cosines, c)[:, None]


def axes(x: Array, per: str) -> tuple[int, ...]:
    """The axes over which one vector of the leaf runs."""
    every = tuple(range(x.ndim))
    if per == "leaf" or x.ndim < 2:
        return every
    return every[1:] if per == "row" else every[:-1]


def dot(a: Array, b: Array, per: str) -> Array:
    """Inner products, in a shape that broadcasts against the leaf; of whole leaves a scalar."""
    over = axes(a, per)
    return leaf_sum(a * b) if len(over) == a.ndim else jnp.sum(a * b, over, keepdims=True)


def scalars(leaf: Array, per: str, dtype: Any) -> Array:
    """Zeros in the shape of `dot`."""
    over = axes(leaf, per)
    partial = len(over) < leaf.ndim
    shape = tuple(1 if i in over else n for i, n in enumerate(leaf.shape)) if partial else ()
    return jnp.zeros(shape, dtype)


def length(x: Array, per: str) -> Array:
    """Euclidean lengths, in a shape that broadcasts against the leaf."""
    return root(dot(x, x, per))


def unit(x: Array, per: str) -> tuple[Array, Array]:
    """Direction and length; a zero vector has direction zero."""
    size = length(x, per)
    return x / jnp.where(size > 0, size, 1), size
