"""What every deployment scores on every group of test examples, by every evaluator."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.columns import seen
from jaxmerge.continual.parts import Parts, build, merged_params
from jaxmerge.continual.records import LAST, Outputs
from jaxmerge.continual.stream_records import Groups, Setup, State, Stream
from jaxmerge.core.types import Array, Leaves


def score(setup: Setup, stream: Stream, state: State, t: Array) -> dict[str, dict[str, Array]]:
    """Deployment -> metric -> ``[G]``; t is the last task that was learnt."""
    parts = build(setup, stream.tasks)
    sets = (stream.groups,) if isinstance(stream.groups, Groups) else tuple(stream.groups)
    names = sorted(parts.problem.evaluators)

    def one(params, groups, x):
        rows, weight, task, info, chosen = x
        take = lambda tree: jax.tree.map(lambda a: jnp.asarray(a)[rows], tree)
        rows_info = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(rows), *a.shape)), info)
        given = jnp.broadcast_to(task, rows.shape)
        inputs = parts.problem.view(take(groups.inputs), stream.info, given, None)
        rows_info = with_met(rows_info, stream.info, t)
        values = scores(parts, params, inputs, take(groups.targets), task, t, rows_info)
        mean = {n: jnp.sum(weight * v) / jnp.sum(weight) for n, v in values.items()}
        figures = {n: parts.problem.evaluators[n].finish(mean[n]) for n in names}
        return {n: jnp.where(chosen[k], figures[n], jnp.nan) for k, n in enumerate(names)}

    def every(params):
        columns = []
        for g in sets:
            chosen = np.ones((len(g.task), len(names)), bool) if g.metrics is None else g.metrics
            xs = jax.tree.map(jnp.asarray, (g.rows, g.weight, g.task, g.info, chosen))
            columns.append(jax.lax.map(lambda x, g=g: one(params, g, x), xs))
        return {n: jnp.concatenate([c[n] for c in columns]) for n in names}

    labels = (LAST, *setup.merges)
    return {k: every(merged_params(setup, parts.model, state, k)) for k in labels}


def with_met(rows_info: Any, info: Any, t: Array) -> Any:
    """The info of examples, and ``"met"`` [B, columns]: the columns of the tasks so far."""
    if not (isinstance(rows_info, dict) and rows_info and isinstance(info, dict) and "own" in info):
        return rows_info
    met, rows = seen(info, t), jax.tree.leaves(rows_info)[0].shape[0]
    return {**rows_info, "met": jnp.broadcast_to(met, (rows, *met.shape))}


def scores(
    parts: Parts, params: Leaves, inputs: Any, targets: Any, task: Array, seen: Array, info: Any
) -> dict[str, Array]:
    """Metric -> ``[B]`` of every evaluator; without the task unless an evaluator is given it."""
    evaluators = parts.problem.evaluators
    answers: dict[bool, Outputs] = {}
    for aware in {e.task_aware for e in evaluators.values()}:
        if aware:
            answers[aware] = parts.model.apply(params, inputs, task)
        else:
            answers[aware] = parts.model.answer(params, inputs, seen)
    return {n: e.score(answers[e.task_aware], targets, info) for n, e in sorted(evaluators.items())}
