"""Hyperparameters: one number for all models or a list over them, and what they may be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.core.ranges import Number, Numbers
from jaxmerge.core.types import Context, concrete, working_dtype


def per_model(value: Numbers, ctx: Context) -> Number:
    """A hyperparameter at this model: a number as it is, a list over models at ``ctx.step``.

    Lists come in the dtype in which the leaf is merged, float32 or float64.

    >>> ctx = Context(base=None, step=jnp.int32(1))
    >>> float(per_model(0.5, ctx)), float(per_model((0.1, 0.25), ctx))
    (0.5, 0.25)

    Args:
        value: a number, or a sequence or vector [T] of one for each model.
        ctx: of the cell; `ctx.step` chooses.
    """
    at: Any = value
    if isinstance(value, tuple | list):
        dtype = jnp.float32 if ctx.base is None else working_dtype(ctx.base)
        at = jnp.stack([jnp.asarray(v, dtype) for v in value])
    return at[ctx.step] if getattr(at, "ndim", 0) == 1 else at


class Listed(int):
    """How many models a list has numbers for: as many are to be merged, no fewer."""


def model_count(*values: Any) -> Listed | None:
    """How many models lists of numbers are for (the shortest list); None if one number serves all.

    >>> model_count(0.5), model_count(0.5, (0.1, 0.2, 0.3))
    (None, 3)
    """
    many = [v for v in values if isinstance(v, tuple | list) or getattr(v, "ndim", 0) == 1]
    return Listed(min(map(len, many))) if many else None


def check_range(
    name: str,
    value: Any,
    low: float,
    high: float = float("inf"),
    *,
    open_low: bool = False,
    one: bool = False,
) -> None:
    """Raise ValueError unless every (concrete) value lies in [low, high], or (low, high].

    With `one`, a list over models is refused.

    >>> check_range("density", 1.5, 0, 1, open_low=True)
    Traceback (most recent call last):
    ValueError: density must be in (0, 1], got 1.5.
    """
    if one and isinstance(value, tuple | list):
        raise ValueError(f"{name} must be one number for all models, got {value}.")
    inside = lambda v: (low < v if open_low else low <= v) and v <= high
    for x in jax.tree.leaves(value, is_leaf=lambda v: v is None):
        if concrete(x) and not all(map(inside, _flat(name, x))):
            bracket = "(" if open_low else "["
            raise ValueError(f"{name} must be in {bracket}{low}, {high}], got {x}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless the value is one of the choices.

    >>> check_choice("scope", "layer", ("global", "leaf"))
    Traceback (most recent call last):
    ValueError: scope must be one of 'global', 'leaf', got 'layer'.
    """
    if value not in tuple(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _flat(name: str, x: Any) -> list[float]:
    try:
        return [float(v) for v in (x.ravel() if hasattr(x, "ravel") else [x])]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, or a list of numbers, got {x!r}.") from None
