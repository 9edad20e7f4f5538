"""Folds weighted by what a model's data say: the Fisher information, the input Gram matrices.

Both read side information about each model (``extras``), made by `jaxmerge.statistics`.  Written
for task vectors they give the textbook result, since both are affine in the weights.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.registry import register
from jaxmerge.core.types import (
    Merge,
    beside,
    check_choice,
    check_range,
    model_count,
    per_model,
    zeros,
)
from jaxmerge.folds.elementwise import check_total

__all__ = ["fisher_mean", "gram_mean", "overlap_mean"]


@register
def fisher_mean(weights: Any = 1.0, floor: float = 1e-10) -> Merge:
    """The mean of the task vectors, every entry weighted by its Fisher information.

    Formula: tau* = sum_t c_t F_t tau_t / sum_t c_t F_t, with F_t + floor for F_t.

    Args:
        weights: c_t, one number >= 0 or one for each model.
        floor: added to every F_t, >= 0, so that an entry that matters to no model is averaged.

    Side information: ``extras=[{"fisher": tree}, ...]``.  Leaves without one are averaged.

    Memory: 2 x the model, and one Fisher at a time.

    Source: Matena & Raffel, NeurIPS 2022, eq. 4.
    """
    check_range("weights", weights, 0)
    check_total(weights)
    check_range("floor", floor, 0, one=True)

    def update(cell, x, ctx):
        f = beside("fisher", x, ctx)
        f = jnp.ones_like(x) if f is None else f.astype(x.dtype)
        f = per_model(weights, ctx) * (f + floor)
        return cell[0] + f * x, cell[1] + f

    return Merge(
        init=lambda leaf: (zeros(leaf), zeros(leaf)),
        update=update,
        finalize=lambda cell, ctx: jnp.where(cell[1] != 0, cell[0] / cell[1], 0),
        combine=lambda a, b: jax.tree.map(jnp.add, a, b),
        models=(1, model_count(weights)),
        needs=("fisher",),
    )


@register
def gram_mean(off_diagonal: float = 0.9, ridge: float = 0.0, axis: int = 0) -> Merge:
    """RegMean's closed form: the kernel whose outputs on all data are nearest to the models' own.

    Formula: tau* = (sum_t G_t)^-1 sum_t G_t tau_t for a kernel [in, out], G_t [in, in] with its
    off-diagonal entries multiplied by `off_diagonal`; leaves without a Gram matrix are averaged.

    Args:
        off_diagonal: in [0, 1]; 1 is plain least squares.
        ridge: >= 0, relative to the mean diagonal; pulls towards the mean of the task vectors.
        axis: where the kernel's "in" is: 0, its first axes, in Flax; 1, its last, in torch's
            layout; as many as the Gram matrix is wide.

    Side information: ``extras=[{"gram": tree}, ...]``.

    Memory: the Gram matrices of one model and 2 x the model.

    Source: Jin et al., RegMean, ICLR 2023, eq. 2 and section 3.3.  Differs: solved in float64 on
    the host; directions in which no model has data take the mean of the task vectors (a plain
    pseudo-inverse would leave them at the base, the textbook inverse fails there).  Sums over
    models are float32 for float32 leaves: at ``off_diagonal=1`` the result is then some 3e-6 off
    (float64 leaves and Gram matrices under x64 give float64's digits).
    """
    check_range("off_diagonal", off_diagonal, 0, 1, one=True)
    check_range("ridge", ridge, 0, one=True)
    check_choice("axis", axis, (0, 1))

    def update(cell, x, ctx):
        total = cell[0] + x if cell else x
        if "gram" not in ctx.extra:
            return (total,)
        g = ctx.extra["gram"].astype(x.dtype)
        rows = _matrix(x, axis, g)
        g = jnp.where(jnp.eye(len(g), dtype=bool), g, off_diagonal * g)
        moment = jnp.matmul(g, rows, precision="highest")
        if len(cell) == 3:
            return total, cell[1] + g, cell[2] + moment
        return total, g, moment

    def finalize(cell, ctx):
        mean = cell[0] / ctx.step
        if len(cell) == 1:
            return mean
        _, g, moment = cell
        start = _matrix(mean, axis, g)
        rest = moment - jnp.matmul(g, start, precision="highest")
        g = g + ridge * jnp.trace(g) / len(g) * jnp.eye(len(g), dtype=g.dtype)
        x = start + jax.lax.custom_linear_solve(
            lambda v: g @ v, rest, lambda _, b: _host_solve(g, b), symmetric=True
        )
        return (x if axis == 0 else x.T).reshape(mean.shape)

    return Merge(
        init=lambda leaf: (),
        update=update,
        finalize=finalize,
        combine=lambda a, b: jax.tree.map(jnp.add, a, b) if a and b else a or b,
        needs=("gram",),
    )


@register
def overlap_mean(masked: bool = False) -> Merge:
    """The mean over the models that touch an entry: those whose change there is not zero.

    Formula: tau*[p] = sum_t m_t[p] tau_t[p] / max(1, sum_t m_t[p]), m_t = [tau_t != 0].

    Args:
        masked: take m_t from the side information ``extras=[{"mask": tree}, ...]`` instead;
            leaves without one are treated as if it were not given.

    Memory: 1.25 x the model.

    Source: He et al., Localize-and-Stitch, TMLR 2025, section 3.3 (stitching).
    """

    def update(cell, x, ctx):
        mask = beside("mask", x, ctx) if masked else None
        touched = x != 0 if mask is None else mask.astype(bool)
        return cell[0] + jnp.where(touched, x, 0), cell[1] + touched

    return Merge(
        init=lambda leaf: (zeros(leaf), zeros(leaf, jnp.uint8)),
        update=update,
        finalize=lambda cell, ctx: cell[0] / jnp.maximum(cell[1], 1),
        combine=lambda a, b: jax.tree.map(jnp.add, a, b),
        models=(1, 255),
        elementwise=not masked,
        needs=("mask",) if masked else (),
    )


def _matrix(x, axis, g):
    """A kernel as [in, out], "in" being the axes that make up the width of its Gram matrix."""
    sizes = x.shape if axis == 0 else x.shape[::-1]
    widths = [math.prod(sizes[:k]) for k in range(1, x.ndim)]
    if g.shape not in [(w, w) for w in widths]:
        width = widths[-1] if widths else None
        raise ValueError(
            f"A Gram matrix has shape {list(g.shape)}, but its kernel has shape "
            f"{list(x.shape)}, so [{width}, {width}] was expected on axis {axis}. Was it "
            "measured on another model, or does the kernel need axis=1 (torch's layout)?"
        )
    return x.reshape(len(g), -1) if axis == 0 else x.reshape(-1, len(g)).T


def _host_solve(g, rest):
    like = jax.ShapeDtypeStruct(rest.shape, rest.dtype)
    solve = lambda *a: _solve(*map(np.asarray, a))
    return jax.pure_callback(solve, like, g, rest, vmap_method="sequential")


def _solve(g, rest):
    """pinv(G) rest, in float64; G is scaled to a unit diagonal first."""
    dtype, noise = rest.dtype, np.finfo(g.dtype).eps
    g, rest = g.astype(np.float64), rest.astype(np.float64)
    scale = 1 / np.sqrt(np.maximum(np.diag(g), np.finfo(np.float64).tiny))
    values, vectors = np.linalg.eigh(g * scale[:, None] * scale)
    keep = values > values[-1] * len(g) * noise
    inverse = np.where(keep, 1 / np.where(keep, values, 1), 0)
    step = vectors @ (inverse[:, None] * (vectors.T @ (scale[:, None] * rest)))
    return (scale[:, None] * step).astype(dtype)
