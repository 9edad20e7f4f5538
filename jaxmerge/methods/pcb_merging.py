"""PCB-Merging: every entry of every task weighted by how it competes with the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.composition import chain
from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.ranges import Number
from jaxmerge.core.registry import record, register
from jaxmerge.core.types import Measure, Merge, collected, numpy_of
from jaxmerge.numerics import order_statistics
from jaxmerge.numerics.brackets import STRIDE
from jaxmerge.numerics.host_order_statistics import sample
from jaxmerge.numerics.host_rows import Row, by_span
from jaxmerge.numerics.measures import keep_count, ranked_magnitude
from jaxmerge.transforms.scaling import scale

__all__ = ["pcb"]

BLOCK = 1 << 13  # entries of all rows that the host computes with at a time: in the cache


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

    def ranks(size):
        xp = numpy_of(size, density)
        return xp.maximum(keep_count(density, size), 1)

    score = ranked_magnitude(ranks, "row" if scope == "global" else "leaf")  # of one task

    def observe(rows, summary, turn):
        if turn == 0:
            x = products(rows)
            return {"low": -jnp.stack([*map(jnp.min, x)]), "high": jnp.stack([*map(jnp.max, x)])}
        if turn == 1:
            x = exponentials(rows, summary["ends"])
            sums = jnp.stack([jnp.sum(e) for e in (*x, *squares(rows, x))])
            return {"sums": sums, "size": np.int32(rows[0].size)}
        every = zip(scores(rows, summary["ends"], summary["share"]), summary["best"], strict=True)
        return [score.observe(x, best, turn - 2) for x, best in every]

    def host(rows, summary, turn):
        rows, size = [np.asarray(x).reshape(-1) for x in rows], rows[0].size
        if turn < 2:
            return _ends_on_host(rows) if turn == 0 else _sums_on_host(rows, summary["ends"])
        first = turn == 2 and scope == "global"
        rows = [x[::STRIDE] for x in rows] if first else rows
        given = scores_of(rows, summary["ends"], summary["share"])
        if first:  # a sample: the scores of no more entries are computed
            sampled = lambda x: {"sample": STRIDE * sample(Row(x), 1), "size": np.int64(size)}
            return [sampled(x) for x in given]
        every = zip(given, summary["best"], strict=True)
        assert score.host  # else this function is not called
        look = score.host
        return [{} if score.done(b) else look(Row(x), b, turn - 2) for x, b in every]

    def refine(summary, total, turn):
        if turn == 0:
            return {"ends": (-total["low"], total["high"])}
        if turn == 1:
            many = math.isqrt(2 * len(total["sums"])) - 1  # of T (T + 1) / 2 + T = T (T + 3) / 2
            xp = numpy_of(total["size"], density)
            share = xp.asarray(total["size"], xp.float32) / total["sums"]
            return summary | {"share": share, "best": [score.init() for _ in range(many)]}
        every = zip(summary["best"], total, strict=True)
        best = [b if score.done(b) else score.refine(b, t, turn - 2) for b, t in every]
        best = [_near_enough(b, len(best)) for b in best]
        if not all(map(score.done, best)):
            return summary | {"best": best}
        xp = numpy_of(*(b["value"] for b in best))
        return {
            "ends": summary["ends"],
            "share": summary["share"],
            "value": xp.stack([b["value"] for b in best]),
        }

    def reduce(rows, ctx):
        facts = ctx.measured
        slack = 1 - 4 * len(rows) * jnp.finfo(rows[0].dtype).eps  # the passes round differently
        least = slack * order_statistics.bits_to_magnitude(jnp.asarray(facts["value"]))
        merged = total = 0.0
        every = scores(rows, facts["ends"], facts["share"])
        for x, beta, bound in zip(rows, every, least, strict=True):
            beta = jnp.where(beta >= bound.astype(beta.dtype), beta, 0)
            merged, total = merged + beta * x, total + beta
        return merged / jnp.where(total > 0, total, 1)

    closing = Measure(
        lambda: None,
        observe,
        refine,
        passes=2 + score.passes,
        done=lambda summary: "value" in summary,
        scope="row" if scope == "global" else "leaf",
        join=lambda a, b, turn: jnp.maximum(a, b) if turn == 0 else score.join(a, b, turn),
        by_entry=True,
        host=score.host and host,
    )
    return collected(reduce, closing=closing)


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
    return [_power(powers[t * (t + 3) // 2], many) for t in range(many)]


def _power(x, n: int):
    """x^n by squaring; numpy would take a logarithm."""
    if n == 1:
        return x
    half = _power(x * x, n // 2)
    return half * x if n % 2 else half


def scores(rows, ends, share):
    """T + T^2 factors of D larger than beta_t, of each task; float32 would not hold beta_t."""
    powers = exponentials(rows, ends)
    own, total = squares(rows, powers), [0.0] * len(rows)
    pairs = [(t, s) for t in range(len(rows)) for s in range(t + 1)]
    for i, (t, s) in enumerate(pairs):
        part = powers[i] * share[i]
        total[t] += part
        total[s] += part if s != t else 0
    return [share[len(pairs) + t] * x * total[t] for t, x in enumerate(own)]


scores_of = jax.jit(scores)


def _near_enough(best: dict[str, Any], many: int) -> dict[str, Any]:
    """A bracket of fewer magnitudes than the merge takes for ties is settled at its low end."""
    if "intervals" not in best or order_statistics.word() > 32:
        return best
    ((low, high),) = best["intervals"]
    return {"value": np.uint32(low), "rank": None} if high - low < 2 * many else best


def _ends_on_host(rows: list[np.ndarray]) -> dict[str, Any]:
    def ends(start, stop):
        low, high = np.full((2, len(rows) * (len(rows) + 1) // 2), -np.inf, rows[0].dtype)
        for i, _, x in _products_on_host(rows, start, stop):
            low[i], high[i] = max(low[i], -x.min()), max(high[i], x.max())
        return low, high

    low, high = (np.max(x, 0) for x in zip(*by_span(rows[0].size, ends), strict=True))
    return {"low": low, "high": high}


def _sums_on_host(rows: list[np.ndarray], ends: Any) -> dict[str, Any]:
    low, high = (np.asarray(x) for x in ends)
    rate = 1 / np.where(high > low, high - low, 1)

    def sums(start, stop):
        total = np.zeros(len(low) + len(rows))
        for i, own, x in _products_on_host(rows, start, stop):
            np.subtract(x, low[i], out=x)
            np.multiply(x, rate[i], out=x)
            np.exp(x, out=x)
            total[i] += x.sum()
            if own is not None:
                total[len(low) + own] += _power(x, len(rows)).sum()
        return total

    total = np.sum(by_span(rows[0].size, sums), 0)
    return {"sums": total.astype(low.dtype), "size": np.int64(rows[0].size)}


def _products_on_host(
    rows: list[np.ndarray], start: int, stop: int
) -> Iterator[tuple[int, int | None, np.ndarray]]:
    """The products of pairs s <= t, block by block in one buffer: their number, t where s = t."""
    pairs = [(t, s) for t in range(len(rows)) for s in range(t + 1)]
    buffer = np.empty(min(BLOCK, stop - start), rows[0].dtype)
    for at in range(start, stop, BLOCK):
        block = [r[at : min(at + BLOCK, stop)] for r in rows]
        for i, (t, s) in enumerate(pairs):
            x = np.multiply(block[t], block[s], out=buffer[: block[0].size])
            yield i, t if s == t else None, x
