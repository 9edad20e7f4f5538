"""Published methods of arcs and angles: SLERP and its relatives, the Karcher mean.

With ``base=None`` they act on the weights themselves, with a base on the task vectors.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.core.hyperparameters import check_range, model_count, per_model
from jaxmerge.core.ranges import Number, Numbers
from jaxmerge.core.registry import register
from jaxmerge.core.types import Merge, collected, zeros
from jaxmerge.folds import vectors
from jaxmerge.folds.elementwise import check_total, linear
from jaxmerge.folds.geometric import Per, arc

__all__ = ["interpolation", "karcher", "multislerp", "nuslerp", "slerp"]


@register
def interpolation(t: Number = 0.5) -> Merge:
    """Linear interpolation between two models (extrapolation outside [0, 1]).

    Formula: (1-t) theta_1 + t theta_2, whatever the base.

    Args:
        t: 0 gives the first model, 1 the second; any number.

    Memory: 1 x the model.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models (WiSE-FT), CVPR 2022.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> jm.merge(jm.interpolation(0.25), None, [{"w": np.zeros(1)}, {"w": np.ones(1)}])["w"]
        array([0.25])
    """
    check_range("t", t, -float("inf"), one=True)
    return linear([1 - t, t])


@register
def slerp(t: Number = 0.5) -> Merge:
    """Spherical linear interpolation of two models, leaf by leaf.

    Formula: (sin((1-t) w) a + sin(t w) b) / sin w, cos w = <a, b> / |a||b|; linear where
    |cos w| > 0.9995.

    Args:
        t: 0 gives the first model, 1 the second.  For another t on every layer route by name:
            ``jm.by_leaf(lambda name, like: jm.slerp(t_of(name)))``.

    Memory: 2 x the model, one leaf at a time.

    Source: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; the threshold is
    that of the common implementations for model merging.

    Differs: the angle comes from half chords instead of arccos, which keeps its digits at small
    angles; a zero vector has no direction and is interpolated linearly.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = {"w": np.array([2.0, 0.0])}, {"w": np.array([0.0, 2.0])}
        >>> jm.merge(jm.slerp(), None, [one, two])["w"].round(3)
        array([1.414, 1.414])
    """
    return arc(t, colinear=0.9995)


@register
def nuslerp(weights: Numbers = (0.5, 0.5), per: Per = "leaf") -> Merge:
    """SLERP with weights instead of t, of whole leaves or of their rows or columns.

    Formula: SLERP at t = w_2 / (w_1 + w_2), linear only where the arc is undetermined.

    Args:
        weights: two numbers whose sum is not zero.
        per: "leaf", "row" (``x[i]``) or "column" (``x[..., j]``): what one vector is.

    Memory: 2 x the model, one leaf at a time.

    Source: mergekit's documentation of ``nuslerp``.  Differs: weights whose sum is zero are an
    error instead of t = 0.5.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = {"w": np.array([[2.0, 0.0]])}, {"w": np.array([[0.0, 2.0]])}
        >>> jm.merge(jm.nuslerp((1.0, 3.0), per="row"), None, [one, two])["w"].round(3)
        array([[0.765, 1.848]])
    """
    two: Any = weights
    if not hasattr(two, "__len__") or len(two) != 2:
        raise ValueError(f"nuslerp() takes two weights, got {weights!r}.")
    return arc(_second_share(*two), per)


def _second_share(first: Any, second: Any) -> Any:
    total = first + second
    if isinstance(total, float | int) and total == 0:
        raise ValueError(f"The weights of nuslerp() sum to zero: ({first}, {second}).")
    return second / total


@register
def multislerp(weights: Numbers = 1.0, normalize: bool = True, per: Per = "leaf") -> Merge:
    """SLERP of many models: the weighted mean direction with the weighted mean length.

    Formula: (sum_t w_t |x_t|) n / |n|, n = sum_t w_t x_t / |x_t|.

    Args:
        weights: one number for each model, or one for all.
        normalize: divide the weights by their sum.
        per: what one vector is, see `nuslerp`.

    Memory: 1 x the model.

    Source: mergekit's ``multislerp`` (barycentric interpolation on the sphere).  Differs: its
    correction in the tangent space at the mean direction is identically zero, and left out.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = {"w": np.array([4.0, 0.0])}, {"w": np.array([0.0, 2.0])}
        >>> jm.merge(jm.multislerp(), None, [one, two])["w"].round(3)
        array([2.121, 2.121])
    """
    if normalize:
        check_total(weights)

    def init(leaf):
        total = zeros(leaf)
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
def karcher(max_iter: int = 10, tol: float = 1e-5, per: Per = "leaf") -> Merge:
    """The Karcher (Riemannian) mean of the leaves' directions on the sphere, with the mean length.

    Formula: from the normalised mean of the directions u_t, repeat  d = mean_t log_u(u_t),
    u <- cos|d| u + sin|d| d/|d|,  log_u(v) = w (v - cos w u) / sin w,  w the angle of u and v;
    stop moving when |d| <= `tol`.  All models count alike, zero vectors neither for direction nor
    for length.

    Args:
        max_iter: how many steps, at least 1.
        tol: in radians.
        per: what one vector is, see `nuslerp`.

    Memory: T x the model, one leaf at a time.

    Source: mergekit's ``karcher``; Karcher, Riemannian center of mass and mollifier smoothing,
    1977.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": x} for x in np.eye(3)]
        >>> jm.merge(jm.karcher(), None, models)["w"].round(3)
        array([0.577, 0.577, 0.577])
    """
    check_range("tol", tol, 0, one=True)
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
