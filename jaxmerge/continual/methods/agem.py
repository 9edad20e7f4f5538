"""Averaged gradient episodic memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual import buffers
from jaxmerge.continual.methods.er import replayed
from jaxmerge.continual.parts import trained_leaves, with_trained
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, methods
from jaxmerge.core.types import Leaves


@methods.register
def agem(size: Count = 1000, examples: Count = 100, replay: Count | None = None) -> Method:
    """A-GEM: the gradient never raises, to first order, the loss of a batch of old examples.

    Formula: with g the gradient and r the gradient of the objective on the drawn examples,

        g <- g - min(g . r, 0) / (r . r) r

    over all trained leaves together. The optimiser comes behind: momentum or decay may raise it.

    Args:
        size: examples in the memory; the oldest leave where there are more.
        examples: of a task that join the memory at its end, the first of `Border.read`.
        replay: examples drawn a step; None: as many as the batch has.

    Memory: `size` examples as they are stored, and one more gradient a step.

    Source: Chaudhry et al., Efficient Lifelong Learning with A-GEM, ICLR 2019, equation 11.

    Differs:
        The authors' code was not at hand; compared with the equation alone.

    >>> agem(256)
    agem(size=256)
    """

    def init(model, params, batch, stored):
        return buffers.empty(size, batch._replace(inputs=stored))

    def gradient(model, step, grads, grad_at):
        def old(trained):
            params = with_trained(model, step.params, trained, step.task)
            batch, out = replayed(model, step._replace(params=params), step.key, replay)
            each = buffers.weighted(batch.weight, step.objective(out, batch))
            return jnp.sum(each) / jnp.maximum(jnp.sum(batch.weight), 1)

        return agreeing(grads, jax.grad(old)(trained_leaves(model, step.params, step.task)))

    def end(model, params, memory, border):
        read = border.read(examples)
        inputs = read.inputs if border.stored is None else border.stored(examples)
        return params, buffers.ring(memory, read._replace(inputs=inputs), read.weight)

    return Method(init=init, gradient=gradient, end=end)


def agreeing(grads: Leaves, reference: Leaves) -> Leaves:
    """The nearest gradient that does not point against a reference; of zeros nothing is asked.

    >>> new = agreeing({"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([0.0, 1.0])})
    >>> new["a"].tolist()
    [1.0, 0.0]
    """
    dot = sum(jnp.vdot(g, reference[n]) for n, g in grads.items())
    square = sum(jnp.vdot(r, r) for r in reference.values())
    share = jnp.minimum(dot, 0) / jnp.where(square > 0, square, 1)
    return {n: g - share.astype(g.dtype) * reference[n] for n, g in grads.items()}
