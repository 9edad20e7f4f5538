"""Synaptic intelligence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import anchor
from jaxmerge.continual.memories.leaves import shared
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import NonNegative, Pattern, Positive, methods
from jaxmerge.core.types import Leaves


class Path(NamedTuple):
    """Memory of `si`: the pull, the weights at the task's start, the work of each weight so far."""

    anchor: anchor.Anchor
    start: Leaves
    work: Leaves


@methods.register
def si(strength: NonNegative = 1.0, damping: Positive = 0.1, leaves: Pattern = ".*") -> Method:
    """Synaptic intelligence: what a weight did for the loss on its way makes it stay.

    Formula: loss + strength sum_j I_j (theta_j - theta*_j)^2, theta* the weights at the end of the
    last task. In every step w_j -= g_j dtheta_j, with g the gradient of the objective alone and
    dtheta the whole change; after a task I_j += w_j / ((theta_j - theta_start_j)^2 + damping),
    w = 0. No pull in the first task.

    Args:
        strength: c; there is no factor 1/2.
        damping: xi.
        leaves: regular expression of the leaves that are held.

    Memory: 4 models.

    Source: Zenke et al., Continual Learning Through Synaptic Intelligence, ICML 2017, eq. 3 to 5;
    GT-RIPL/Continual-Learning-Benchmark, class SI (importances are summed, negative ones kept).

    Differs:
        Compared with GT-RIPL's class; the code of Zenke et al. was not at hand. The optimiser is
        new for each task; GT-RIPL's goes on.

    >>> si(strength=0.5)
    si(strength=0.5)
    """

    def init(model, params, batch, stored):
        own = shared(model, params, leaves)
        return Path(anchor.none(own), own, jax.tree.map(jnp.zeros_like, own))

    def begin(model, params, memory, border):
        return params, memory._replace(start={n: params[n] for n in memory.work})

    def loss(model, step):
        return strength * anchor.pull(step.memory.anchor, step.params)

    def observe(model, step):
        fell = lambda n, w: w - step.grads[n] * step.updates[n]
        return step.memory._replace(work={n: fell(n, w) for n, w in step.memory.work.items()})

    def end(model, params, memory, border):
        share = lambda n, w: w / ((params[n] - memory.start[n]) ** 2 + damping)
        importance = {n: share(n, w) for n, w in memory.work.items()}
        pull = anchor.move(memory.anchor, importance, params)
        return params, Path(pull, memory.start, jax.tree.map(jnp.zeros_like, memory.work))

    return Method(init=init, begin=begin, loss=loss, observe=observe, end=end)
