"""Elastic weight consolidation as the release of MagMax has it."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories.leaves import shared
from jaxmerge.continual.methods.ewc import label_gradient
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, Pattern, Share, methods
from jaxmerge.numerics.fisher import batch_squares


@methods.register
def ewc_magmax(
    strength: NonNegative = 1e6,
    decay: Share = 0.5,
    labels: Literal["predicted", "sampled"] = "predicted",
    running: bool = True,
    batch: Count = 8,
    examples: Count = 10**9,
    leaves: Pattern = ".*",
) -> Method:
    """The EWC that MagMax is compared with: an average over tasks, of running sums of gradients.

    Formula: loss + (strength / 2) sum_j F_j (theta_j - theta*_j)^2, theta* the last task's end,

        F <- decay F + (1 - decay) mean_b G_b^2,    G_b = g_1 + ... + g_b

    with g_b the gradient of the mean log-probability of the labels over batch b: the release never
    zeroes its gradients, so that what it squares is their running sum.

    Args:
        strength: factor of the penalty, 0 or more.
        decay: weight of the earlier tasks in F, in [0, 1].
        labels: "predicted" the most probable ones, or drawn from the model ("sampled").
        running: False squares the gradient of every example by itself, averaged over them.
        batch: examples of a gradient; read with ``running`` only.
        examples: of a task, the first so many of `Border.read`.
        leaves: regular expression of the leaves that are held.

    Memory: 2 models, and 2 more at the end of a task.

    Source: Marczak et al., MagMax, ECCV 2024, and its release; Kirkpatrick et al., PNAS 2017.

    >>> ewc_magmax(examples=32, running=False)
    ewc_magmax(running=False, examples=32)
    """
    size = batch if running else 1

    def init(model, params, batch, stored):
        own = shared(model, params, leaves)
        return {"anchor": own, "importance": jax.tree.map(jnp.zeros_like, own)}

    def loss(model, step):
        anchor, importance = step.memory["anchor"], step.memory["importance"]
        pull = lambda n: jnp.sum(importance[n] * (step.params[n] - anchor[n]) ** 2)
        return 0.5 * strength * sum(pull(n) for n in anchor)

    def end(model, params, memory, border):
        own = {n: params[n] for n in memory["anchor"]}
        gradient = label_gradient(model, params, own, border, labels)
        total, count = batch_squares(gradient, border.read(examples), size, border.key, running)
        mix = lambda old, new: decay * old + (1 - decay) * new / jnp.maximum(count, 1)
        return params, {"anchor": own, "importance": jax.tree.map(mix, memory["importance"], total)}

    return Method(init=init, loss=loss, end=end)
