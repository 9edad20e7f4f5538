"""What every deployment scores on every group of test examples, by every evaluator."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.columns import seen
from jaxmerge.continual.hook_calls import named
from jaxmerge.continual.parts import Parts, build, merged_params, rows_kept, trained_leaves
from jaxmerge.continual.records import LAST, Outputs
from jaxmerge.continual.stream_records import Evaluator, Groups, Setup, State, Stream
from jaxmerge.core.types import Array, Leaves


def score(setup: Setup, stream: Stream, state: State, t: Array) -> dict[str, dict[str, Array]]:
    """Deployment -> metric -> ``[G]``; t is the last task that was learnt.

    NaN where the weights that this task trained are not finite: predictions of such a model, and
    a merge that drops NaN, have figures that look like any.
    """
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
        real = lambda v: jnp.where(weight > 0, weight * v, 0)  # a filler's may be inf
        mean = {n: jnp.sum(real(v)) / jnp.sum(weight) for n, v in values.items()}
        figures = {n: parts.problem.evaluators[n].finish(mean[n]) for n in names}
        return {n: jnp.where(chosen[k], figures[n], jnp.nan) for k, n in enumerate(names)}

    def every(params):
        columns = []
        for g in sets:
            xs = (g.rows, g.weight, g.task, g.info, chosen(g, len(names)))
            xs = jax.tree.map(jnp.asarray, xs)
            columns.append(jax.lax.map(lambda x, g=g: one(params, g, x), xs))
        return {n: jnp.concatenate([c[n] for c in columns]) for n in names}

    good = all_finite(trained_leaves(parts.model, state.params, t))

    def deployed(label):
        if label != LAST and _too_few(setup, parts, state, label):
            shapes = jax.eval_shape(every, state.params)
            return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)
        figures = every(merged_params(setup, parts.model, state, label))
        return {n: jnp.where(good, x, jnp.nan) for n, x in figures.items()}

    return {k: deployed(k) for k in (LAST, *setup.merges)}


def all_finite(leaves: Leaves) -> Array:
    """bool: whether every float of a model is finite.

    >>> bool(all_finite({"w": jnp.array([1.0, jnp.inf]), "count": jnp.array(3)}))
    False
    """
    floats = [x for x in leaves.values() if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats] or [jnp.bool_(True)]))


def _too_few(setup: Setup, parts: Parts, state: State, label: str) -> bool:
    """Whether a merge that keeps all rows has fewer than it takes: it cannot be computed."""
    cells, least = state.merges[label].cells, setup.merges[label].build().models[0]
    return any(len(cells[n]) < least for n in rows_kept(setup, parts.model, state.base, label))


def chosen(groups: Groups, metrics: int) -> Any:
    """bool [G, metrics]: which figures each group has."""
    if groups.metrics is None:
        return np.ones((len(groups.task), metrics), bool)
    return groups.metrics


def not_numbers(
    setup: Setup, stream: Stream, state: State, figures: dict[str, dict[str, Array]]
) -> dict[str, dict[str, Array]]:
    """Where `score` gives NaN though there are examples, and for a merge enough models: bool."""
    sets = (stream.groups,) if isinstance(stream.groups, Groups) else tuple(stream.groups)
    metrics = sorted(next(iter(figures.values())))
    asked = jnp.concatenate([jnp.asarray(chosen(g, len(metrics))) for g in sets])
    least = {k: s.build().models[0] for k, s in setup.merges.items()}
    ready = {k: state.merges[k].step >= n for k, n in least.items()}
    nan = lambda label, n, f: jnp.isnan(f) & asked[:, metrics.index(n)] & ready.get(label, True)
    return {k: {n: nan(k, n, f) for n, f in own.items()} for k, own in figures.items()}


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
    return {
        n: _score(n, e, answers[e.task_aware], targets, info) for n, e in sorted(evaluators.items())
    }


def _score(name: str, evaluator: Evaluator, outputs: Outputs, targets: Any, info: Any) -> Array:
    """What an evaluator gives; it is named where it fails."""
    who = f"the evaluator {name}"
    try:
        with named(who):
            return evaluator.score(outputs, targets, info)
    except KeyError as error:
        if not error.args or not isinstance(info, dict) or error.args[0] in info:
            raise
        had = ", ".join(map(repr, info)) or "nothing"
        raise ValueError(
            f"{who} reads {error.args[0]!r} of a group's info, which has {had}."
        ) from error
