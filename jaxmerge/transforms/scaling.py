"""Transforms that change the size of entries: the scaling coefficient of every paper, clipping."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxmerge.core.hyperparameters import check_range, model_count, per_model
from jaxmerge.core.registry import register
from jaxmerge.core.types import Transform

__all__ = ["clip", "scale"]


@register
def scale(factor: Any) -> Transform:
    """Multiply by a factor (a number, or one number for each model when put before the merge).

    Formula: factor * tau.

    Memory: 0.
    """
    check_range("factor", factor, -float("inf"))
    return Transform(lambda x, ctx: per_model(factor, ctx) * x, models=model_count(factor))


@register
def clip(limit: Any) -> Transform:
    """Let no entry change by more than a limit (a number at least 0, or one for each model).

    Formula: sign(tau) min(|tau|, limit).

    Memory: 0.
    """
    check_range("limit", limit, 0, float("inf"))

    def kernel(x, ctx):
        bound = jnp.asarray(per_model(limit, ctx), x.dtype)
        return jnp.clip(x, -bound, bound)

    return Transform(kernel, models=model_count(limit))
