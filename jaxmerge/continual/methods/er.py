"""Experience replay."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual import buffers
from jaxmerge.continual.memories import eight_bits, herding
from jaxmerge.continual.records import Batch, Method, Model, Outputs, Step
from jaxmerge.continual.registry import Count, NonNegative, methods
from jaxmerge.core.types import Array

Select = Literal["reservoir", "balanced"]
STREAM = "the mean over the stream's batch"  # what `Method.replaces` says of one


@methods.register
def er(
    size: Count = 200,
    replay: Count | None = None,
    strength: NonNegative | None = None,
    select: Literal["reservoir", "balanced", "herding"] = "reservoir",
    store: Literal["inputs", "features"] = "inputs",
    examples: Count = 10_000,
) -> Method:
    """Experience replay: every batch is joined by as many examples from a buffer.

    Formula: loss = mean over stream and replay examples together of the task's objective, so that
    each part counts by its number. The buffer is filled after the step, without task borders.

    Args:
        size: examples in the buffer.
        replay: examples replayed a step; None: as many as the batch has.
        strength: None as the authors have it; a number is a form of **ours**: the mean over the
            replay batch times strength is added to the mean over the stream's batch.
        select: "reservoir", or with equal shares of classes (labels are integers) "balanced", or
            iCaRL's "herding": chosen at the end of a task, by the features of then; of a class
            that comes back the old and the new examples take turns.
        store: "inputs" as they are stored; "features" a form of **ours**: what the head reads, in a
            byte each, as they were when the example was met; replay then trains the head alone.
        examples: of a task, what herding chooses from: the first so many of `Border.read`.

    Memory: `size` examples as they are stored (a byte a pixel stays a byte), or d + 4 bytes each
    for d features; herding reads up to `examples` of a task once more at its end.

    Source: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, 2019, algorithm 1;
    aimagelab/mammoth, ``models/er.py``. Herding: Rebuffi et al., iCaRL, CVPR 2017, algorithm 4.

    Differs:
        The stream's batch and the replay batch pass through the model one after the other; batch
        statistics, where a model has them, are those of each.

    >>> er(size=500)
    er(size=500)
    """
    latent = store == "features"

    def loss(model, step):
        batch, out = (recalled if latent else replayed)(model, step, step.key, replay)
        again = jnp.sum(buffers.weighted(batch.weight, step.objective(out, batch)))
        count = jnp.sum(batch.weight)
        if strength is not None:
            return strength * again / jnp.maximum(count, 1)
        new, n = (
            buffers.weighted(step.batch.weight, step.objective(step.outputs, step.batch)),
            jnp.sum(step.batch.weight),
        )
        return (jnp.sum(new) + again) / (n + count) - jnp.sum(new) / n

    def init(model, params, batch, stored):
        if latent:
            stored = jax.eval_shape(lambda: kept(model, params, batch.inputs, batch.task))
        buffer = buffers.empty(size, batch._replace(inputs=stored))
        return {**buffer, "rank": jnp.full(size, size)} if select == "herding" else buffer

    def kept(model, params, inputs, task):
        if model.from_features is None:
            raise ValueError("er: store='features' needs a model with `from_features`.")
        return eight_bits.packed(model.apply(params, inputs, task).features)

    def observe(model, step):
        inputs = eight_bits.packed(step.outputs.features) if latent else step.stored
        chosen: Select = "balanced" if select == "balanced" else "reservoir"
        return remember(step, step.batch._replace(inputs=inputs), chosen)

    def end(model, params, memory, border):
        read, old = border.read(examples), memory["rows"]
        out = model.apply(params, read.inputs, border.index)
        classes = out.logits.shape[-1]
        rank = herding.ranks(out.features, read.targets, read.weight, classes, size)
        inputs = eight_bits.packed(out.features) if latent else border.stored(examples)
        rows, rank, many = herding.refill(
            size, classes, old, read._replace(inputs=inputs),
            jnp.concatenate([memory["rank"], rank]), jnp.concatenate([old.targets, read.targets]),
        )  # fmt: skip
        return params, {"rows": rows, "met": many, "rank": rank}

    replaces = (STREAM,) if strength is None else ()
    if select == "herding":
        return Method(init=init, loss=loss, end=end, replaces=replaces)
    return Method(init=init, loss=loss, observe=observe, replaces=replaces)


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


def recalled(model: Model, step: Step, key: Array, count: int | None) -> tuple[Batch, Outputs]:
    """A replay batch of features, and what the head says of it."""
    batch, weight = buffers.draw_distinct(step.memory, key, count or step.batch.weight.shape[0])
    assert model.from_features is not None  # `init` has asked
    features = eight_bits.unpacked(batch.inputs, step.outputs.features.dtype)
    batch = batch._replace(inputs=features, weight=weight.astype(step.batch.weight.dtype))
    return batch, model.from_features(step.params, features, step.task)
