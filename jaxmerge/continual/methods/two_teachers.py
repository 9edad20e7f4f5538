"""Distillation from the pre-trained and from the last model at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual import columns
from jaxmerge.continual.methods.lwf import keep_last, remember_shared, teacher_of, weighted_mean
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import NonNegative, Positive, methods


@methods.register
def two_teachers(strength: NonNegative = 1.0, temperature: Positive = 2.0) -> Method:
    """Two frozen teachers, theta_0 and the last model, weighed example by example: a form of ours.

    Formula: loss + strength mean over the batch of sum_k w_k KL(softmax(z_k / T) ||
    softmax(z / T)), k = theta_0, last; w = softmax over the two of the log-probability that each
    gives the true class, z_k their logits over the columns of all tasks so far. In the first task
    both are theta_0.

    Args:
        strength: of the distillation.
        temperature: T.

    Memory: 1 model, and two more forward passes a step.

    Source: the abstract of Zhang et al., MulKI, IEEE TIP 2026 (arXiv 2411.06764), has two such
    teachers and weights for each example; its equations are not established, so that this is
    neither MulKI nor to be published under its name. Towers merged by distillation, as in SAM-CLIP:
    `jaxmerge.continual.distillation`.

    >>> two_teachers(strength=0.5)
    two_teachers(strength=0.5)
    """

    def loss(model, step):
        seen = columns.seen(step.info, step.task)
        soft = lambda z, t: jax.nn.log_softmax(jnp.where(seen, z / t, -1e30))
        base = jax.lax.stop_gradient(model.apply(step.base, step.batch.inputs, 0)).logits
        teachers = jnp.stack([base, teacher_of(model, step).logits])
        true = step.batch.targets[None, :, None]
        right = jnp.take_along_axis(soft(teachers, 1), true, -1)[..., 0]
        share = jax.nn.softmax(right, 0)
        old, new = soft(teachers, temperature), soft(step.outputs.logits, temperature)[None]
        apart = jnp.sum(jnp.where(seen, jnp.exp(old) * (old - new), 0), -1)
        return strength * weighted_mean(jnp.sum(share * apart, 0), step.batch.weight)

    return Method(init=remember_shared, loss=loss, end=keep_last)
