"""CLIB for labels that grow finer: samples of long-known classes train from the stream too."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual.methods.clib import from_memory
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, Positive, Share, methods
from jaxmerge.core.types import Array


@methods.register
def pl_fms(
    size: Count = 2000,
    replay: Count | None = None,
    decay: Share = 0.9,
    period: Count = 5,
    adaptive: bool = True,
    total: Count | None = None,
    slack: Positive = 1.0,
) -> Method:
    """PL-FMS of hierarchical label expansion, as released: `clib` with flexible memory sampling.

    Formula: an example of the stream's batch, of class c, is trained on itself with probability

        min(1, (n - n_c) / (N slack / C))

    n examples met with this batch, n_c the number (from 1) of the first of class c, C classes met,
    N examples in the stream; in the first batch always. The memory fills the batch up. Ties between
    the largest classes go to the coarser level.

    Args:
        size, decay, period, adaptive: as in `clib`.
        replay: examples trained on a step, of stream and memory together; None: as the batch has.
        total: N; None: the sum of ``info["examples"]``, which streams of plans have.
        slack: 1; the authors' code has 2 where labels have more than two levels.

    Memory: as `clib`.

    Source: Lee et al., Online Continual Learning on Hierarchical Label Expansion, ICCV 2023,
    section 4; Hyun1A/HLE, in which no pseudo-labelling (PL) of the paper is found.

    Differs:
        Losses are not cut to integers before importances are made of them, a slip of the code. As
        in `clib`, memory, rate and sampling are compared with that code, whole runs are not.

    >>> pl_fms(size=1000, slack=2)
    pl_fms(size=1000, slack=2.0)
    """

    def stream(memory, step):
        number = total
        if number is None:
            if not isinstance(step.info, dict) or "examples" not in step.info:
                raise ValueError(
                    "pl_fms asks how many examples the stream has: give total=, or a stream whose "
                    "info has 'examples', int [tasks]."
                )
            number = jnp.sum(jnp.asarray(step.info["examples"]))
        labels = step.batch.targets
        before = step.memory.examples.met
        share = keep_probability(memory.first, labels, before, memory.met, number, slack)
        drawn = jax.random.uniform(jax.random.fold_in(step.key, 2), labels.shape)
        return (drawn <= share).astype(step.batch.weight.dtype)

    return from_memory(size, replay, decay, period, adaptive, stream)


def keep_probability(
    first: Array, labels: Array, before: Array, met: Array, total: Array | int,
    slack: float | Array = 1.0,
) -> Array:  # fmt: skip
    """[B]: with which probability an example of the stream trains itself.

    Args:
        first: int [C], the number from 0 of the first example of a class, large where it has none.
        labels: int [B]; before, met: examples met without and with this batch.
    """
    classes = jnp.sum(first < met)
    age = (met - (first[labels] + 1)).astype(jnp.result_type(float))
    return jnp.where(before > 0, jnp.minimum(1, age / (total * slack / classes)), 1)
