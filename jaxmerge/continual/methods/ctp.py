"""Compatible momentum contrast with topology preservation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.continual.contrast import unit
from jaxmerge.continual.memories.leaves import shared
from jaxmerge.continual.problems import cross_entropy
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, Positive, Share, methods
from jaxmerge.core.types import Array, Leaves


class Momentum(NamedTuple):
    """Memory of `ctp`: two models, and features of earlier batches, the newest where `at` is next.

    Attributes:
        averaged, reference: leaves of the momentum model and of the model after the last task.
        images, texts: [Q, p], rows of length 1; at: int32.
    """

    averaged: Leaves
    reference: Leaves
    images: Array
    texts: Array
    at: Array


@methods.register
def ctp(
    momentum: Share = 0.995,
    later: Share = 0.9,
    queue: Count = 1024,
    temperature: Positive = 0.07,
    topology: NonNegative = 1.0,
) -> Method:
    """CTP: a teacher that averages three models, and the likeness of a batch's pairs preserved.

    Formula: W the weights, W_old those after the last task, M the teacher, updated before a step's
    loss and started as W in each task:

        M <- m M + (1 - m) W                                  in the first task, m = `momentum`
        M <- m M + (1 - m) / 2 W + (1 - m) / 2 W_old          later, m = `later`

    To the objective (`pairs`) are added the contrast of an image with the teacher's texts of the
    batch and of a queue, and of a text with the teacher's images, averaged; and from the second
    task on KL(old || new), summed over rows, over the batch, of the softmax of similarities / t of
    the model after the last task: image to text and text to image averaged, image to image and
    text to text averaged (there the diagonal is -1000 before the division). A model that gives
    ``aux["tokens"]`` [B, L, V] has besides the mean over masked tokens (targets [B, L], -100 where
    not masked) of their cross-entropy and of that against the teacher's softmax.

    Args:
        momentum, later: m.
        queue: Q, features of earlier batches; a multiple of the batch.
        temperature: t.
        topology: weight of the KL; 1 in the code.

    The model gives ``aux["image"]`` and ``aux["text"]`` [B, p]. The queue starts as random rows of
    length 1 and survives the borders of tasks. The average alone is the merge `three_way_ema`.

    Memory: 2 models and 2 Q p numbers; two more forward passes a step.

    Source: Zhu et al., CTP: Towards Vision-Language Continual Pretraining via Compatible Momentum
    Contrast and Topology Preservation, ICCV 2023, eq. 3 to 9; KevinLight831/CTP.

    >>> ctp(queue=64)
    ctp(queue=64)
    """

    def init(model, params, batch, stored):
        out = jax.eval_shape(lambda: model.apply(params, batch.inputs, 0))
        if not isinstance(out.aux, dict) or not {"image", "text"} <= set(out.aux):
            raise ValueError("ctp: the model's outputs need aux['image'] and aux['text'], [B, p].")
        if queue % batch.weight.shape[0]:
            raise ValueError(
                f"ctp: a queue of {queue} is no multiple of the batch of {batch.weight.shape[0]}."
            )
        shape, kind = (queue, out.aux["image"].shape[1]), out.aux["image"].dtype
        one, two = (random_rows(jax.random.key(s), shape, kind) for s in (0, 1))
        own = shared(model, params)
        return Momentum(own, own, one, two, jnp.int32(0))

    def begin(model, params, memory, border):
        return params, memory._replace(averaged={n: params[n] for n in memory.averaged})

    def end(model, params, memory, border):
        return params, memory._replace(reference={n: params[n] for n in memory.reference})

    def teacher(model, step):
        """The averaged leaves with this step's weights, and what that model says of the batch."""
        memory = step.memory
        m, old = jnp.where(step.task > 0, later, momentum), step.task > 0
        new = {}
        for n, p in memory.averaged.items():
            share = ((1 - m) * jnp.where(old, 0.5, 1)).astype(p.dtype)
            other = jnp.where(old, share, 0) * memory.reference[n]
            new[n] = m.astype(p.dtype) * p + share * step.params[n] + other
        new = jax.lax.stop_gradient(new)
        out = model.apply({**step.params, **new}, step.batch.inputs, step.task)
        return new, jax.lax.stop_gradient(out)

    def loss(model, step):
        weight, memory = step.batch.weight, step.memory
        real, mean = weight > 0, lambda x: jnp.sum(weight * x) / jnp.sum(weight)
        (i, t), (_, out) = towers(step.outputs), teacher(model, step)
        far_i, far_t = towers(out)
        every = jnp.concatenate([real, jnp.ones(queue, bool)])
        place = jnp.arange(len(real))

        def contrast(x, now, before):
            s = x @ jnp.concatenate([now, before]).T / temperature
            return mean(cross_entropy(s, place, every))

        value = (contrast(i, far_t, memory.texts) + contrast(t, far_i, memory.images)) / 2
        reference = {**step.params, **memory.reference}
        last = towers(model.apply(reference, step.batch.inputs, step.task))
        old_i, old_t = jax.lax.stop_gradient(last)
        held = [(i, t, old_i, old_t, 0), (t, i, old_t, old_i, 0), (i, i, old_i, old_i, 1),
                (t, t, old_t, old_t, 1)]  # fmt: skip
        kept = sum(mean(apart(*x, real, temperature)) for x in held) / 2
        value = value + jnp.where(step.task > 0, topology * kept, 0)
        if "tokens" not in step.outputs.aux:
            return value
        logits, y = step.outputs.aux["tokens"], step.batch.targets
        masked = ((y != -100) & real[:, None]).astype(logits.dtype)
        log = jax.nn.log_softmax(logits)
        words = cross_entropy(logits, jnp.maximum(y, 0))
        words = words - jnp.sum(jax.nn.softmax(out.aux["tokens"]) * log, -1)
        return value + jnp.sum(masked * words) / jnp.maximum(jnp.sum(masked), 1)

    def observe(model, step):
        averaged, out = teacher(model, step)
        i, t = towers(out)
        memory = step.memory
        places = jnp.where(step.batch.weight > 0, (memory.at + jnp.arange(len(i))) % queue, queue)
        put = lambda old, new: old.at[places].set(new.astype(old.dtype), mode="drop")
        at = (memory.at + len(i)) % queue
        return Momentum(averaged, memory.reference, put(memory.images, i), put(memory.texts, t), at)

    return Method(init=init, begin=begin, end=end, loss=loss, observe=observe)


def towers(out: Any) -> tuple[Array, Array]:
    """Rows of length 1 of images and texts."""
    return unit(out.aux["image"]), unit(out.aux["text"])


def random_rows(key: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """A queue before the first batch."""
    return unit(jax.random.normal(key, shape, dtype))


def apart(
    a: Array, b: Array, old_a: Array, old_b: Array, same: int, real: Array, temperature: float
) -> Array:
    """[B]: KL(old || new) of each row's softmax of similarities; `same` kind: not to itself."""

    def log(a, b):
        s = a @ b.T
        s = jnp.where(jnp.eye(len(s), dtype=bool) & bool(same), -1000, s)
        return jax.nn.log_softmax(jnp.where(real[None], s / temperature, -1e30))

    new, old = log(a, b), log(old_a, old_b)
    return jnp.sum(jnp.where(real[None], jnp.exp(old) * (old - new), 0), -1)
