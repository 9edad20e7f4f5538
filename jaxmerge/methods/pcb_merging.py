"""PCB-Merging: every entry of every task weighted by how it competes with the others."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.composition import chain
from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.ranges import Number
from jaxmerge.core.registry import record, register
from jaxmerge.core.types import Measure, Merge, collected, numpy_of
from jaxmerge.numerics import order_statistics
from jaxmerge.numerics.measures import keep_count
from jaxmerge.transforms.scaling import scale

__all__ = ["pcb"]


@register
def pcb(
    density: Number = 0.2, factor: Number = 1.0, scope: Literal["global", "leaf"] = "global"
) -> Merge:
    """PCB-Merging: every entry of every task weighted by its competition with all others.

    Formula: with Norm to [0, 1] and Softmax over the entries of the model,
    beta_t = Softmax(T Norm(tau_t^2)) * sum_s Softmax(Norm(tau_t tau_s)); keep the `density` share
    of largest beta_t of each task, b_t, and what ties with the last but for rounding;
    theta_0 + factor * sum_t b_t tau_t / sum_t b_t.

    Args:
        density: share of entries of each task that keeps its score (the paper's r), in (0, 1].
        factor: lambda of the paper.
        scope: "global" compares entries over the whole model (the paper), "leaf" in each leaf.

    Memory: T x the model; T x the leaf for "leaf".

    Source: Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024, equations
    1 to 5.  Differs: the formula of the paper; its released code clips outliers and uses tanh.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([4.0, 1.0])}, {"w": np.array([0.0, 3.0])}]
        >>> jm.merge(jm.pcb(density=0.5), {"w": np.zeros(2)}, models)["w"].round(3)
        array([4., 3.])
    """
    return chain(balance(density, scope), scale(factor))


@record
def balance(density: Number = 0.2, scope: Literal["global", "leaf"] = "global") -> Merge:
    """Every entry of every task weighed by how it competes within the task and with others."""
    check_range("density", density, 0, 1, open_low=True)

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
        ranked = [
            order_statistics.radix_refine(v[None], r[None], h[None], turn - 2)
            for v, r, h in zip(summary["value"], summary["rank"], total, strict=True)
        ]
        value, rank = (jnp.concatenate([jnp.asarray(f[i]) for f in ranked]) for i in (0, 1))
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
        passes=18,
        done=lambda summary: summary.get("rank", 0) is None,
        scope="row" if scope == "global" else "leaf",
        join=lambda a, b, turn: jnp.maximum(a, b) if turn == 0 else a + b,
        by_entry=True,
    )
    return collected(reduce, closing=closing)
