"""The hooks of methods as the loop calls them: what a task trains on, what runs at its borders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual import stages
from jaxmerge.continual.parts import Parts, build
from jaxmerge.continual.records import Batch, TaskLabels
from jaxmerge.continual.stream_records import Setup, State
from jaxmerge.core.specs import Spec
from jaxmerge.data.pipeline import examples
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.training.data_parallel import everywhere
from jaxmerge.training.fit import Data
from jaxmerge.training.model_learner import AnyLearner


def training_examples(
    learner: AnyLearner, scenario: Scenario, methods: Sequence[Spec], t: int, seed: int
) -> Data:
    """The training examples of a task, with those of earlier tasks that methods add."""
    chosen = [(t, np.arange(len(scenario[t].rows["train"])))]
    for spec in methods:
        choose = spec.build().examples
        if choose is not None:
            tasks = [TaskLabels(k.labels("train"), k.columns) for k in scenario]
            chosen += choose(t, tasks, seed)
    parts = [(scenario[s], scenario[s].rows["train"][at], s) for s, at in chosen]
    inputs = examples([(k.source.inputs, rows) for k, rows, _ in parts], learner.prepare)
    columns = [k.offset + k.source.labels[rows] for k, rows, _ in parts]
    task = [np.full(len(rows), s, np.int32) for _, rows, s in parts]
    return Data(inputs, np.concatenate(columns).astype(np.int32), np.concatenate(task))


def at_border(
    setup: Setup, scenario: Scenario, info: dict, state: State, t: int, which: str, data: Data
) -> State:
    """The hooks at a border, compiled once for all tasks where they need not the host."""
    parts = build(setup, len(scenario))
    hooks = [m for m in parts.methods if getattr(m, which) is not None]
    if not hooks:
        return state
    if any(m.host for m in hooks):
        read = lambda count: sample(data, t, min(count, len(data.columns)))
        seen = _seen(parts, info, read)
        return stages.border(parts, info, state, np.int32(t), which, seen, read)
    asked, one = [0], sample(data, t, 1)

    def ask(state):
        def read(count):
            asked.append(count)
            many = min(count, len(data.columns))
            return jax.tree.map(lambda x: jnp.zeros((many, *x.shape[1:]), x.dtype), one)

        seen = _seen(parts, info, read)
        return stages.border(parts, info, state, jnp.int32(t), which, seen, read)

    jax.eval_shape(ask, state)
    largest = max(len(task.rows["train"]) for task in scenario)
    drawn = sample(data, t, min(max(asked), largest)) if max(asked) else None
    fixed = everywhere((setup, info, state, drawn))
    return _compiled(fixed, np.int32(t), which, len(scenario))


@partial(jax.jit, static_argnames=("which", "tasks"))
def _compiled(fixed: Any, t: Any, which: str, tasks: int) -> State:
    """The hooks `begin` or `end`, reading a sample of the task's examples."""
    setup, info, state, sample = fixed
    read = lambda count: jax.tree.map(lambda x: jnp.asarray(x)[:count], sample)
    parts = build(setup, tasks)
    return stages.border(parts, info, state, t, which, _seen(parts, info, read), read)


def _seen(parts: Parts, info: dict, read: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """What is read, as the problem shows it at evaluation."""

    def seen(count: int) -> Batch:
        batch = read(count)
        return batch._replace(inputs=parts.problem.view(batch.inputs, info, batch.task, None))

    return seen


def sample(data: Data, t: int, count: int) -> Batch:
    """Examples of a task, drawn where not all are asked for; filled up with weight 0."""
    own = np.flatnonzero(data.task == t)
    if len(own) > count:
        own = own[np.random.default_rng(0).permutation(len(own))[:count]]
    rows = np.resize(own, count)
    weight = (np.arange(count) < len(own)).astype(np.float32)
    return Batch(data.inputs[rows], data.columns[rows], data.task[rows], weight)
