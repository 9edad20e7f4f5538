"""Dark experience replay: buffered examples keep the logits of when they were met."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.continual import buffers
from jaxmerge.continual.methods.er import remember, replayed
from jaxmerge.continual.records import Method, Outputs
from jaxmerge.continual.registry import Count, NonNegative, methods
from jaxmerge.core.types import Array


class Dark(NamedTuple):
    """A buffered example: `Batch` with the logits of before the step in which it was met."""

    inputs: Array
    targets: Array
    task: Array
    weight: Array
    logits: Array


@methods.register
def der(size: Count = 200, alpha: NonNegative = 0.5, replay: Count | None = None) -> Method:
    """DER: the logits on buffered examples stay what they were when the example was met.

    Formula: loss = objective + alpha mean over replay examples and classes of (z - z_stored)^2.

    Args:
        size: examples in the buffer (reservoir sampling).
        alpha: the authors' choices on MNIST are 0.2 to 1.
        replay: examples replayed a step; None: as many as the batch has.

    Memory: `size` examples and their logits.

    Source: Buzzega et al., Dark Experience for General Continual Learning, NeurIPS 2020, eq. 5;
    aimagelab/mammoth, ``models/der.py``. All classes' logits are matched from the start, those
    of later tasks too.

    >>> der(size=500, alpha=1)
    der(size=500, alpha=1.0)
    """

    def loss(model, step):
        batch, out = replayed(model, step, step.key, replay)
        return alpha * _apart(batch, out)

    return Method(init=_init(size), loss=loss, observe=_observe)


@methods.register
def derpp(
    size: Count = 200,
    alpha: NonNegative = 0.5,
    beta: NonNegative = 0.5,
    replay: Count | None = None,
) -> Method:
    """DER++: DER, and the objective on a second, independent replay batch.

    Formula: loss = objective + alpha mean (z - z_stored)^2 + beta mean of the objective on another
    replay batch.

    Args:
        size: examples in the buffer (reservoir sampling).
        alpha, beta: the authors' choices on MNIST are 0.2 to 1 and 0.5 to 1.
        replay: examples replayed a step, in each of the two batches; None: as the batch has.

    Memory: `size` examples and their logits.

    Source: Buzzega et al., Dark Experience for General Continual Learning, NeurIPS 2020, eq. 6;
    aimagelab/mammoth, ``models/derpp.py``.

    >>> derpp()
    derpp()
    """

    def loss(model, step):
        one, two = jax.random.split(step.key)
        batch, out = replayed(model, step, one, replay)
        match = _apart(batch, out)
        batch, out = replayed(model, step, two, replay)
        again = jnp.sum(buffers.weighted(batch.weight, step.objective(out, batch)))
        return alpha * match + beta * again / jnp.maximum(jnp.sum(batch.weight), 1)

    return Method(init=_init(size), loss=loss, observe=_observe)


def _init(size):
    def init(model, params, batch, stored):
        logits = jax.eval_shape(lambda: model.apply(params, batch.inputs, 0).logits)
        return buffers.empty(size, Dark(stored, batch.targets, batch.task, batch.weight, logits))

    return init


def _observe(model, step):
    batch = step.batch
    dark = Dark(step.stored, batch.targets, batch.task, batch.weight, step.outputs.logits)
    return remember(step, dark)


def _apart(batch: Dark, out: Outputs) -> Array:
    """Mean over real examples and classes of the squared distance to the stored logits."""
    far = jnp.mean((out.logits - batch.logits) ** 2, range(1, batch.logits.ndim))
    return jnp.sum(batch.weight * far) / jnp.maximum(jnp.sum(batch.weight), 1)
