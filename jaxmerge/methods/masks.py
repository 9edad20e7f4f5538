"""Published methods built on TALL masks: Consensus Task Arithmetic, and one task recovered.

A TALL mask tells where one task's change stands out from the sum of all; consensus keeps the
entries that several tasks claim.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxmerge.core.composition import chain
from jaxmerge.core.hyperparameters import check_range, model_count
from jaxmerge.core.ranges import Number, Numbers
from jaxmerge.core.registry import record, register
from jaxmerge.core.types import Array, Merge, collected, zeros
from jaxmerge.transforms.scaling import scale

__all__ = ["consensus", "tall_task"]


@register
def consensus(tall: Numbers = 0.4, at_least: int = 2, factor: Number = 0.3) -> Merge:
    """Consensus Task Arithmetic: drop from the sum what only one task, or none, has use for.

    Formula: theta_0 + factor * tau [sum_t m_t >= k], tau = sum_t tau_t, m_t the TALL masks
    [|tau_t| > tall |tau - tau_t|].

    Args:
        tall: lambda of the TALL masks, at least 0 (the paper searches 0.2 to 0.6); a number, or one
            for each model.
        at_least: k of the paper, 2: how many tasks must claim an entry; 1 drops only what no task
            claims.
        factor: alpha of task arithmetic.

    Memory: T x the leaf.

    Source: Wang et al., Localizing Task Information for Improved Model Merging and Compression,
    ICML 2024.  Differs: masks compare task vectors with task vectors, as the paper's equation does;
    some code compares weights of the base with them.  The comparison is strict, as in the authors'
    code; the paper writes "at least".

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0, 1.0])}, {"w": np.array([1.0, 0.0])}]
        >>> jm.merge(jm.consensus(factor=1.0), {"w": np.zeros(2)}, models)["w"]
        array([2., 0.])
    """
    return chain(consensus_sum(tall, at_least), scale(factor))


@register
def tall_task(task: int = 0, tall: Number = 0.4, factor: Number = 1.0) -> Merge:
    """One task's model recovered from the sum of all task vectors by its TALL mask.

    Formula: theta_0 + factor * m_t tau; see `consensus`.

    Args:
        task: the position of the task among the models, from 0.
        tall: lambda of the mask, at least 0.
        factor: scales the recovered task vector; any number.

    Memory: 2 x the model.

    Source: Wang et al., ICML 2024, equation 4 (compression by one sum and a bit for each entry and
    task).

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0, 0.0])}, {"w": np.array([0.0, 5.0])}]
        >>> jm.merge(jm.tall_task(task=1), {"w": np.zeros(2)}, models)["w"]
        array([0., 5.])
    """
    return chain(localized_sum(task, tall), scale(factor))


@record
def consensus_sum(tall: Numbers = 0.4, at_least: int = 2) -> Merge:
    """The sum of the task vectors where at least so many TALL masks are active, else zero."""
    check_range("tall", tall, 0, float("inf"))
    many: Any = tall
    if at_least < 0:
        raise ValueError(f"at_least must be a count of models, 0 or more, got {at_least}.")

    def reduce(rows, ctx):
        total = sum(rows)
        shares: list[Any] = list(many) if model_count(many) else [many] * len(rows)
        masks = [tall_mask(x, total, share) for x, share in zip(rows, shares, strict=True)]
        return jnp.where(sum(m.astype(jnp.int32) for m in masks) >= at_least, total, 0)

    limit = model_count(many)
    return collected(reduce, models=(limit or 1, limit), elementwise=True)


@record
def localized_sum(task: int = 0, tall: Number = 0.4) -> Merge:
    """The sum of the task vectors under the TALL mask of one task."""
    check_range("tall", tall, 0, one=True)
    check_task(task)
    return Merge(
        init=lambda leaf: (zeros(leaf), zeros(leaf)),
        update=lambda cell, x, ctx: (cell[0] + x, jnp.where(ctx.step == task, x, cell[1])),
        finalize=lambda cell, ctx: jnp.where(tall_mask(cell[1], cell[0], tall), cell[0], 0),
        combine=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        models=(task + 1, None),
        elementwise=True,
    )


def tall_mask(row: Array, total: Array, tall: Any) -> Array:
    """Where a task's change is large against those of the others: |tau| > tall |sum - tau|."""
    return jnp.abs(row) > tall * jnp.abs(total - row)


def check_task(task: int) -> None:
    if task < 0:
        raise ValueError(f"task must be the position of a model, 0 or more, got {task}.")
