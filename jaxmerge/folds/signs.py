"""Folds that elect a sign for every entry: the consensus half of TIES.

TIES is a constant-memory fold: remember the sum and the count of the positive and of the negative
entries; the sign of the total elects; divide.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.core.hyperparameters import model_count, per_model
from jaxmerge.core.ranges import Numbers
from jaxmerge.core.registry import register
from jaxmerge.core.types import Array, Measure, Merge, zeros
from jaxmerge.numerics.measures import square_norm

__all__ = ["disjoint_mean"]


class Signed(NamedTuple):
    """What was seen of each sign at every entry of a leaf; None where it is not needed.

    Attributes:
        pos, neg: sums of the positive and of the negative entries.
        counts: how many, uint16: positive entries + 256 x negative entries.
        w_pos, w_neg: the sums of their weights, where models have weights.
        top, bottom: the largest and the smallest entry.
        vote: the balance of the votes, where the total does not elect.
    """

    pos: Array
    neg: Array
    counts: Array | None = None
    w_pos: Array | None = None
    w_neg: Array | None = None
    top: Array | None = None
    bottom: Array | None = None
    vote: Array | None = None


@register
def disjoint_mean(
    merge: Literal["mean", "sum", "max"] = "mean",
    weights: Numbers | None = None,
    elect: Literal["mass", "count", "fraction"] = "mass",
    tie: Literal["majority", "positive"] = "majority",
) -> Merge:
    """Elect a sign for every entry, then average (or sum, or take the largest of) those that agree.

    Formula: s[p] = sign(sum_t w_t tau_t[p]); tau*[p] = sum_{t in A} w_t tau_t[p] / sum_{t in A} w_t
    over the models that agree, A = {t : sign(w_t tau_t[p]) = s[p]}.

    Args:
        merge: how the agreeing entries meet: their (weighted) mean, their sum, or the entry of
            largest magnitude.
        weights: a number for each model, or one for all; None for equal weights.
        elect: "mass" takes the sign of the sum (the paper); "count" the sign that more models
            have; "fraction" lets each model vote with the share of its squared norm that the entry
            holds, sign(tau) tau^2 / |tau|^2, so that large models do not outvote small ones.
        tie: where the votes cancel exactly, "majority" takes the sign that wins at most entries of
            the whole model (the paper), "positive" the sign +.

    Memory: 2.5 x the model for "mean" with equal weights, 4 x with weights, 2 x for "sum", 4 x for
    "max"; "count" and "fraction" add up to 1 x.

    Source: Yadav et al., TIES-Merging, NeurIPS 2023, section 3, steps 2 and 3.  Differs: the sum is
    taken as positive part plus negative part, so the order of models does not matter to the sign.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([3.0, 1.0])}, {"w": np.array([-1.0, 2.0])}]
        >>> jm.merge(jm.disjoint_mean(), {"w": np.zeros(2)}, models)["w"]
        array([3. , 1.5])
    """
    equal = weights is None

    def init(leaf):
        mean, largest = merge == "mean", merge == "max"
        return Signed(
            pos=zeros(leaf),
            neg=zeros(leaf),
            counts=zeros(leaf, jnp.uint16) if mean and equal else None,
            w_pos=zeros(leaf) if mean and not equal else None,
            w_neg=zeros(leaf) if mean and not equal else None,
            top=zeros(leaf) if largest else None,
            bottom=zeros(leaf) if largest else None,
            vote=None if elect == "mass" else zeros(leaf, jnp.int16 if elect == "count" else None),
        )

    def update(s, x, ctx):
        w = None if weights is None else jnp.asarray(per_model(weights, ctx), x.dtype)
        x = x if equal else w * x
        up, down = x > 0, x < 0
        pos, neg = jnp.where(up, x, 0), jnp.where(down, x, 0)
        new = s._replace(pos=s.pos + pos, neg=s.neg + neg)
        if merge == "mean" and equal:
            one = jnp.where(up, jnp.uint16(1), jnp.where(down, jnp.uint16(256), jnp.uint16(0)))
            new = new._replace(counts=s.counts + one)
        if merge == "mean" and w is not None:
            w_pos, w_neg = s.w_pos + jnp.where(up, w, 0), s.w_neg + jnp.where(down, w, 0)
            new = new._replace(w_pos=w_pos, w_neg=w_neg)
        if merge == "max":
            new = new._replace(top=jnp.maximum(s.top, pos), bottom=jnp.minimum(s.bottom, neg))
        if elect == "count":
            new = new._replace(vote=s.vote + up.astype(jnp.int16) - down.astype(jnp.int16))
        if elect == "fraction":
            norm = ctx.measured if w is None else w * w * ctx.measured
            share = x * jnp.abs(x) / jnp.maximum(norm, jnp.finfo(x.dtype).tiny)
            new = new._replace(vote=s.vote + share)
        return new

    def combine(a, b):
        new = jax.tree.map(jnp.add, a, b)
        if merge == "max":
            new = new._replace(
                top=jnp.maximum(a.top, b.top), bottom=jnp.minimum(a.bottom, b.bottom)
            )
        return new

    def finalize(s, ctx):
        up, down = (s.top, s.bottom) if merge == "max" else (s.pos, s.neg)
        if merge == "mean":
            n_pos, n_neg = (s.counts & 255, s.counts >> 8) if equal else (s.w_pos, s.w_neg)
            up, down = up / _nonzero(n_pos), down / _nonzero(n_neg)
        total = votes(s)
        plus = total >= 0 if tie == "positive" else (total > 0) | ((total == 0) & ctx.measured)
        return jnp.where(plus, up, down)

    return Merge(
        init,
        update,
        finalize,
        combine,
        measure=square_norm() if elect == "fraction" else None,
        closing=_majority() if tie == "majority" else None,
        models=(1, model_count(weights) or 255),
        elementwise=True,
    )


def votes(s: Signed) -> Array:
    """The balance of the votes at every entry."""
    return s.pos + s.neg if s.vote is None else s.vote


def _nonzero(count: Array) -> Array:
    return jnp.where(count == 0, jnp.ones_like(count), count)


def _majority() -> Measure:
    """Whether + wins at most entries of the whole model: how TIES breaks an exact tie."""

    def observe(cell, summary, turn):
        return jnp.sum(jnp.sign(votes(cell)), dtype=jnp.int32)

    return Measure(lambda: None, observe, lambda summary, total, turn: total >= 0, by_entry=True)
