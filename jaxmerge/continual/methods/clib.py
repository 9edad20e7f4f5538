"""Training on a memory alone, which keeps what helps, at a rate that follows the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import importance
from jaxmerge.continual.memories import rate as rates
from jaxmerge.continual.methods.er import STREAM
from jaxmerge.continual.parts import trained_leaves, with_trained
from jaxmerge.continual.records import Batch, Method, Step
from jaxmerge.continual.registry import Count, Share, methods


class Kept(NamedTuple):
    """Memory of `clib` and `pl_fms`: the examples with their importances, and the learning rate."""

    examples: importance.Importance
    rate: rates.Rate


@methods.register
def clib(
    size: Count = 500,
    replay: Count | None = None,
    decay: Share = 0.9,
    period: Count = 1,
    adaptive: bool = True,
) -> Method:
    """CLIB: every batch enters a memory with balanced classes, and only the memory is trained on.

    Formula: loss = mean of the objective over examples drawn from the memory, of the batch none.
    The memory gives up the example of the largest class that lowered the mean loss least
    (`jaxmerge.continual.memories.importance`); the learning rate follows the fall of that loss
    (`jaxmerge.continual.memories.rate`).

    Args:
        size: examples in the memory.
        replay: examples a step; None: as many as the batch has.
        decay: of the importances.
        period: steps from one update of the importances to the next.
        adaptive: False: the optimiser's rate as it is.

    With more classes than places some classes, the largest too, may have no example in the memory.

    Memory: `size` examples. An update of importances is a forward pass of all of them.

    Source: Koh et al., Online Continual Learning on Class Incremental Blurry Task Configuration
    with Anytime Inference, ICLR 2022, section 4; naver-ai/i-Blurry.

    Differs:
        A step takes in a batch of the stream and is one update; the authors count updates a sample.
        The head has its columns from the start, and no moments of the optimiser are reset where a
        class is new. Memory and rate are compared with the authors' code, whole runs are not.

    >>> clib(size=2000)
    clib(size=2000)
    """
    none = lambda memory, step: jnp.zeros_like(step.batch.weight)
    return from_memory(size, replay, decay, period, adaptive, none)


def from_memory(
    size: int, replay: int | None, decay: float, period: int, adaptive: bool, stream: Any
) -> Method:
    """What `clib` and `pl_fms` share.

    Args:
        stream: ``(examples, step) -> [B]``, 1 where an example of the batch is trained on itself;
            the memory fills the rest of `replay`.
    """

    def init(model, params, batch, stored):
        classes = jax.eval_shape(lambda: model.apply(params, batch.inputs, 0).logits).shape[-1]
        rows = batch._replace(inputs=stored)
        kind = jnp.result_type(batch.weight)
        return Kept(importance.empty(size, classes, rows, kind), rates.start(size, kind))

    def drawn(step: Step) -> tuple[Any, ...]:
        """The memory with the batch in it, what is drawn, which of the batch trains itself."""
        rows = step.batch._replace(inputs=step.stored)
        info = step.info if isinstance(step.info, dict) else {}
        memory, places = importance.insert(
            step.memory.examples, rows, step.batch.targets, step.batch.weight, info.get("level")
        )
        many = replay or step.batch.weight.shape[0]
        batch, weight, slots = importance.draw(memory, step.key, many)
        own = jnp.where(step.batch.weight > 0, stream(memory, step), 0)
        weight = weight * (jnp.arange(weight.size) < many - jnp.sum(own))
        return memory, places, batch, weight.astype(step.batch.weight.dtype), slots, own

    def loss(model, step):
        _, _, batch, weight, _, own = drawn(step)
        one, two = jax.random.split(jax.random.fold_in(step.key, 1))
        inputs = step.view(batch.inputs, batch.task, one)
        out = model.learn(step.params, inputs, step.task, two)
        again = step.objective(out, batch._replace(inputs=inputs, weight=weight))
        new = jnp.where(step.batch.weight > 0, step.objective(step.outputs, step.batch), 0)
        count = jnp.sum(weight) + jnp.sum(own)
        total = jnp.sum(jnp.where(weight > 0, again, 0)) + jnp.sum(own * new)
        mean = jnp.sum(step.batch.weight * new) / jnp.sum(step.batch.weight)
        return total / count - mean

    def update(model, step, updates):
        if not adaptive:
            return updates, step.memory
        by = step.memory.rate.now
        return jax.tree.map(lambda u: u * by.astype(u.dtype), updates), step.memory

    def observe(model, step):
        memory, places, _, weight, slots, _ = drawn(step)
        memory = importance.use(memory, slots, weight)
        written = jnp.zeros(size, bool).at[places].set(True, mode="drop")
        due = (step.count + 1) % period == 0

        def weighed(_):
            old = trained_leaves(model, step.params, step.task)
            new = {n: p + step.updates[n] for n, p in old.items()}
            params = with_trained(model, step.params, new, step.task)
            rows: Batch = memory.rows
            inputs = step.view(rows.inputs, rows.task, None)
            out = model.apply(params, inputs, step.task)
            losses = step.objective(out, rows._replace(inputs=inputs))
            losses = jnp.where(memory.label >= 0, losses, 0).astype(memory.value.dtype)
            rate = rates.advance(step.memory.rate, losses, memory.label >= 0, written)
            return Kept(importance.update(memory, losses, decay), rate)

        later = step.memory.rate._replace(fresh=step.memory.rate.fresh | written)
        return jax.lax.cond(due, weighed, lambda _: Kept(memory, later), None)

    return Method(init=init, loss=loss, update=update, observe=observe, replaces=(STREAM,))
