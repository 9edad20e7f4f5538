"""Folds that treat task vectors as directions with lengths: arcs, mean directions, Model Stock.

What one vector is, the whole leaf or each of its rows or columns, says ``per``; see
`jaxmerge.folds.vectors`.

With ``base=None`` the task vectors are the weights themselves, which is how SLERP is mostly used.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.core.registry import register
from jaxmerge.core.types import (
    Array,
    Measure,
    Merge,
    check_choice,
    check_range,
    collected,
    model_count,
    per_model,
    stacked,
)
from jaxmerge.core.types import zeros as zeros_like
from jaxmerge.folds import vectors
from jaxmerge.folds.elementwise import check_total
from jaxmerge.numerics.measures import square_norm

__all__ = ["arc", "karcher_mean", "mean_direction", "toward_mean"]

Per = Literal["leaf", "row", "column"]


@register
def arc(t: Any, per: Per = "leaf", colinear: float = 1.0) -> Merge:
    """The point at `t` on the arc between two vectors, their lengths turning into each other.

    Formula: (sin((1-t) w) a + sin(t w) b) / sin w, w the angle between a and b; the chord
    (1-t) a + t b where the arc is not determined: |cos w| > `colinear`, or a vector is zero.

    Args:
        t: 0 gives the first vector, 1 the second; within [0, 1] for points between them.
        per: what one vector is, see `jaxmerge.folds.vectors`.
        colinear: in (0, 1].

    Memory: 2 x the model.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = {"w": np.array([2.0, 0.0])}, {"w": np.array([0.0, 2.0])}
        >>> jm.merge(jm.arc(0.5), None, [one, two])["w"].round(3)
        array([1.414, 1.414])
    """
    _check_per(per)
    check_range("t", t, -float("inf"), one=True)
    check_range("colinear", colinear, 0, 1, open_low=True, one=True)

    def reduce(rows, ctx):
        a, b = rows
        (ua, la), (ub, lb) = vectors.unit(a, per), vectors.unit(b, per)
        cos = vectors.dot(ua, ub, per)
        # by half chords: exact for small angles too, where arccos loses half its digits
        angle = 2 * jnp.arctan2(vectors.length(ua - ub, per), vectors.length(ua + ub, per))
        sin = jnp.sin(angle)
        eps = jnp.finfo(a.dtype).eps
        straight = (jnp.abs(cos) > colinear) | (sin < 16 * eps) | (la == 0) | (lb == 0)
        sin = jnp.where(straight, 1, sin)
        first = jnp.where(straight, 1 - t, jnp.sin((1 - t) * angle) / sin)
        second = jnp.where(straight, t, jnp.sin(t * angle) / sin)
        return (first * a + second * b).astype(a.dtype)

    return collected(reduce, models=(2, 2))


@register
def mean_direction(weights: Any = 1.0, normalize: bool = True, per: Per = "leaf") -> Merge:
    """The weighted mean direction with the weighted mean length.

    Formula: (sum_t w_t |x_t|) n / |n|, n = sum_t w_t x_t / |x_t|.

    Args:
        weights: one number for each model, or one for all.
        normalize: divide the weights by their sum.
        per: what one vector is, see `jaxmerge.folds.vectors`.

    Memory: 1 x the model.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = {"w": np.array([4.0, 0.0])}, {"w": np.array([0.0, 2.0])}
        >>> jm.merge(jm.mean_direction(), None, [one, two])["w"].round(3)
        array([2.121, 2.121])
    """
    _check_per(per)
    if normalize:
        check_total(weights)

    def init(leaf):
        total = zeros_like(leaf)
        return total, vectors.scalars(leaf, per, total.dtype), jnp.zeros((), total.dtype)

    def update(cell, x, ctx):
        unit, length = vectors.unit(x, per)
        w = jnp.asarray(per_model(weights, ctx), x.dtype)
        return cell[0] + w * unit, cell[1] + w * length, cell[2] + w

    def finalize(cell, ctx):
        direction, _ = vectors.unit(cell[0], per)
        return direction * (cell[1] / cell[2] if normalize else cell[1])

    return Merge(
        init, update, finalize, lambda a, b: jax.tree.map(jnp.add, a, b),
        models=(1, model_count(weights)),
    )  # fmt: skip


@register
def karcher_mean(max_iter: int = 10, tol: float = 1e-5, per: Per = "leaf") -> Merge:
    """The mean on the sphere (Karcher mean) of the directions, with the mean length.

    Formula: from the normalised mean of the directions u_t, repeat  d = mean_t log_u(u_t),
    u <- cos|d| u + sin|d| d/|d|,  log_u(v) = w (v - cos w u) / sin w,  w the angle of u and v;
    stop moving when |d| <= `tol`.  Zero vectors count neither for direction nor for length.

    Args:
        max_iter: how many steps, at least 1.
        tol: in radians.
        per: what one vector is, see `jaxmerge.folds.vectors`.

    Memory: T x the model.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": x} for x in np.eye(3)]
        >>> jm.merge(jm.karcher_mean(), None, models)["w"].round(3)
        array([0.577, 0.577, 0.577])
    """
    check_range("tol", tol, 0, one=True)
    _check_per(per)
    if not (isinstance(max_iter, int) and max_iter >= 1):
        raise ValueError(f"max_iter must be a positive integer, got {max_iter!r}.")

    def reduce(rows, ctx):
        # every step stays in the span of the models: coefficients of the directions, and their
        # cosines, are all that moves; the leaves are read twice
        dtype, whole = rows[0].dtype, len(vectors.axes(rows[0], per)) == rows[0].ndim
        if whole:
            lengths, cosines = vectors.from_dots(vectors.dots(rows))
        else:
            flat, back = vectors.split(jnp.stack(rows), per)
            lengths, cosines = vectors.cosines(flat)
        known = (lengths > 0).astype(dtype)
        share = known / jnp.maximum(jnp.sum(known, 1, keepdims=True), 1)

        def step(_, c):
            cos = jnp.einsum("vts,vs->vt", cosines, c)
            angle = vectors.angle(cos)
            sin = jnp.sin(angle)
            near = sin < jnp.finfo(dtype).eps
            pull = share * jnp.where(near, 1, angle / jnp.where(near, 1, sin))
            d = pull - jnp.sum(pull * cos, 1, keepdims=True) * c
            size = vectors.root(vectors.square(d, cosines))
            stretch = jnp.where(size > 0, jnp.sin(size) / jnp.where(size > 0, size, 1), 1)
            return jnp.where(size > tol, unit(jnp.cos(size) * c + stretch * d), c)

        def unit(c):
            size = vectors.root(vectors.square(c, cosines))
            return c / jnp.where(size > 0, size, 1)

        c = jax.lax.fori_loop(0, max_iter, step, unit(share))
        c = c * jnp.sum(share * lengths, 1, keepdims=True) / jnp.where(known > 0, lengths, 1)
        if whole:
            return functools.reduce(jnp.add, [c[0, t] * x for t, x in enumerate(rows)])
        return back(jnp.einsum("vt,vte->ve", c, flat))

    return collected(reduce)


class Directions(NamedTuple):
    """What Model Stock remembers of one leaf.

    Attributes:
        total: the sum of the task vectors.
        units: the sum of their directions.
        known: how many of them had a direction (were not zero), for every vector of the leaf.
    """

    total: Array
    units: Array
    known: Array


@register
def toward_mean(
    average: Literal["cosine", "angle"] = "cosine",
    per: Literal["leaf", "row", "column", "model"] = "leaf",
) -> Merge:
    """The mean of the task vectors, shortened as far as they disagree (Model Stock).

    Formula: t mean_i(tau_i), t = T c / (1 + (T-1) c), c the mean cosine of all pairs of models, or
    the cosine of their mean angle.  A zero task vector has cosine 0 with every other.

    Args:
        average: "cosine" or "angle", what is averaged over pairs.
        per: "model" takes one cosine for the whole model, "leaf", "row" and "column" one for every
            vector of a leaf, see `jaxmerge.folds.vectors`.

    Memory: 2 x the model; T x for ``average="angle"``, which needs every pair.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> base, apart = {"w": np.zeros(2)}, [{"w": x} for x in np.eye(2)]
        >>> jm.merge(jm.toward_mean(), base, apart)["w"]
        array([0., 0.])
    """
    check_choice("average", average, ("cosine", "angle"))
    check_choice("per", per, ("leaf", "row", "column", "model"))
    whole = per == "model"

    if average == "angle":

        def dots(cell, summary, turn):
            flat = jnp.stack([x.ravel() for x in cell])
            return flat @ flat.T

        def reduce(rows, ctx):
            flat, back = vectors.split(rows, "leaf" if whole else per)
            if whole:
                _, pairs = vectors.from_dots(ctx.measured[None])
            else:
                _, pairs = vectors.cosines(flat)
            i, j = jnp.triu_indices(len(rows), 1)
            angle = jnp.mean(vectors.angle(pairs[:, i, j]), 1, keepdims=True)
            share = _stock_share(len(rows), jnp.cos(angle)).astype(rows.dtype)
            return back(share * jnp.mean(flat, 1))

        closing = Measure(init=lambda: None, observe=dots, by_entry=True) if whole else None
        return stacked(reduce, models=(2, None), closing=closing)

    def init(leaf):
        total = zeros_like(leaf)
        known = jnp.zeros(()) if whole else vectors.scalars(leaf, per, total.dtype)
        return Directions(total, total, known)

    def update(cell, x, ctx):
        if whole:
            length = vectors.root(ctx.measured).astype(x.dtype)
            unit = x / jnp.where(length > 0, length, 1)
        else:
            unit, length = vectors.unit(x, per)
        return Directions(cell.total + x, cell.units + unit, cell.known + (length > 0))

    def finalize(cell, ctx):
        square = ctx.measured if whole else vectors.dot(cell.units, cell.units, per)
        count = ctx.step.astype(cell.total.dtype)
        cos = (square - cell.known) / (count * (count - 1))
        return _stock_share(count, cos).astype(count.dtype) * cell.total / count

    return Merge(
        init, update, finalize, lambda a, b: jax.tree.map(jnp.add, a, b),
        measure=square_norm() if whole else None,
        closing=_units_norm() if whole else None,
        models=(2, None),
    )  # fmt: skip


def _units_norm() -> Measure:
    """The squared norm of the sum of the whole rows' directions."""
    return Measure(
        init=lambda: None,
        observe=lambda cell, s, turn: jnp.vdot(cell.units, cell.units),
        by_entry=True,
    )


def _stock_share(count: Any, cos: Array) -> Array:
    below = 1 + (count - 1) * cos
    return jnp.where(below > 0, count * cos / jnp.where(below > 0, below, 1), 0)


def _check_per(per: str) -> None:
    check_choice("per", per, ("leaf", "row", "column"))
