"""Folds that treat every entry on its own: sums, means, the change of largest magnitude.

Each keeps one model-sized cell, however many models arrive, and has a `combine`, so the models may
be folded on several devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.hyperparameters import model_count, per_model
from jaxmerge.core.ranges import Numbers
from jaxmerge.core.registry import register
from jaxmerge.core.types import Merge, beside, concrete, zeros

__all__ = ["add", "linear", "max_magnitude", "mean", "overlap_mean"]


def _plus(a, b):
    return a + b


def _sum(cell, x, ctx):
    return cell + x


@register
def add() -> Merge:
    """The sum of the task vectors.

    Formula: sum_t tau_t.

    Memory: 1 x the model.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> jm.merge(jm.add(), {"w": np.zeros(2)}, [{"w": np.ones(2)}, {"w": np.ones(2)}])["w"]
        array([2., 2.])
    """
    return Merge(zeros, _sum, combine=_plus, elementwise=True)


@register
def mean() -> Merge:
    """The mean of the task vectors; with any base, the mean of the weights (a model soup).

    Formula: (1/T) sum_t tau_t.

    Memory: 1 x the model.

    Source: Wortsman et al., Model soups, ICML 2022.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> jm.merge(jm.mean(), None, [{"w": np.array([1.0])}, {"w": np.array([3.0])}])["w"]
        array([2.])
    """
    return Merge(zeros, _sum, lambda cell, ctx: cell / ctx.step, combine=_plus, elementwise=True)


@register
def linear(weights: Numbers, normalize: bool = False) -> Merge:
    """The weighted sum of the task vectors.

    Formula: sum_t w_t tau_t, divided by sum_t w_t if `normalize`.

    Args:
        weights: one number for each model, or one number for all.
        normalize: divide by the sum of the weights; with ``base=None`` the textbook average.

    Memory: 1 x the model.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0])}, {"w": np.array([3.0])}]
        >>> jm.merge(jm.linear([0.5, 1.5], normalize=True), {"w": np.zeros(1)}, models)["w"]
        array([2.5])
    """
    if normalize:
        check_total(weights)
    return Merge(
        init=lambda leaf: (zeros(leaf), jnp.zeros((), jnp.float32)),
        update=lambda cell, x, ctx: (
            cell[0] + per_model(weights, ctx) * x,
            cell[1] + per_model(weights, ctx),
        ),
        finalize=lambda cell, ctx: cell[0] / cell[1] if normalize else cell[0],
        combine=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        models=(1, model_count(weights)),
        elementwise=True,
    )


def check_total(weights: Any) -> None:
    """Raise ValueError if weights that are to be divided by their sum add up to 0."""
    if concrete(weights) and not np.sum(np.asarray(weights, np.float64)):
        raise ValueError(
            f"the weights {np.ravel(weights).tolist()} add up to 0 and cannot be divided by their "
            "sum; choose others, or do not normalize."
        )


@register
def max_magnitude() -> Merge:
    """Entry by entry the change of largest magnitude; on an exact tie the later model wins.

    Formula: tau*[p] = tau_k[p], k = argmax_t |tau_t[p]|.

    Memory: 1 x the model.

    Source: Marczak et al., MagMax, ECCV 2024, section 4.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([4.0, -1.0])}, {"w": np.array([-2.0, -6.0])}]
        >>> jm.merge(jm.max_magnitude(), {"w": np.zeros(2)}, models)["w"]
        array([ 4., -6.])
    """

    def larger(cell, x, ctx=None):
        return jnp.where(jnp.abs(x) >= jnp.abs(cell), x, cell)

    return Merge(zeros, larger, combine=larger, elementwise=True)


@register
def overlap_mean(masked: bool = False) -> Merge:
    """The mean over the models that touch an entry: those whose change there is not zero.

    Formula: tau*[p] = sum_t m_t[p] tau_t[p] / max(1, sum_t m_t[p]), m_t = [tau_t != 0].

    Args:
        masked: take m_t from the side information ``extras=[{"mask": tree}, ...]`` instead;
            leaves without one are treated as if it were not given.

    Memory: 1.25 x the model.

    Source: He et al., Localize-and-Stitch, TMLR 2025, section 3.3 (stitching).

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([4.0, 1.0])}, {"w": np.array([0.0, 3.0])}]
        >>> jm.merge(jm.overlap_mean(), {"w": np.zeros(2)}, models)["w"]
        array([4., 2.])
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
