"""Published methods weighted by what a model's data say: Fisher merging, RegMean, and by masks.

They read side information about each model (``extras``), made by `jaxmerge.statistics` and
`jaxmerge.solvers`.  Written for task vectors they give the textbook result, since all are affine in
the weights.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxmerge.core.composition import chain
from jaxmerge.core.hyperparameters import check_choice, check_range, model_count, per_model
from jaxmerge.core.ranges import Number, Numbers
from jaxmerge.core.registry import record, register
from jaxmerge.core.types import Merge, beside, zeros
from jaxmerge.folds.elementwise import check_total, overlap_mean
from jaxmerge.numerics.linalg import product
from jaxmerge.transforms.scaling import scale
from jaxmerge.transforms.sparsify import trim

__all__ = ["fisher_merging", "localize_and_stitch", "regmean", "stitch"]


@register
def fisher_merging(weights: Numbers = 1.0, factor: Number = 1.0, floor: float = 1e-10) -> Merge:
    """Fisher merging: the mean of the models, every entry weighted by its Fisher information.

    Formula: theta = sum_t c_t F_t theta_t / sum_t c_t F_t.

    Args:
        weights: c_t, one number >= 0 or one for each model.  The model-level normalisation is
            c_t = 1 / |F_t|: pass `jaxmerge.statistics.normalised` Fishers instead.
        factor: scales the merged task vector.
        floor: added to every F_t, >= 0, so that an entry that matters to no model is averaged.

    Side information: ``extras=[{"fisher": tree}, ...]``.  Leaves without one are averaged.

    Memory: 2 x the model.

    Source: Matena & Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022,
    eq. 4.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0, 1.0])}, {"w": np.array([3.0, 3.0])}]
        >>> fishers = [{"fisher": {"w": np.array([3.0, 1.0])}}, {"fisher": {"w": np.ones(2)}}]
        >>> merged = jm.merge(jm.fisher_merging(), {"w": np.zeros(2)}, models, extras=fishers)
        >>> merged["w"].round(4)
        array([1.5, 2. ])
    """
    return chain(fisher_mean(weights, floor), scale(factor))


@register
def regmean(off_diagonal: float = 0.9, ridge: float = 0.0, axis: int = 0) -> Merge:
    """RegMean: every dense kernel solves the regression of its inputs on the models' own outputs.

    Formula: W = (sum_t G_t)^-1 sum_t G_t W_t, G_t = the input Gram matrix with its off-diagonal
    entries multiplied by `off_diagonal`; all other leaves are averaged.

    Args:
        off_diagonal: in [0, 1]; the paper takes 0.9 (0.1 for T5), MergeBench 0.5; 1 is plain least
            squares.
        ridge: >= 0, relative to the mean diagonal; pulls towards the mean of the task vectors.
        axis: where the kernel's "in" is: 0, its first axes, in Flax; 1, its last, in torch's
            layout; as many as the Gram matrix is wide.

    Side information: ``extras=[{"gram": tree}, ...]``.

    Memory: the Gram matrices of one model and 2 x the model.

    Source: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023,
    eq. 2 and section 3.3.

    Differs: solved in float64; directions in which no model has data take the mean of
    the task vectors (a plain pseudo-inverse would leave them at the base, the textbook inverse
    fails there).  Sums over models are float32 for float32 leaves: at ``off_diagonal=1`` the result
    is then some 3e-6 off (float64 leaves and Gram matrices under x64 give float64's digits).

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"fc/kernel": np.eye(2)}, {"fc/kernel": 3 * np.eye(2)}]
        >>> grams = [{"gram": {"fc/kernel": np.eye(2) * g}} for g in (1.0, 3.0)]
        >>> out = jm.merge(jm.regmean(), {"fc/kernel": np.zeros((2, 2))}, models, extras=grams)
        >>> out["fc/kernel"].round(4)
        array([[2.5, 0. ],
               [0. , 2.5]])
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
        moment = g @ rows
        if len(cell) == 3:
            return total, cell[1] + g, cell[2] + moment
        return total, g, moment

    def finalize(cell, ctx):
        mean = cell[0] / ctx.step
        if len(cell) == 1:
            return mean
        _, g, moment = cell
        start = _matrix(mean, axis, g)
        rest = moment - g @ start
        g = g + ridge * jnp.trace(g) / len(g) * jnp.eye(len(g), dtype=g.dtype)
        x = start + jax.lax.custom_linear_solve(
            lambda v: g @ v, rest, lambda _, b: _solve(g, b), symmetric=True
        )
        return (x if axis == 0 else x.T).reshape(mean.shape)

    return Merge(
        init=lambda leaf: (),
        update=update,
        finalize=finalize,
        combine=lambda a, b: jax.tree.map(jnp.add, a, b) if a and b else a or b,
        needs=("gram",),
        decomposes=True,
    )


@register(static=("density",))
def localize_and_stitch(density: float = 0.1, factor: Number = 1.0) -> Merge:
    """Dataless Localize-and-Stitch: each task vector's largest entries, averaged where they meet.

    Formula: m_t = the floor(density n) entries of largest |tau_t| over the whole model, n in all;
    theta_0 + factor * sum_t m_t tau_t / max(1, sum_t m_t).

    Args:
        density: share kept of each task vector, in (0, 1]; the paper takes 0.05 to 0.1.
        factor: scales the merged task vector; any number.

    Memory: 1.25 x the model.

    Source: He et al., Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic,
    TMLR 2025.  With learned masks: `jaxmerge.solvers.localize` and `stitch`.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([4.0, 1.0])}, {"w": np.array([2.0, 6.0])}]
        >>> jm.merge(jm.localize_and_stitch(0.5), {"w": np.zeros(2)}, models)["w"]
        array([4., 6.])
    """
    return chain(trim(density, inclusive=False), overlap_mean(), scale(factor))


@register
def stitch(factor: Number = 1.0) -> Merge:
    """Stitching with given masks: the mean of the task vectors over the models that claim an entry.

    Formula: theta_0 + factor * sum_t m_t tau_t / max(1, sum_t m_t).

    Args:
        factor: scales the merged task vector; any number.

    Side information: ``extras=[{"mask": tree of booleans}, ...]``.

    Memory: 1.25 x the model.

    Source: He et al., Localize-and-Stitch, TMLR 2025, section 3.3.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([4.0, 1.0])}, {"w": np.array([2.0, 6.0])}]
        >>> masks = [{"mask": {"w": np.array(m)}} for m in ([True, False], [True, True])]
        >>> jm.merge(jm.stitch(), {"w": np.zeros(2)}, models, extras=masks)["w"]
        array([3., 6.])
    """
    return chain(overlap_mean(masked=True), scale(factor))


@record
def fisher_mean(weights: Numbers = 1.0, floor: float = 1e-10) -> Merge:
    """The mean of the task vectors, every entry weighted by its Fisher information."""
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


@jax.custom_batching.sequential_vmap
def _solve(g, rest):
    """pinv(G) rest, in float64; G is scaled to a unit diagonal first."""
    noise = len(g) * float(jnp.finfo(g.dtype).eps)
    with jax.enable_x64(True):
        wide = g.astype(jnp.float64)
        scale = 1 / jnp.sqrt(jnp.maximum(jnp.diagonal(wide), jnp.finfo(wide.dtype).tiny))
        values, vectors = jnp.linalg.eigh(wide * scale[:, None] * scale[None, :])
        known = values > values[-1] * noise
        inverse = jnp.where(known, 1 / jnp.where(known, values, 1), 0)
        vectors = scale[:, None] * vectors
        return product((vectors * inverse[None, :]) @ vectors.T, rest)
