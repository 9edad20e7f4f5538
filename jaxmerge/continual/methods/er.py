"""Experience replay."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual import buffers
from jaxmerge.continual.records import Method, Model, Outputs, Step
from jaxmerge.continual.registry import Count, NonNegative, methods
from jaxmerge.core.types import Array

Select = Literal["reservoir", "balanced"]


@methods.register
def er(
    size: Count = 200,
    replay: Count | None = None,
    strength: NonNegative | None = None,
    select: Select = "reservoir",
) -> Method:
    """Experience replay: every batch is joined by as many examples from a buffer.

    Formula: loss = mean over stream and replay examples together of the task's objective, so that
    each part counts by its number. The buffer is filled after the step, without task borders.

    Args:
        size: examples in the buffer.
        replay: examples replayed a step; None: as many as the batch has.
        strength: None as the authors have it; a number is a form of **ours**: the mean over the
            replay batch times strength is added to the mean over the stream's batch.
        select: "reservoir", or "balanced" with equal shares of classes (labels are integers).

    Memory: `size` examples as they are stored (a byte a pixel stays a byte).

    Source: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, algorithm 1;
    aimagelab/mammoth, ``models/er.py``.

    Differs:
        The stream's batch and the replay batch pass through the model one after the other; batch
        statistics, where a model has them, are those of each.

    >>> er(size=500)
    er(size=500)
    """

    def loss(model, step):
        batch, out = replayed(model, step, step.key, replay)
        again = jnp.sum(batch.weight * step.objective(out, batch))
        count = jnp.sum(batch.weight)
        if strength is not None:
            return strength * again / jnp.maximum(count, 1)
        new, n = (
            step.batch.weight * step.objective(step.outputs, step.batch),
            jnp.sum(step.batch.weight),
        )
        return (jnp.sum(new) + again) / (n + count) - jnp.sum(new) / n

    def init(model, params, batch, stored):
        return buffers.empty(size, batch._replace(inputs=stored))

    def observe(model, step):
        return remember(step, step.batch._replace(inputs=step.stored), select)

    return Method(init=init, loss=loss, observe=observe)


def remember(step: Step, rows: Any, select: Select = "reservoir") -> Any:
    """The buffer after a step: rows of its batch are selected and written."""
    memory, weight = step.memory, step.batch.weight
    if select == "reservoir":
        return buffers.reservoir(memory, rows, weight, step.key)
    labels, classes = step.batch.targets, step.outputs.logits.shape[-1]
    return buffers.balanced(memory, rows, weight, step.key, labels, memory["rows"].targets, classes)


def replayed(model: Model, step: Step, key: Array, count: int | None) -> tuple[Any, Outputs]:
    """A replay batch, with weight 0 beyond the number of rows, and what the model says of it."""
    one, two, three = jax.random.split(key, 3)
    batch, weight = buffers.draw_distinct(step.memory, one, count or step.batch.weight.shape[0])
    inputs = step.view(batch.inputs, batch.task, two)
    batch = batch._replace(inputs=inputs, weight=weight.astype(step.batch.weight.dtype))
    return batch, model.learn(step.params, inputs, step.task, three)
