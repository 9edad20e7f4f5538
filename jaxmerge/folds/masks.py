"""Folds that decide by masks which task an entry belongs to: TALL masks, consensus, EMR, PCB.

A TALL mask tells where one task's change stands out from the sum of all; consensus keeps the
entries that several tasks claim; EMR rebuilds each task's model from one shared vector, a mask and
a number; PCB weighs every entry of every task by how it competes with the others.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.registry import register
from jaxmerge.core.types import (
    Array,
    Measure,
    Merge,
    check_choice,
    check_range,
    collected,
    model_count,
    numpy_of,
    zeros,
)
from jaxmerge.folds.signs import disjoint_mean
from jaxmerge.numerics import order_statistics
from jaxmerge.numerics.measures import keep_count

__all__ = ["balance", "consensus_sum", "localized_sum", "modulated_unified"]


def tall_mask(row: Array, total: Array, tall: Any) -> Array:
    """Where a task's change is large against those of the others: |tau| > tall |sum - tau|."""
    return jnp.abs(row) > tall * jnp.abs(total - row)


@register
def consensus_sum(tall: Any = 0.4, at_least: int = 2) -> Merge:
    """The sum of the task vectors where at least some number of TALL masks are active, else zero.

    Formula: m_t = [|tau_t| > tall_t |tau - tau_t|] with tau = sum_t tau_t; tau [sum_t m_t >= k].

    Args:
        tall: lambda of the masks, at least 0: the larger, the fewer entries a task claims; a
            number, or one for each model.
        at_least: k, how many tasks must claim an entry; 1 drops only what no task claims, 2 also
            what serves a single task.

    Memory: T x the leaf: masks need the sum of all.

    Source: Wang et al., Localizing Task Information for Improved Model Merging and Compression,
    ICML 2024, equations 3 and 6.  Differs: a mask counts where the change is larger, as in the
    authors' code; the paper writes "at least".
    """
    check_range("tall", tall, 0, float("inf"))
    if at_least < 0:
        raise ValueError(f"at_least must be a count of models, 0 or more, got {at_least}.")

    def reduce(rows, ctx):
        total = sum(rows)
        each = list(tall) if model_count(tall) else [tall] * len(rows)
        masks = [tall_mask(x, total, share) for x, share in zip(rows, each, strict=True)]
        return jnp.where(sum(m.astype(jnp.int32) for m in masks) >= at_least, total, 0)

    limit = model_count(tall)
    return collected(reduce, models=(limit or 1, limit), elementwise=True)


@register
def localized_sum(task: int = 0, tall: Any = 0.4) -> Merge:
    """The sum of the task vectors under the TALL mask of one task: that task's model, recovered.

    Formula: m_t tau, m_t = [|tau_t| > tall |tau - tau_t|], tau = sum_t tau_t.

    Args:
        task: the position of the task among the models, from 0.
        tall: lambda of the mask, at least 0.

    Memory: 2 x the model.

    Source: Wang et al., ICML 2024, equation 4 (compression by one sum and a bit for each entry and
    task).
    """
    check_range("tall", tall, 0, one=True)
    _check_task(task)
    return Merge(
        init=lambda leaf: (zeros(leaf), zeros(leaf)),
        update=lambda cell, x, ctx: (cell[0] + x, jnp.where(ctx.step == task, x, cell[1])),
        finalize=lambda cell, ctx: jnp.where(tall_mask(cell[1], cell[0], tall), cell[0], 0),
        combine=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        models=(task + 1, None),
        elementwise=True,
    )


@register
def modulated_unified(task: int = 0) -> Merge:
    """The unified vector under one task's mask and rescaler (EMR): that task's model, recovered.

    Formula: lambda_t M_t tau_uni, with tau_uni[p] the entry of largest magnitude among those with
    the sign of sum_t tau_t[p], M_t = [tau_t tau_uni > 0] and lambda_t = sum |tau_t| /
    sum |M_t tau_uni| over the whole model.

    Args:
        task: the position of the task among the models, from 0.

    Memory: 5 x the model.

    Source: Huang et al., EMR-Merging, NeurIPS 2024, section 3.2.
    """
    _check_task(task)
    unify = disjoint_mean("max", tie="positive")

    def update(cell, x, ctx):
        return unify.update(cell[0], x, ctx), jnp.where(ctx.step == task, x, cell[1])

    def masked(cell, ctx=None):
        unified = unify.finalize(cell[0], ctx)
        return jnp.where(cell[1] * jnp.sign(unified) > 0, unified, 0)

    def observe(cell, summary, turn):
        return jnp.stack([jnp.sum(jnp.abs(cell[1])), jnp.sum(jnp.abs(masked(cell)))])

    def finalize(cell, ctx):
        own, kept = ctx.measured
        return masked(cell) * jnp.where(kept > 0, own / jnp.where(kept > 0, kept, 1), 1)

    return Merge(
        init=lambda leaf: (unify.init(leaf), zeros(leaf)),
        update=update,
        finalize=finalize,
        combine=lambda a, b: (unify.combine(a[0], b[0]), a[1] + b[1]),
        closing=Measure(lambda: None, observe, by_entry=True),
        models=(task + 1, 255),
    )


