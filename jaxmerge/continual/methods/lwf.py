"""Learning without forgetting."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual import columns
from jaxmerge.continual.memories.leaves import shared
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import NonNegative, Positive, methods


@methods.register
def lwf(
    strength: NonNegative = 1.0,
    temperature: Positive = 2.0,
    heads: Literal["each", "joined", "seen"] = "each",
    weighting: Literal["constant", "tasks"] = "constant",
) -> Method:
    """Learning without forgetting: on new data, old heads answer as the last model does.

    Formula: loss + strength sum_k mean over the batch of -sum_c p'_c log q'_c over earlier tasks k,
    c running over the columns of task k, p' = softmax(z_last / T), q' = softmax(z / T). No
    distillation in the first task.

    Args:
        strength: factor of the distillation, 0 or more.
        temperature: T.
        heads: "each": a softmax and a term for every earlier task, as the authors have it;
            "joined": a form of **ours** (and of MagMax's release, strength 0.3), one softmax over
            the columns of all earlier tasks; "seen": the same for p', while q' is over the columns
            of this task too, where p' is zero.
        weighting: "constant": as above; "tasks": of van de Ven and Tolias, who weigh the loss by
            1 / (t + 1) and the mean distillation of t earlier tasks by t / (t + 1) T^2. Here the
            loss keeps its size and the distillation has the factor strength t T^2: all is t + 1
            times as large, of which Adam sees nothing but its epsilon.

    Memory: 1 model, and one more forward pass a step.

    Source: Li and Hoiem, Learning without Forgetting, ECCV 2016, eq. 1 to 3; van de Ven and Tolias,
    Three scenarios for continual learning, 2019, and their GMvandeVen/continual-learning.

    Differs:
        The authors' code was not at hand; compared with the equations alone. The paper trains the
        new head first, all else frozen; here all leaves train from the first step. It records the
        old answers to all images before training; here the teacher answers each batch as the step
        sees it, which is the same where inputs are not augmented.

    >>> lwf(temperature=1)
    lwf(temperature=1.0)
    """

    def loss(model, step):
        every = columns.table(step.info)
        task = jnp.arange(every.shape[0])[:, None]
        old, met = every & (task < step.task), every & (task <= step.task)
        if heads != "each":
            old, met = (jnp.any(x, axis=0, keepdims=True) for x in (old, met))
        soft = lambda z, over: jax.nn.log_softmax(jnp.where(over[:, None], z / temperature, -1e30))
        teacher = soft(teacher_of(model, step).logits, old)
        student = soft(step.outputs.logits, met if heads == "seen" else old)
        losses = -jnp.sum(jnp.where(old[:, None], jnp.exp(teacher) * student, 0), (0, 2))
        by_tasks = temperature**2 * (1 if heads == "each" else step.task)
        factor = strength * (by_tasks if weighting == "tasks" else 1)
        return factor * weighted_mean(losses, step.batch.weight)

    return Method(init=remember_shared, loss=loss, end=keep_last)


def remember_shared(model, params, batch, stored):
    """Memory of a distillation: the weights that tasks share (earlier slots do not move)."""
    return shared(model, params, none=True)


def keep_last(model, params, memory, border):
    """After a task the teacher is its model."""
    return params, {n: params[n] for n in memory}


def teacher_of(model, step):
    """What the last model says of the batch."""
    before = jnp.maximum(step.task - 1, 0)
    params = {**step.params, **step.memory}
    return jax.lax.stop_gradient(model.apply(params, step.batch.inputs, before))


def weighted_mean(losses, weight):
    return jnp.sum(weight * losses) / jnp.sum(weight)
