"""Evaluation: accuracies of one model, or of many merged models at once, on prepared examples.

All examples pass in batches of one shape, padded at the end, so evaluation is compiled once for
any number of examples, tasks and models.  Many models (one merge under many factors) are a pytree
with a leading axis; on an accelerator they are vmapped, on a CPU they are mapped one after the
other, where batched matrix products were measured to cost 1.5 times as much.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.learner import Learner, head_logits
from jaxmerge.continual.scenario import Scenario
from jaxmerge.core import Leaves


class Probe(NamedTuple):
    """Prepared examples of one split, sorted by task.

    Attributes:
        chunks: device arrays [batch, ...], the last one padded.
        columns, task: numpy int32 [N].
        own: bool [T, columns], the columns of each task.
    """

    chunks: list
    columns: np.ndarray
    task: np.ndarray
    own: np.ndarray

    def upto(self, tasks: int) -> Probe:
        """The examples of the first `tasks` tasks only."""
        count = int(np.searchsorted(self.task, tasks))
        size = len(self.chunks[0])
        chunks = self.chunks[: -(-count // size)]
        return Probe(chunks, self.columns[:count], self.task[:count], self.own)


def probe(learner: Learner, scenario: Scenario, split: str, batch: int = 128) -> Probe:
    """Prepare a split of a scenario for evaluation."""
    data = scenario.split(split, learner.prepare)
    inputs = data.inputs
    padded = np.concatenate([inputs, np.repeat(inputs[:1], -len(inputs) % batch, axis=0)])
    chunks = [jnp.asarray(padded[i : i + batch]) for i in range(0, len(padded), batch)]
    own = np.stack([scenario.mask(t) for t in range(len(scenario))])
    return Probe(chunks, data.columns, data.task, own)


def stack(params: Leaves) -> Leaves:
    """One model as a stack of one."""
    return {n: jnp.asarray(p)[None] for n, p in params.items()}


def logits(learner: Learner, models: Leaves, data: Probe) -> np.ndarray:
    """[F, N, columns] of F stacked models on the examples of a probe."""
    together = None if jax.default_backend() == "cpu" else len(next(iter(models.values())))
    parts = [
        _logits(models, chunk, learner.head, learner.scale, learner.features, together)
        for chunk in data.chunks
    ]
    return np.concatenate([np.asarray(p) for p in parts], axis=1)[:, : len(data.columns)]


@partial(jax.jit, static_argnames=("features", "together"))
def _logits(models, inputs, head, scale, features, together):
    one = lambda params: head_logits(features(params, inputs), head, scale)
    return jax.lax.map(one, models, batch_size=together)


def accuracies(found: np.ndarray, data: Probe) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on each task: (task-agnostic, task-aware), each [F, T]; NaN without examples.

    Args:
        found: logits [F, N, columns].
    """
    free = found.argmax(-1) == data.columns
    own = data.own[data.task]
    aware = np.where(own, found, -np.inf).argmax(-1) == data.columns
    return _by_task(free, data), _by_task(aware, data)


def _by_task(right: np.ndarray, data: Probe) -> np.ndarray:
    tasks = len(data.own)
    counts = np.bincount(data.task, minlength=tasks).astype(float)
    sums = np.stack([np.bincount(data.task, r, minlength=tasks) for r in right])
    with np.errstate(invalid="ignore"):
        return sums / counts
