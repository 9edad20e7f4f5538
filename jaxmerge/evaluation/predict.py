"""Evaluation: accuracies of one model, or of many merged models at once, on prepared examples.

All examples pass in batches of one shape (packed sentences: of a few), filled up at the end, so
evaluation is compiled once for any number of examples, tasks and models.  Many models (one merge
under many factors) are stacked and vmapped on an accelerator; on a CPU they pass one after the
other, and an iterator of them needs the memory of one: batched matrix products were measured to
cost 1.5 times as much there.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.parts import build
from jaxmerge.continual.stream_records import Setup
from jaxmerge.core.types import Leaves
from jaxmerge.data.pipeline import Batches, Examples
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.training.data_parallel import everywhere, spread, to_numpy
from jaxmerge.training.learner import Learner, head_logits


class Probe(NamedTuple):
    """Prepared examples of one split; those that several tasks share pass through the model once.

    Attributes:
        chunks: batches as `features` reads them, on the device, the last one filled up; a list, or
            `Batches` that are read anew each time, where they do not fit into memory.
        columns, task: int32 [N], sorted by task.
        index: int [N], where each lies in the chunks.
        own: bool [T, columns], the columns of each task.
        batch: examples in a chunk.
    """

    chunks: list | Batches
    columns: np.ndarray
    task: np.ndarray
    index: np.ndarray
    own: np.ndarray
    batch: int

    def upto(self, tasks: int) -> Probe:
        """The examples of the first `tasks` tasks only."""
        count = int(np.searchsorted(self.task, tasks))
        index = self.index[:count]
        chunks = self.chunks[: index.max(initial=-1) // self.batch + 1]
        return self._replace(
            chunks=chunks, columns=self.columns[:count], task=self.task[:count], index=index
        )


def probe(learner: Learner, scenario: Scenario, split: str, batch: int = 128) -> Probe:
    """Prepare a split of a scenario for evaluation.

    Raises:
        ValueError: the learner's head is not that of the scenario's classes.
    """
    learner.check(scenario)
    data = scenario.split(split, learner.prepare)
    inputs = data.inputs
    padded = np.resize(np.arange(len(inputs)), len(inputs) + -len(inputs) % batch)
    chunks = Batches(inputs, padded.reshape(-1, batch), learner.collate, spread)
    if not isinstance(inputs, Examples):
        chunks = list(chunks)  # they stay on the device
    own = np.stack([scenario.mask(t) for t in range(len(scenario))])
    return Probe(chunks, data.columns[data.index], data.task, data.index, own, batch)


def logits(learner: Learner, models: Iterable[Leaves], data: Probe) -> np.ndarray:
    """[F, N, columns] of F models on the examples of a probe."""
    if jax.default_backend() == "cpu":
        return np.stack([logits_of(learner, model, data) for model in models])
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(dict, models))
    stacked, head, scale = everywhere((stacked, learner.head, learner.scale))
    parts = [_logits(stacked, chunk, head, scale, learner.features) for chunk in data.chunks]
    return np.concatenate([to_numpy(p) for p in parts], axis=1)[:, data.index]


def logits_of(learner: Learner, params: Leaves, data: Probe) -> np.ndarray:
    """[N, columns] of one model on the examples of a probe."""
    params, head, scale = everywhere((dict(params), learner.head, learner.scale))
    parts = [_one(params, chunk, head, scale, learner.features) for chunk in data.chunks]
    return np.concatenate([to_numpy(p) for p in parts])[data.index]


@partial(jax.jit, static_argnames="features")
def _one(params, inputs, head, scale, features):
    return head_logits(features(params, inputs), head, scale)


@partial(jax.jit, static_argnames="features")
def _logits(models, inputs, head, scale, features):
    return jax.vmap(lambda params: _one(params, inputs, head, scale, features))(models)


def wrapped_logits(
    setup: Setup, models: Iterable[Leaves], data: Probe, seen: int, tasks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [F, N, columns] of models whose network methods have changed.

    Args:
        setup: of the stream.
        models: the params of each.
        data: tasks in a row; every batch passes once, and once more for each task in it.
        seen: the last task that was learnt.

    Returns:
        Without the task, and with it: of each example under its own task.
    """
    batches = data.index // data.batch
    free, own = [], []
    for model in models:
        fixed = everywhere((setup, dict(model)))
        call = lambda chunk, task, aware, fixed=fixed: to_numpy(
            _answer(fixed, chunk, np.int32(task), aware, tasks)
        )
        parts = [call(chunk, seen, False) for chunk in data.chunks]
        free.append(np.concatenate(parts)[data.index])
        aware_logits = np.empty_like(free[-1])
        for k, chunk in enumerate(data.chunks):
            for task in np.unique(data.task[batches == k]):
                at = (batches == k) & (data.task == task)
                aware_logits[at] = call(chunk, task, True)[data.index[at] % data.batch]
        own.append(aware_logits)
    return np.stack(free), np.stack(own)


@partial(jax.jit, static_argnames=("aware", "tasks"))
def _answer(fixed, inputs, task, aware, tasks):
    setup, params = fixed
    model = build(setup, tasks).model
    return (model.apply if aware else model.answer)(params, inputs, task).logits


def accuracies(
    scores: np.ndarray, data: Probe, aware: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on each task: (task-agnostic, task-aware), each [F, T]; NaN without examples.

    Args:
        scores: logits [F, N, columns].
        aware: those with the task, where they differ.
    """
    free = scores.argmax(-1) == data.columns
    own = data.own[data.task]
    masked = np.where(own, scores if aware is None else aware, -np.inf)
    return _by_task(free, data), _by_task(masked.argmax(-1) == data.columns, data)


def _by_task(right: np.ndarray, data: Probe) -> np.ndarray:
    tasks = len(data.own)
    counts = np.bincount(data.task, minlength=tasks).astype(float)
    sums = np.stack([np.bincount(data.task, r, minlength=tasks) for r in right])
    with np.errstate(invalid="ignore"):
        return sums / counts
