"""Transforms that change the size of entries: the scaling coefficient of every paper, clipping."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmerge.core.hyperparameters import check_range, model_count, per_model
from jaxmerge.core.ranges import Numbers
from jaxmerge.core.registry import register
from jaxmerge.core.types import Transform

__all__ = ["clip", "scale"]


@register
def scale(factor: Numbers) -> Transform:
    """Multiply by a factor (a number, or one number for each model when put before the merge).

    Formula: factor * tau.

    Args:
        factor: any number, or one for each model before the merge.

    Memory: 0.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.ones(1)}, {"w": np.ones(1)}]
        >>> jm.merge(jm.chain(jm.scale([0.5, 2.0]), jm.add()), {"w": np.zeros(1)}, models)["w"]
        array([2.5])
    """
    check_range("factor", factor, -float("inf"))
    return Transform(lambda x, ctx: per_model(factor, ctx) * x, models=model_count(factor))


@register
def clip(limit: Numbers) -> Transform:
    """Let no entry change by more than a limit (a number at least 0, or one for each model).

    Formula: sign(tau) min(|tau|, limit).

    Args:
        limit: the largest change of an entry, at least 0; a number, or one for each model.

    Memory: 0.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> method = jm.chain(jm.clip(1.0), jm.add())
        >>> jm.merge(method, {"w": np.zeros(2)}, [{"w": np.array([0.5, -3.0])}])["w"]
        array([ 0.5, -1. ])
    """
    check_range("limit", limit, 0, float("inf"))

    def kernel(x, ctx):
        bound = jnp.asarray(per_model(limit, ctx), x.dtype)
        return jnp.clip(x, -bound, bound)

    return Transform(kernel, models=model_count(limit))
