"""A learning rate that follows the loss: a higher and a lower one in turn, a t-test decides.

Every `period` steps the other of two rates, `high` and ``low = factor high``, is used, and how far
the mean loss of a memory fell in the period is noted for the rate that was used. With ten notes of
each, if the lower rate did better (a one-sided Welch test, p < 0.05), both fall by `factor`; if the
higher did (p > 0.95), both rise.

Source: Koh et al., CLIB, ICLR 2022, section 4.3; naver-ai/i-Blurry.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.special import betainc
from jax.typing import DTypeLike

from jaxmerge.core.types import Array

NOTES = 10  # of each rate
BEFORE = 20  # steps without a note


class Rate(NamedTuple):
    """Two rates and how they did.

    Attributes:
        high: as a multiple of the optimiser's rate; low is ``factor high``.
        now: the multiple in use.
        upper: bool, whether the higher one is in use.
        falls: [2, NOTES], mean falls of the loss under the lower, the higher rate, the last one
            last; counts: int32 [2].
        loss: [M], at the last mark; there: bool [M], which slots held an example then.
        fresh: bool [M], written since then.
        steps: int32.
    """

    high: Array
    now: Array
    upper: Array
    falls: Array
    counts: Array
    loss: Array
    there: Array
    fresh: Array
    steps: Array


def start(size: int, dtype: DTypeLike = jnp.float32) -> Rate:
    """The optimiser's own rate.

    Args:
        size: M, slots of the memory.
        dtype: of the losses.

    >>> float(start(4).now)
    1.0
    """
    no, one = jnp.zeros(size, bool), jnp.ones((), dtype)
    return Rate(
        one, one, jnp.array(True), jnp.zeros((2, NOTES), dtype), jnp.zeros(2, jnp.int32),
        jnp.zeros(size, dtype), no, no, jnp.int32(0),
    )  # fmt: skip


def advance(
    rate: Rate, losses: Array, there: Array, written: Array, period: int = 10, factor: float = 0.95,
    significance: float = 0.05,
) -> Rate:  # fmt: skip
    """The rates after a step.

    Args:
        rate: of `start` or `advance`.
        losses: [M] of the memory.
        there: bool [M], its slots with an example.
        written: bool [M], slots written before this step.
        period: steps after which the rates change places, 1 or more.
        factor: low / high, in (0, 1).
        significance: of the test, in (0, 1).

    >>> all_of = jnp.ones(4, bool)
    >>> rate = advance(start(4), jnp.ones(4), all_of, all_of, period=1, factor=0.5)
    >>> float(rate.now), int(rate.steps)
    (0.5, 1)
    """
    steps, fresh = rate.steps + 1, jnp.logical_or(rate.fresh, written)
    mark = jnp.equal(steps % period, 0)
    old = rate.there & ~fresh
    fall = jnp.sum(jnp.where(old, rate.loss - losses, 0)) / jnp.maximum(jnp.sum(old), 1)
    side = rate.upper.astype(jnp.int32)
    note = mark & (steps > BEFORE)
    row = jnp.concatenate([rate.falls[side, 1:], fall[None].astype(rate.falls.dtype)])
    falls = jnp.where(note, rate.falls.at[side].set(row), rate.falls)
    counts = jnp.where(note, rate.counts.at[side].set(jnp.minimum(rate.counts[side] + 1, NOTES)),
                       rate.counts)  # fmt: skip
    upper = rate.upper ^ mark
    p = welch(falls[0], falls[1])
    ripe = mark & jnp.all(counts == NOTES)
    down, up = ripe & (p < significance), ripe & (p > 1 - significance)
    high = jnp.where(down, rate.high * factor, jnp.where(up, rate.high / factor, rate.high))
    upper = upper ^ (down | up)
    counts = jnp.where(down | up, 0, counts)
    pick = lambda a, b: jnp.where(mark, a, b)
    now = pick(jnp.where(upper, high, high * factor), rate.now)
    return Rate(
        high, now, upper, falls, counts, pick(losses, rate.loss), pick(there, rate.there),
        fresh & ~mark, steps,
    )  # fmt: skip


def welch(a: Array, b: Array) -> Array:
    """The p-value of Welch's test that the mean of `a` is greater than that of `b`.

    Args:
        a: [N], N from 2 on.
        b: [M], M from 2 on.

    >>> round(float(welch(jnp.array([2.0, 3.0, 4.0]), jnp.array([1.0, 2.0, 3.0]))), 3)
    0.144
    """
    va, vb = jnp.var(a, ddof=1) / a.size, jnp.var(b, ddof=1) / b.size
    safe = jnp.maximum(va + vb, jnp.finfo(a.dtype).tiny)
    t = (jnp.mean(a) - jnp.mean(b)) / jnp.sqrt(safe)
    freedom = safe**2 / jnp.maximum(
        va**2 / (a.size - 1) + vb**2 / (b.size - 1), jnp.finfo(a.dtype).tiny
    )
    half = betainc(freedom / 2, jnp.asarray(0.5, a.dtype), freedom / (freedom + t**2)) / 2
    return jnp.where(t > 0, half, 1 - half)
