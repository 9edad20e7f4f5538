"""L2 regularisation towards earlier weights."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import anchor
from jaxmerge.continual.memories.leaves import shared
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import NonNegative, Pattern, methods


@methods.register
def l2(
    strength: NonNegative = 1.0,
    towards: Literal["last", "base"] = "last",
    first: bool = True,
    leaves: Pattern = ".*",
) -> Method:
    """Every weight is pulled towards where it was.

    Formula: loss + strength sum_j (theta_j - theta*_j)^2. There is no factor 1/2.

    Args:
        strength: factor of the penalty, 0 or more.
        towards: theta* is the last task's end, or theta_0 throughout.
        first: whether the first task is pulled towards theta_0 already, as in the rehearsal-free
            paper with its pretrained start; False: not (GT-RIPL's benchmark).
        leaves: regular expression of the leaves that are held; the rehearsal-free paper leaves
            the head out: ``"^(?!head/)"``.

    Memory: 2 models.

    Source: Smith et al., A Closer Look at Rehearsal-Free Continual Learning, CVPR-W 2023;
    Hsu et al., Re-evaluating Continual Learning Scenarios, 2018, class L2.

    Differs:
        The defaults hold the head, as GT-RIPL's, and the first task, as the rehearsal-free release;
        each of the two is had by its argument. ``towards="base"`` is in neither, there theta* is
        always the last task's end. The optimiser is new for each task; GT-RIPL's goes on.

    >>> l2(0.5, leaves="^(?!head/)")
    l2(strength=0.5, leaves='^(?!head/)')
    """

    def init(model, params, batch, stored):
        start = anchor.none(shared(model, params, leaves))
        return start._replace(weight=_ones(start.weight)) if first else start

    def loss(model, step):
        return strength * anchor.pull(step.memory, step.params)

    def end(model, params, memory, border):
        centre = memory.centre if towards == "base" else {n: params[n] for n in memory.centre}
        return params, memory._replace(weight=_ones(memory.weight), centre=centre)

    return Method(init=init, loss=loss, end=end)


def _ones(tree):
    return jax.tree.map(jnp.ones_like, tree)
