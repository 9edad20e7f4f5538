"""Terms that keep the answers of the last model on the new task's data: LwF, feature distillation.

=========  ==================================================================================
lwf        cross-entropy between the two models' softened probabilities over the columns of
           all earlier tasks, ``-sum_c p'_c log q'_c`` with ``p' = softmax(z_last / T)``
feature    mean squared distance between the two models' unit features
=========  ==================================================================================

The teacher is the model at the end of the task before; in the first task there is none.

Memory: 1 model, and one more forward pass a step.

Sources: Li and Hoiem, Learning without Forgetting, ECCV 2016, eq. 2 (the release of MagMax uses
strength 0.3 and T = 2); Smith et al., A Closer Look at Rehearsal-Free Continual Learning, CVPR-W
2023 (feature distillation).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual.strategy import Term
from jaxmerge.training.learner import head_logits


def lwf(strength: float = 0.3, temperature: float = 2.0) -> Term:
    """Learning without forgetting over the concatenated columns of earlier tasks."""

    def loss(view, learner):
        last = head_logits(
            learner.features(view.memory["teacher"], view.inputs), learner.head, learner.scale
        )
        old = view.memory["old"]
        soft = lambda z: jnp.where(old[None], z / temperature, -jnp.inf)
        target = jax.nn.softmax(soft(jax.lax.stop_gradient(last)))
        # before the first task no column is old: keep the unused branch finite
        log = jax.nn.log_softmax(jnp.where(jnp.any(old), soft(view.logits), view.logits))
        target = jnp.where(old[None], target, 0)
        log = jnp.where(old[None], log, 0)
        return strength * jnp.mean(-jnp.sum(target * log, axis=-1))

    return Term(_start, loss, _end)


def feature(strength: float = 1.0) -> Term:
    """Keep the unit features where the last model put them."""

    def loss(view, learner):
        last = jax.lax.stop_gradient(learner.features(view.memory["teacher"], view.inputs))
        distance = jnp.sum((_unit(view.features) - _unit(last)) ** 2, axis=-1)
        return strength * jnp.any(view.memory["old"]) * jnp.mean(distance)

    return Term(_start, loss, _end)


def _start(learner):
    teacher = {n: jnp.array(p) for n, p in learner.params.items()}
    return {"teacher": teacher, "old": jnp.zeros(learner.head.shape[1], bool)}


def _end(memory, learner, params, task, rows):
    teacher = {n: jnp.array(p) for n, p in params.items()}
    return {"teacher": teacher, "old": memory["old"].at[jnp.asarray(task.columns)].set(True)}


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
