"""What is wrong with a setup or a stream, found before anything is compiled; all of it at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual import stages
from jaxmerge.continual.parts import build
from jaxmerge.continual.scoring import scores, with_met
from jaxmerge.continual.stream_records import Groups, Setup, Stream
from jaxmerge.core.types import concrete
from jaxmerge.errors import closest, listed

PROMISES = ("nothing", "epochs", "once")


def check(setup: Setup, stream: Stream, *, traced: bool = False) -> None:
    """Raise ValueError for what cannot be run.

    Args:
        setup: model, problem, optimiser, methods and merges.
        stream: the data, and the plan of their batches.
        traced: the stream is to be one traced function, so no hook may need the host.

    Raises:
        ValueError: two methods replace the objective; a start that is no merge; a hook that needs
            the host in `program`; slots that do not suffice for the tasks; a group without an
            evaluator or without an example; an index plan that breaks its promise; a metric that
            is no number for each example; a memory or params that change their form.

    >>> from jaxmerge.continual import optimisers, problems, streams
    >>> from jaxmerge.models.mlp.learner import mlp
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> stream = streams.split((x, y), (x, y), [[0, 1], [2, 3]], batch=2)
    >>> setup = Setup(mlp(4, (3,), 4), problems.classification(), optimisers.sgd(0.1), start="lats")
    >>> check(setup, stream)
    Traceback (most recent call last):
    ValueError: no start is named 'lats': did you mean last?
    """
    wrong = [*_setup(setup, traced), *_plan(stream), *_groups(setup, stream)]
    if wrong:
        raise ValueError(listed(wrong))
    parts = build(setup, stream.tasks)
    key = jax.random.key(0)
    params = jax.eval_shape(parts.model.init, key)
    short = [
        f"{n} has {p.shape[0] if p.shape else 0} slots"
        for n, p in params.items()
        if parts.model.slots(n) and (not p.shape or p.shape[0] < stream.tasks)
    ]
    if short:
        raise ValueError(
            f"The stream has {stream.tasks} tasks, but {listed(short)[:-1]}; a leaf of slots is "
            "[tasks, ...]."
        )
    least = {k: s.build().models for k, s in setup.merges.items()}
    few = [
        f"{k} takes {a if b is None else f'{a} to {b}'} models"
        for k, (a, b) in least.items()
        if stream.tasks < a or (b is not None and stream.tasks > b)
    ]
    if few:
        raise ValueError(f"{listed(few)[:-1]}; this stream has {stream.tasks} tasks.")
    _metrics(setup, stream, parts)
    stand = jax.eval_shape(stages.create, setup, stream, key)
    if not any(m.host for m in parts.methods):
        for stage in (stages.begin, stages.train, stages.end):
            jax.eval_shape(stage, setup, stream, stand, jnp.int32(0))


def _setup(setup: Setup, traced: bool) -> list[str]:
    wrong = []
    if setup.start not in ("last", "base", *setup.merges):
        known = ("last", "base", *setup.merges)
        wrong.append(f"no start is named {setup.start!r}: {closest(str(setup.start), known)}")
    wrong += [
        f"{m.factory.__name__} chooses examples before the batches of a stream are drawn, and "
        "these are: use `jaxmerge.studies.loop.Stream`"
        for m in setup.methods
        if m.build().examples
    ]
    if traced:
        wrong += [
            f"{m.factory.__name__} needs the host at the borders of tasks: use `run`"
            for m in setup.methods
            if m.build().host
        ]
    return wrong


def _plan(stream: Stream) -> list[str]:
    """What is wrong with the rows of a stream."""
    arrays = {"rows": stream.rows, "origin": stream.origin, "weight": stream.weight}
    shapes = {tuple(np.shape(x)) for x in arrays.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 3:
        form = ", ".join(f"{k} {list(np.shape(x))}" for k, x in arrays.items())
        return [f"rows, origin and weight are [tasks, steps, B] alike; found {form}"]
    if stream.promise.value not in PROMISES:
        return [f"promise: {closest(str(stream.promise.value), PROMISES)}"]
    if not all(concrete(x) for x in (stream.rows, stream.weight)):
        return []
    rows, used = np.asarray(stream.rows), np.asarray(stream.weight) > 0
    many = len(jax.tree.leaves(stream.targets)[0])
    wrong = []
    if used.any() and (rows[used].min() < 0 or rows[used].max() >= many):
        low, high = rows[used].min(), rows[used].max()
        wrong.append(f"rows are 0 to {many - 1}, the plan has {low} to {high}")
        return wrong
    empty = [t for t in range(len(rows)) if not used[t].any()]
    if empty:
        wrong.append(f"task {empty[0]} trains on no example")
    if stream.promise.value == "once":
        count = np.bincount(rows[used], minlength=many)
        if (count > 1).any():
            first = int(np.argmax(count > 1))
            wrong.append(
                f"the plan promises each example at most once, {int((count > 1).sum())} come again "
                f"(row {first}, {count[first]} times)"
            )
    if stream.promise.value == "epochs":
        sample = stream.sample if stream.sample is not None and concrete(stream.sample) else None
        for t in range(len(rows)):
            own = [] if sample is None else np.asarray(sample)[t]
            problem = _passes(rows[t][used[t]], np.asarray(own, int))
            if problem:
                wrong.append(f"the plan promises whole passes, but in task {t} {problem}")
                break
    return wrong


def _passes(plan: np.ndarray, sample: np.ndarray) -> str:
    """How rows in the order of training are not passes over them and the sample; "" if they are."""
    members, many = np.union1d(plan, sample[sample >= 0]), np.arange(len(plan))
    order = np.argsort(plan, kind="stable")
    new = np.r_[True, np.diff(plan[order]) != 0]
    before = np.empty(len(plan), int)  # how often a row has come before this place
    before[order] = many - np.maximum.accumulate(np.where(new, many, 0))
    early = np.flatnonzero(before != many // len(members))
    if len(early):
        at = early[0]
        began = len(members) * (before[at] - 1)
        late = np.setdiff1d(members, plan[began:at])
        return f"row {plan[at]} comes again before {_rows(late)}"
    missing = np.setdiff1d(members, plan)
    return f"{_rows(missing)} of its sample never come" if len(missing) else ""


def _rows(rows: np.ndarray) -> str:
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:3]))}{more}"


def _groups(setup: Setup, stream: Stream) -> list[str]:
    names = sorted(setup.problem.build().evaluators)
    wrong = [] if names else ["the problem has no evaluator"]
    sets = (stream.groups,) if isinstance(stream.groups, Groups) else tuple(stream.groups)
    for k, g in enumerate(sets):
        who = "group" if len(sets) == 1 else f"set {k}, group"
        if concrete(g.weight):
            empty = np.flatnonzero(np.asarray(g.weight).sum(1) == 0)
            wrong += [f"{who} {i} has no example, so its metrics have no value" for i in empty[:3]]
        if g.metrics is None:
            continue
        if np.shape(g.metrics) != (len(g.task), len(names)):
            wrong.append(
                f"metrics is bool [groups, evaluators] = [{len(g.task)}, {len(names)}] "
                f"({', '.join(names)}), got {list(np.shape(g.metrics))}"
            )
        elif concrete(g.metrics):
            none = np.flatnonzero(~np.asarray(g.metrics).any(1))
            wrong += [
                f"{who} {i} chooses none of the evaluators {', '.join(names)}" for i in none[:3]
            ]
    return wrong


def _metrics(setup: Setup, stream: Stream, parts: stages.Parts) -> None:
    """Refuse an evaluator that gives no number for each example."""
    sets = (stream.groups,) if isinstance(stream.groups, Groups) else tuple(stream.groups)

    def values(key, g):
        params = parts.model.init(key)
        take = lambda tree: jax.tree.map(lambda a: jnp.asarray(a)[jnp.asarray(g.rows)[0]], tree)
        count = g.rows.shape[1]
        given = jnp.zeros(count, jnp.int32)
        inputs = parts.problem.view(take(g.inputs), stream.info, given, None)
        info = jax.tree.map(lambda a: jnp.asarray(a)[given], g.info)
        targets, task = take(g.targets), jnp.int32(0)
        info = with_met(info, stream.info, task)
        return scores(parts, params, inputs, targets, task, task, info)

    for g in sets:
        outputs = jax.eval_shape(values, jax.random.key(0), g)
        wrong = [
            f"{n} gives {x.dtype}{list(x.shape)}"
            for n, x in outputs.items()
            if x.shape != (g.rows.shape[1],) or not jnp.issubdtype(x.dtype, jnp.floating)
        ]
        if wrong:
            raise ValueError(
                f"An evaluator gives one float for each of {g.rows.shape[1]} examples; "
                f"{listed(wrong)}"
            )