@register
def balance(density: Any = 0.2, scope: Literal["global", "leaf"] = "global") -> Merge:
    """Weigh every entry of every task by how it competes within the task and with others (PCB).

    Formula: with Norm to [0, 1] and Softmax over the entries of the model,
    beta_t = Softmax(T Norm(tau_t^2)) * sum_s Softmax(Norm(tau_t tau_s)); keep the `density` share
    of largest beta_t of each task, b_t, and what ties with the last but for rounding;
    tau* = sum_t b_t tau_t / sum_t b_t.

    Args:
        density: share of entries that keeps its score, in (0, 1].
        scope: "global" compares entries over the whole model (the paper), "leaf" in each leaf.

    Memory: T x the model; T x the leaf for "leaf".  Each pass forms T (T + 1) / 2 products.

    Source: Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024, equations
    1 to 5.  Differs: the formula of the paper; its released code clips outliers and uses tanh.
    """
    check_range("density", density, 0, 1, open_low=True)
    check_choice("scope", scope, ("global", "leaf"))

    def products(rows):
        """tau_t tau_s of the pairs s <= t, of which those with s = t are the squares."""
        return [x * y for t, x in enumerate(rows) for y in rows[: t + 1]]

    def exponentials(rows, ends):
        """exp(Norm(tau_t tau_s)) of those pairs; to the power T at s = t: the other softmax."""
        low, high = ends
        rate = 1 / jnp.where(high > low, high - low, 1)
        return [jnp.exp((x - low[i]) * rate[i]) for i, x in enumerate(products(rows))]

    def squares(rows, powers):
        """exp(T Norm(tau_t^2)) of each task."""
        many = len(rows)
        return [powers[t * (t + 3) // 2] ** many for t in range(many)]

    def scores(rows, facts):
        """T + T^2 factors of D larger than beta_t, of each task; float32 would not hold beta_t."""
        powers, share = exponentials(rows, facts["ends"]), facts["share"]
        own, total = squares(rows, powers), [0.0] * len(rows)
        pairs = [(t, s) for t in range(len(rows)) for s in range(t + 1)]
        for i, (t, s) in enumerate(pairs):
            part = powers[i] * share[i]
            total[t] += part
            total[s] += part if s != t else 0
        return [share[len(pairs) + t] * x * total[t] for t, x in enumerate(own)]

    def observe(rows, summary, turn):
        if turn == 0:
            x = products(rows)
            return {"low": -jnp.stack([*map(jnp.min, x)]), "high": jnp.stack([*map(jnp.max, x)])}
        if turn == 1:
            x = exponentials(rows, summary["ends"])
            sums = jnp.stack([jnp.sum(e) for e in (*x, *squares(rows, x))])
            return {"sums": sums, "size": np.int32(rows[0].size)}
        count = lambda x, value: order_statistics.radix_count(x, value[None], turn - 2)[0]
        return jax.vmap(count)(jnp.stack(scores(rows, summary)), jnp.asarray(summary["value"]))

    def refine(summary, total, turn):
        if turn == 0:
            return {"ends": (-total["low"], total["high"])}
        if turn == 1:
            many = math.isqrt(2 * len(total["sums"])) - 1  # of T (T + 1) / 2 + T = T (T + 3) / 2
            xp = numpy_of(total["size"], density)
            rank = xp.full(many, xp.maximum(keep_count(density, total["size"]), 1))
            share = xp.asarray(total["size"], xp.float32) / total["sums"]
            return summary | {"share": share, "value": np.zeros(many, np.uint32), "rank": rank}
        found = [
            order_statistics.radix_refine(v[None], r[None], h[None], turn - 2)
            for v, r, h in zip(summary["value"], summary["rank"], total, strict=True)
        ]
        value, rank = (jnp.concatenate([jnp.asarray(f[i]) for f in found]) for i in (0, 1))
        return summary | {
            "value": value,
            "rank": None if turn == order_statistics.digits() + 1 else rank,
        }

    def reduce(rows, ctx):
        slack = 1 - 4 * len(rows) * jnp.finfo(rows[0].dtype).eps  # the passes round differently
        least = slack * order_statistics.bits_to_magnitude(jnp.asarray(ctx.measured["value"]))
        merged = total = 0.0
        for x, beta, bound in zip(rows, scores(rows, ctx.measured), least, strict=True):
            beta = jnp.where(beta >= bound.astype(beta.dtype), beta, 0)
            merged, total = merged + beta * x, total + beta
        return merged / jnp.where(total > 0, total, 1)

    closing = Measure(
        lambda: None,
        observe,
        refine,
        passes=6,
        done=lambda summary: summary.get("rank", 0) is None,
        scope="row" if scope == "global" else "leaf",
        join=lambda a, b, turn: jnp.maximum(a, b) if turn == 0 else a + b,
        by_entry=True,
    )
    return collected(reduce, closing=closing)


def _check_task(task: int) -> None:
    if task < 0:
        raise ValueError(f"task must be the position of a model, 0 or more, got {task}.")
