"""Feature distillation."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmerge.continual.methods.lwf import keep_last, remember_shared, teacher_of, weighted_mean
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import NonNegative, methods


@methods.register
def feat_kd(strength: NonNegative = 1.0, first: bool = True, unit: bool = False) -> Method:
    """FeatKD: the features stay where the last model put them.

    Formula: loss + strength mean over batch and features of (f - f_last)^2.

    Args:
        strength: mu.
        first: whether the first task is held to theta_0's features, as in the authors' release,
            which starts from pretrained weights.
        unit: a form of **ours**: features of length 1, and the squared distance summed over them.

    Memory: 1 model, and one more forward pass a step.

    Source: Smith et al., A Closer Look at Rehearsal-Free Continual Learning, CVPR-W 2023;
    shaunak27/data-free-continual-learning, learner LWF_MC_FEATKD.

    Differs:
        The authors' learner is PredKD and FeatKD in one; here it is FeatKD alone, on whatever
        objective, and `pred_kd` beside it makes theirs.

    >>> feat_kd(5)
    feat_kd(strength=5.0)
    """

    def loss(model, step):
        now, last = step.outputs.features, teacher_of(model, step).features
        if unit:
            distances = jnp.sum((_unit(now) - _unit(last)) ** 2, -1)
        else:
            distances = jnp.mean((now - last) ** 2, -1)
        on = 1 if first else step.task > 0
        return strength * on * weighted_mean(distances, step.batch.weight)

    return Method(init=remember_shared, loss=loss, end=keep_last)


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
