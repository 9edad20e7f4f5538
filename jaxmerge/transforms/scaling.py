"""Transforms that multiply a task vector: the scaling coefficient of every paper."""

from __future__ import annotations

from typing import Any

from jaxmerge.core import Transform, per_model
from jaxmerge.spec import register

__all__ = ["scale"]


@register
def scale(factor: Any) -> Transform:
    """Multiply by a factor (a number, or one number for each model when put before the merge).

    Formula: factor * tau.
    """
    return Transform(lambda x, ctx: per_model(factor, ctx) * x)
