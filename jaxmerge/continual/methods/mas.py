"""Memory aware synapses."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual import columns
from jaxmerge.continual.memories import anchor
from jaxmerge.continual.memories.leaves import shared
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, Pattern, methods


@methods.register
def mas(
    strength: NonNegative = 1.0,
    norm: Literal["l2", "l1", "vector", "mean"] = "l2",
    batch: Count = 1,
    examples: Count = 1024,
    outputs: Literal["own", "all"] = "own",
    leaves: Pattern = ".*",
) -> Method:
    """Memory aware synapses: weights that move the length of the outputs are held.

    Formula: loss + strength sum_j Omega_j (theta_j - theta*_j)^2, theta* the weights at the end of
    the last task. After a task, over batches of its examples (labels are not read),

        g = |d/dtheta sum over the batch of |F(x)|^2|,   Omega <- (Omega j n + g) / ((j + 1) n)

    for batch j = 0, 1, .. of n; the result is added to the Omega of earlier tasks. F are the
    logits of the task.

    Args:
        strength: lambda; there is no factor 1/2.
        norm: "l2" |F|^2; "l1" sum |F|; "vector" the gradient of every output by itself, absolute
            values summed; "mean" the mean over batch and outputs of F^2 (GT-RIPL's MAS).
        batch: 1, the paper's mean over examples; more as the authors' notebook has it (200): the
            absolute value is taken after the batch is summed, which is smaller.
        examples: of a task, the first so many of `Border.read`.
        outputs: "own" the logits of the task's columns (the authors' head of the task); "all" a
            form of **ours** for streams without columns of tasks.
        leaves: regular expression of the leaves that are held; the authors' new head of each task
            has no Omega.

    Memory: 2 models.

    Source: Aljundi et al., Memory Aware Synapses, ECCV 2018, eq. 2 to 4;
    rahafaljundi/MAS-Memory-Aware-Synapses, ``MAS_based_Training.py`` (MAS_Omega_Acuumelation).

    Differs:
        Omega of a task stays that of its end. The notebook's other form (MAS_sequence) computes
        those of all earlier tasks anew at the newest weights, which needs their examples. Its
        optimiser decays weights by their sign; decay is the optimiser's business here. It reads all
        examples of a task, not the first `examples`, and keeps the epoch that is best on test data.

    >>> mas(strength=2, batch=200)
    mas(strength=2.0, batch=200)
    """

    def init(model, params, batch, stored):
        return anchor.none(shared(model, params, leaves))

    def loss(model, step):
        return strength * anchor.pull(step.memory, step.params)

    def end(model, params, memory, border):
        own = {n: params[n] for n in memory.weight}
        read = border.read(examples)

        def total(own, batch, which=None):
            logits = model.apply({**params, **own}, batch.inputs, border.index).logits
            known = jnp.ones(logits.shape[-1], bool)
            known = columns.own(border.info, border.index) if outputs == "own" else known
            f = jnp.where(known, logits, 0) * batch.weight[:, None]
            if norm == "vector":
                return jnp.sum(f[:, which])
            size = jnp.sum(jnp.abs(f) if norm == "l1" else f**2)
            return size / jnp.sum(known) if norm == "mean" else size

        def gradient(batch):
            if norm != "vector":
                return jax.grad(total)(own, batch)
            shape = jax.eval_shape(lambda: model.apply(params, batch.inputs, 0).logits).shape

            def add(sums, c):
                g = jax.grad(total)(own, batch, c)
                return jax.tree.map(lambda t, g: t + jnp.abs(g), sums, g), None

            zero = jax.tree.map(jnp.zeros_like, own)
            return jax.lax.scan(add, zero, jnp.arange(shape[-1]))[0]

        return params, anchor.move(memory, anchor.magnitudes(gradient, read, batch), params)

    return Method(init=init, loss=loss, end=end)
