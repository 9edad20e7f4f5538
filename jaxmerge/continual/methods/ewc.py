"""Elastic weight consolidation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual import columns
from jaxmerge.continual.memories import anchor
from jaxmerge.continual.memories.leaves import shared
from jaxmerge.continual.records import Batch, Border, Method, Model
from jaxmerge.continual.registry import Count, NonNegative, Pattern, methods
from jaxmerge.core.types import Array, Leaves
from jaxmerge.numerics.fisher import model_labels

Labels = Literal["predicted", "data", "sampled", "expected"]


@methods.register
def ewc(
    strength: NonNegative = 100.0,
    labels: Labels = "predicted",
    slots: Literal["each", "sum"] = "each",
    batch: Count = 1,
    examples: Count = 1024,
    loss: Literal["objective", "sigmoid"] = "objective",
    leaves: Pattern = ".*",
) -> Method:
    """Elastic weight consolidation: weights that matter for earlier tasks are held.

    Formula: loss + strength sum_k sum_j I_kj (theta_j - theta*_kj)^2 over earlier tasks k. There is
    no factor 1/2. After task k, over batches b of n_b examples,

        I_k = sum_b n_b g_b^2 / number of batches,   g_b the gradient of the batch's mean loss

    which for batches of one is the diagonal of the Fisher information.

    ====================================  ========================================================
    as in                                 arguments
    ====================================  ========================================================
    GT-RIPL's EWC                         the defaults (importance of single images on MNIST)
    GT-RIPL's online EWC                  ``slots="sum"``
    the rehearsal-free paper's EWC        ``labels="data", slots="sum", loss="sigmoid",
                                          batch=..., leaves="^(?!head/)"`` beside `pred_kd`
    Kirkpatrick et al., eq. 3             ``labels="expected"``, strength lambda / 2
    ====================================  ========================================================

    Args:
        strength: factor of the penalty, 0 or more.
        labels: of the gradient: "predicted" the most probable one; "data" the true one (the
            empirical Fisher information); "sampled" one drawn from the model; "expected" the
            expectation over all the model's labels, one backward pass a class, for ``batch=1``.
        slots: "each": a pull of every task towards its own end; "sum": one pull towards the last
            end with the importances summed (no decay).
        batch: examples of a gradient that is squared. Larger ones make I smaller: it sets what a
            published strength means.
        examples: of a task, the first so many of `Border.read`.
        loss: "objective", or "sigmoid": binary cross-entropy over the task's own columns.
        leaves: regular expression of the leaves that are held.

    Memory: 2 models, for a slot a task too (see `memories.anchor`).

    Source: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017;
    GT-RIPL/Continual-Learning-Benchmark, ``regularization.py``; Smith et al., A Closer Look at
    Rehearsal-Free Continual Learning, CVPR-W 2023, ``learners/kd.py``.

    Differs:
        What labels the model gives is read off the objective: the probability of label c is
        exp(-objective with target c), which respects columns that are masked.

    >>> ewc(10, slots="sum")
    ewc(strength=10.0, slots='sum')
    """
    if labels == "expected" and batch != 1:
        raise ValueError(f"labels='expected' squares gradients of single examples: batch {batch}.")
    if loss == "sigmoid" and labels != "data":
        raise ValueError(f"loss='sigmoid' has the data's labels: labels is 'data', got {labels!r}.")

    def init(model, params, batch, stored):
        return anchor.none(shared(model, params, leaves))

    def pull(model, step):
        return strength * anchor.pull(step.memory, step.params)

    def end(model, params, memory, border):
        own = {n: params[n] for n in memory.weight}
        gradient = label_gradient(model, params, own, border, labels, loss)
        importance = anchor.squares(gradient, border.read(examples), batch, border.key)
        join = anchor.add if slots == "each" else anchor.move
        return params, join(memory, importance, params)

    return Method(init=init, loss=pull, end=end)


def label_gradient(
    model: Model,
    params: Leaves,
    own: Leaves,
    border: Border,
    labels: Labels,
    loss: str = "objective",
) -> Callable[[Batch, Array], Leaves]:
    """``(batch, key) -> gradient of the batch's mean loss`` with respect to the leaves `own`."""

    def outputs(own, batch):
        return model.apply({**params, **own}, batch.inputs, border.index)

    def objective(out, batch):
        if loss == "sigmoid":
            return columns.sigmoid(
                out.logits, batch.targets, columns.own(border.info, border.index)
            )
        return border.objective(out, batch)

    def mean(own, batch):
        losses = objective(outputs(own, batch), batch)
        return jnp.sum(batch.weight * losses) / jnp.maximum(jnp.sum(batch.weight), 1)

    def gradient(batch, key):
        if labels == "data":
            return jax.grad(mean)(own, batch)
        logs = log_probabilities(border.objective, outputs(own, batch), batch)  # [C, B]
        if labels != "expected":
            drawn = model_labels(labels, logs.T, key)
            return jax.grad(mean)(own, batch._replace(targets=drawn.astype(batch.targets.dtype)))
        label = lambda c: batch._replace(targets=jnp.full_like(batch.targets, c))
        chance = jnp.exp(logs[:, 0])

        def add(total, c):  # columns that are masked have an infinite objective and no chance
            g = jax.grad(mean)(own, label(c))
            fold = lambda t, g: t + jnp.where(chance[c] > 0, chance[c] * g**2, 0)
            return jax.tree.map(fold, total, g), None

        zero = jax.tree.map(jnp.zeros_like, own)
        total, _ = jax.lax.scan(add, zero, jnp.arange(len(chance)))
        return jax.tree.map(jnp.sqrt, total)  # `squares` squares it

    return gradient


def log_probabilities(objective, outputs, batch: Batch) -> Array:
    """[C, B]: the log-probability of every label, as the objective has it."""
    classes = jnp.arange(outputs.logits.shape[-1])
    return jax.vmap(
        lambda c: -objective(outputs, batch._replace(targets=jnp.full_like(batch.targets, c)))
    )(classes)
