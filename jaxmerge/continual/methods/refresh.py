"""Refresh learning: unlearn a little, then learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import anchor
from jaxmerge.continual.memories.leaves import shared
from jaxmerge.continual.records import Method, Step
from jaxmerge.continual.registry import Count, NonNegative, methods
from jaxmerge.core.types import Leaves

ASCENT = 0.01  # the released rate of the ascent; it cancels but against 1e-20


@methods.register
def refresh(
    size: NonNegative = 1e-5,
    noise: NonNegative = 1e-3,
    damping: NonNegative = 1e-3,
    decay: NonNegative = 1e-5,
    examples: Count = 1024,
) -> Method:
    """Refresh learning: before every step a small noisy move that raises the loss, on any method.

    Formula, for each tensor p by itself, with g the gradient of the objective on the batch and
    z standard normal,

        p <- p + size / (1 + damping F) (|p| / (|d| + 1e-20) d + noise z),   d = 0.01 g

    and then the step of whatever it is placed before. After a task F <- decay F + mean over its
    examples of q (d log q / dp)^2, q the probability of the example's label.

    Args:
        size: delta, of the move relative to the tensor's norm.
        noise: scale of z.
        damping: how much F holds a weight back.
        decay: tau; with the released 1e-5 F is almost only the last task's.
        examples: of a task, the first so many of `Border.read`.

    Memory: 1 model, and one more gradient a step.

    Source: Wang et al., A Unified and General Framework for Continual Learning, ICLR 2024;
    joey-wang123/CL-refresh-learning, ``models/derpp.py``. The weight q makes F neither the Fisher
    information nor the empirical one. Which methods are members of the paper's family of
    Bregman divergences, and with which numbers, stands on the page Subspaces.

    Differs:
        The authors' code has it on DER++ only; here it stands before any methods, and moves the
        leaves that tasks share. q is exp(-objective), a softmax over the columns that compete,
        theirs one over all outputs. F is of the first `examples` of a task, theirs of all.

    >>> refresh(1e-4)
    refresh(size=0.0001)
    """

    def init(model, params, batch, stored):
        return jax.tree.map(jnp.zeros_like, shared(model, params))

    def perturb(model, step, trained, objective_at):
        gradient, z, moved = objective_at(trained), normal(step, step.memory), dict(trained)
        for n, importance in step.memory.items():
            p, d = trained[n], ASCENT * gradient[n]
            length = jnp.linalg.norm(p) / (jnp.linalg.norm(d) + 1e-20)
            moved[n] = p + size / (1 + damping * importance) * (length * d + noise * z[n])
        return moved

    def end(model, params, memory, border):
        own = {n: params[n] for n in memory}

        def gradient(batch, key):
            def log_q(own):
                out = model.apply({**params, **own}, batch.inputs, border.index)
                return -border.objective(out, batch)[0]

            value, h = jax.value_and_grad(log_q)(own)
            return jax.tree.map(lambda h: jnp.exp(value / 2) * h, h)  # `squares` squares it

        fresh = anchor.squares(gradient, border.read(examples), 1, border.key)
        return params, {n: decay * f + fresh[n] for n, f in memory.items()}

    return Method(init=init, perturb=perturb, end=end)


def normal(step: Step, leaves: Leaves) -> Leaves:
    """Standard normal draws for each leaf."""
    keys = jax.random.split(step.key, len(leaves))
    draw = lambda key, p: jax.random.normal(key, p.shape, p.dtype)
    return {n: draw(k, p) for k, (n, p) in zip(keys, sorted(leaves.items()), strict=True)}
