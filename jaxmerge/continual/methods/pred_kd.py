"""Prediction distillation on a sigmoid classifier."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual import columns
from jaxmerge.continual.methods.lwf import keep_last, remember_shared, teacher_of, weighted_mean
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import NonNegative, methods


@methods.register
def pred_kd(strength: NonNegative = 1.0) -> Method:
    """PredKD (LwF.MC): one binary cross-entropy, its targets for old classes the last model's.

    Formula: the objective becomes mean over batch and columns seen so far of
    softplus(z_c) - y_c z_c, where y is one-hot; for old columns y_c = sigmoid(z_last,c).

    Args:
        strength: 1 as the authors have it; other values put y + strength (sigmoid(z_last) - y) in
            the place of old targets, 0 is the plain sigmoid classifier.

    Memory: 1 model, and one more forward pass a step.

    Source: Smith et al., A Closer Look at Rehearsal-Free Continual Learning, CVPR-W 2023;
    shaunak27/data-free-continual-learning, learner LWF_MC (no softmax, no temperature).

    Differs:
        Nothing known at strength 1; other strengths are a form of **ours**.

    >>> pred_kd()
    pred_kd()
    """

    def objective(out, batch, info, task):
        return columns.sigmoid(out.logits, batch.targets, columns.seen(info, task))

    def loss(model, step):  # linear in the targets, so that replacing them is adding this
        z, old = step.outputs.logits, columns.old(step.info, step.task)
        hot = jax.nn.one_hot(step.batch.targets, z.shape[-1], dtype=z.dtype)
        moved = jnp.where(old, jax.nn.sigmoid(teacher_of(model, step).logits) - hot, 0)
        count = jnp.sum(columns.seen(step.info, step.task))
        return -strength * weighted_mean(jnp.sum(moved * z, -1) / count, step.batch.weight)

    return Method(init=remember_shared, objective=objective, loss=loss, end=keep_last)
