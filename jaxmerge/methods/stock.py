"""Model Stock: the mean of few models, pulled to the base as far as they disagree."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.core.registry import register
from jaxmerge.core.types import Array, Measure, Merge, stacked, zeros
from jaxmerge.folds import vectors
from jaxmerge.numerics.measures import square_norm, square_sum

__all__ = ["model_stock"]


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
def model_stock(
    average: Literal["cosine", "angle"] = "cosine",
    per: Literal["leaf", "row", "column", "model"] = "leaf",
) -> Merge:
    """Model Stock: the mean of few models, pulled to the base as far as they disagree.

    Formula: theta_0 + t mean_i(tau_i), t = T cos / (1 + (T-1) cos): the base at cosine 0, the mean
    at cosine 1.

    Args:
        average: the cosine is the mean "cosine" of all pairs, or that of their mean "angle".
        per: one cosine for every leaf (the paper's layer), row, column, or the whole "model".

    Memory: 2 x the model; T x for ``average="angle"``.

    Source: Jang et al., Model Stock: All we need is just a few fine-tuned models, ECCV 2024,
    equation 4 (general T in the appendix).

    Differs: the paper takes the angles between all pairs for equal; for more than two models one
    has to average, and implementations do it in two ways.  Norms are not bounded from below, so
    small changes keep their cosine.  A negative cosine gives a negative t, as the formula says.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([2.0, 1.0])}, {"w": np.array([1.0, 2.0])}]
        >>> jm.merge(jm.model_stock(), {"w": np.ones(2)}, [models[0], models[0]])["w"].round(3)
        array([2., 1.])
        >>> jm.merge(jm.model_stock(), {"w": np.ones(2)}, models)["w"].round(3)
        array([1., 1.])
    """
    whole = per == "model"

    if average == "angle":

        def dots(cell, summary, turn):
            rows = jnp.stack(cell)
            every = tuple(range(1, rows.ndim))
            return jax.lax.dot_general(rows, rows, ((every, every), ((), ())))

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
        total = zeros(leaf)
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
        observe=lambda cell, s, turn: square_sum(cell.units),
        by_entry=True,
    )


def _stock_share(count: Any, cos: Array) -> Array:
    below = 1 + (count - 1) * cos
    return jnp.where(below > 0, count * cos / jnp.where(below > 0, below, 1), 0)
