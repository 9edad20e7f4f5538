"""An orthonormal basis that grows: what the inputs of a layer have spanned so far.

A buffer of fixed width whose unused columns are zero, so that shapes do not depend on the rank and
projecting needs no mask (`jaxmerge.numerics.subspaces`).

Memory: d x capacity numbers a layer; ``capacity = d`` cannot overflow. Of a smaller one no
direction is given up once all columns are used: further ones, the weakest of their task first, are
left out, and what they span is unprotected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxmerge.core.types import Array
from jaxmerge.numerics.subspaces import outside


class Basis(NamedTuple):
    """Orthonormal columns.

    Attributes:
        vectors: [d, capacity]; columns from `rank` on are zero.
        rank: int32.
    """

    vectors: Array
    rank: Array


def empty(d: int, capacity: int | None = None, dtype: DTypeLike = jnp.float32) -> Basis:
    """No direction yet.

    Args:
        d: width of the inputs.
        capacity: most columns; d where None.
        dtype: of the columns.

    >>> empty(3, 2).vectors.shape
    (3, 2)
    """
    return Basis(jnp.zeros((d, min(capacity or d, d)), dtype), jnp.int32(0))


def append(basis: Basis, vectors: Array, count: Array) -> Basis:
    """The first `count` rows of ``vectors [k, d]`` become columns; what finds no room is left out.

    Args:
        basis: M, of `empty` or `grow`.
        vectors: [k, d], orthonormal rows, orthogonal to M (`fresh`).
        count: int32, at most k.

    >>> int(append(empty(3), jnp.eye(3), 2).rank)
    2
    """
    i = jnp.arange(vectors.shape[0])
    room = basis.vectors.shape[1]
    column = jnp.where(i < count, basis.rank + i, room)
    grown = basis.vectors.at[:, column].set(vectors.T.astype(basis.vectors.dtype), mode="drop")
    return Basis(grown, jnp.minimum(basis.rank + count, room).astype(jnp.int32))


def fresh(basis: Basis, vectors: Array) -> Array:
    """Rows orthonormal and orthogonal to M as far as numbers of this precision can be.

    Singular vectors of what lies outside M are so in exact arithmetic, and keep their order and
    their signs. Rounding turns those of small singular values into M: at 1e-4 of the largest one by
    1e-3 in float32.

    Args:
        basis: M, of `empty` or `grow`.
        vectors: [k, d], k at most d; rows that lie in M, whose values are not `real`, come last.

    >>> turned = jnp.array([[1e-3, 1.0]])
    >>> abs(fresh(append(empty(2), jnp.eye(2), 1), turned)).tolist()
    [[0.0, 1.0]]
    """
    q, r = jnp.linalg.qr(outside(vectors.T, basis.vectors))
    return (q * jnp.where(jnp.diagonal(r) < 0, -1, 1)).T


def real(values: Array, width: int, whole: Array) -> Array:
    """bool: which singular values are more than rounding of a matrix whose norm is `whole`.

    Formula: s > 10 eps sqrt(width) whole. Where inputs lie inside a basis, what is left of them has
    singular values up to 2 eps |X| (measured: widths 3 to 600, 5 to 30,000 rows, which do not
    matter).

    Args:
        values: of what is left of the matrix outside a basis.
        width: d, of the basis.
        whole: Frobenius norm of the matrix itself, not of what is left of it.

    >>> real(jnp.array([1.0, 1e-3, 1e-8]), 60, jnp.float32(1)).tolist()
    [True, True, False]
    """
    return values > 10 * jnp.finfo(values.dtype).eps * width**0.5 * whole


def due(threshold: float | Array, growth: float | Array, task: Array) -> Array:
    """The share of a task that a basis is to span: threshold + growth * task, within [0, 1].

    Args:
        threshold: of the first task, in [0, 1].
        growth: added after every task.
        task: int32, from 0.

    >>> round(float(due(0.97, 0.003, 2)), 3), float(due(0.97, 0.003, 11))
    (0.976, 1.0)
    """
    return jnp.clip(threshold + growth * task, 0, 1)


def grow(basis: Basis, inputs: Array, threshold: float | Array, below: bool | Array) -> Basis:
    """Add the leading directions of new inputs until they are spanned but for a small share.

    R = X - X M M', R = U S V'.  Rows v_1, v_2, .. of V' join while the share spanned before
    them, c_i = (|X|^2 - |R|^2 + s_1^2 + .. + s_{i-1}^2) / |X|^2, is below the threshold. Of what
    is only rounding (`real`) none joins.

    Args:
        basis: M, of `empty` or `grow`.
        inputs: X [n, d]; rows of zeros change nothing.
        threshold: in (0, 1].
        below: the rule of GPM's code for its first task: v_i joins while the share **with** it is
            strictly below the threshold, one vector fewer.

    Source: Saha et al., Gradient Projection Memory, ICLR 2021, eq. 5, 8, 9; sahagobinda/GPM.

    >>> x = jnp.diag(jnp.array([3.0, 1.0, 0.1]))
    >>> int(grow(empty(3), x, 0.95, False).rank), int(grow(empty(3), x, 0.95, True).rank)
    (2, 1)
    """
    x = inputs.astype(basis.vectors.dtype)
    rest = outside(x, right=basis.vectors)
    total = jnp.sum(x**2)
    _, s, v = jnp.linalg.svd(rest, full_matrices=False)
    # What is still missing, added up from the smallest: at a threshold of 1 no rounding decides.
    missing = jnp.cumsum(s[::-1] ** 2)[::-1]
    behind = jnp.concatenate([missing[1:], jnp.zeros(1, s.dtype)])
    joins = jnp.where(below, behind, missing) > (1 - threshold) * total
    joins = joins & real(s, x.shape[1], jnp.sqrt(total))
    return append(basis, fresh(basis, v), jnp.sum(joins).astype(jnp.int32))


def space(
    basis: Basis, inputs: Array, threshold: float | Array, below: bool | Array, drop: bool | Array
) -> tuple[Basis, Array]:
    """The leading directions of a task's inputs, old and new: the grown basis, and S [d, capacity].

    Energies |m' X'|^2 of the columns m of M and s_i^2 of R = X - X M M' = U S V' are sorted;
    directions are taken from the largest on until their energies reach the threshold's share of
    |X|^2. All taken ones are S, in that order; the new ones among them join M. Of what is only
    rounding (`real`) none is taken.

    Args:
        basis: M, of `empty` or `grow`.
        inputs: X [n, d]; rows of zeros change nothing.
        threshold: in (0, 1].
        below: take directions only while the share **with** them is strictly below the threshold.
        drop: the strongest new direction is in S but does not join M (a slip of TRGP's code).

    Source: Lin et al., TRGP, ICLR 2022, appendix; LYang-666/TRGP, ``update_GPM``.

    >>> x = jnp.diag(jnp.array([3.0, 1.0, 0.1]))
    >>> grown, own = space(empty(3), x, 0.95, False, False)
    >>> int(grown.rank), own.shape
    (2, (3, 3))
    """
    x = inputs.astype(basis.vectors.dtype)
    old = jnp.sum((x @ basis.vectors) ** 2, 0)
    room = old.size
    old = jnp.where(jnp.arange(room) < basis.rank, old, -1)
    _, s, v = jnp.linalg.svd(outside(x, right=basis.vectors), full_matrices=False)
    v = fresh(basis, v)
    energy = jnp.concatenate([old, s**2])
    order = jnp.argsort(-energy, stable=True)
    ranked, total = jnp.maximum(energy[order], 0), jnp.sum(x**2)
    share = jnp.cumsum(ranked) / jnp.where(total > 0, total, 1)
    before = jnp.concatenate([jnp.zeros(1, share.dtype), share[:-1]])
    taken = jnp.where(below, share < threshold, before < threshold)
    taken = taken & real(jnp.sqrt(ranked), x.shape[1], jnp.sqrt(total))
    own = jnp.concatenate([basis.vectors.T, v])[order] * taken[:, None].astype(x.dtype)
    new = jnp.sum(taken & (order >= room)) - drop
    grown = append(basis, jnp.where(drop, jnp.roll(v, -1, 0), v), jnp.maximum(new, 0))
    return grown, own[:room].T


def patches(
    images: Array,
    kernel: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """[positions, height * width * channels]: what a convolution's kernel meets, a row a position.

    Columns are in the order of a flattened kernel ``[height, width, channels, out]``; so a
    convolution is a dense layer of patches, and everything here serves it too.

    Args:
        images: [B, height, width, channels].
        kernel: height and width.
        strides: of the rows and of the columns.
        padding: "VALID", "SAME", or (before, after) of both axes.

    >>> patches(jnp.ones((2, 5, 5, 3)), (3, 3)).shape
    (18, 27)
    """
    windows = jax.lax.conv_general_dilated_patches(
        images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )  # channels first in the last axis
    channels = images.shape[-1]
    windows = windows.reshape(-1, channels, *kernel)
    return jnp.moveaxis(windows, 1, -1).reshape(windows.shape[0], -1)
