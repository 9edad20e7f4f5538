"""What is wrong with a setup or a stream, found before anything is compiled; all of it at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual import stages
from jaxmerge.continual.hook_calls import kind
from jaxmerge.continual.parts import build, lengths_of_slots, rows_kept, same_form
from jaxmerge.continual.records import LAST
from jaxmerge.continual.scoring import scores, with_met
from jaxmerge.continual.stream_records import Groups, Setup, State, Stream, as_stored
from jaxmerge.continual.values import forms_of_own, sets_of, whose, wrong_values
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Merge, concrete, is_whole
from jaxmerge.errors import closest, listed

STARTS = ("last", "base")
MOMENTS = ("new", "kept")
READ_BY_VIEWS = {"permutation": "pixels", "degrees": "turned"}  # of a stream's info


def check(setup: Setup, stream: Stream, *, traced: bool = False) -> None:
    """Raise ValueError for what cannot be run.

    Where arrays are traced (inside ``jax.jit`` or ``jax.vmap``) only their forms are looked at:
    call this before, with the arrays themselves.

    Args:
        setup: model, problem, optimiser, methods and merges.
        stream: the data, and the plan of their batches.
        traced: the stream is to be one traced function, so no hook may need the host.

    Raises:
        ValueError: what is no spec; two methods replace the same thing; a start that is no merge, a
            label that means something else; a hook that needs the host in `program`; slots that do
            not suffice for the tasks; a group without an evaluator or without an example; rows,
            tasks, targets or weights out of their ranges; an index plan that breaks its promise; a
            metric that is no number for each example; a hook that gives something else than it
            should, such as a memory of another form.

    >>> from jaxmerge.continual import optimisers, problems, streams
    >>> from jaxmerge.models.mlp.learner import mlp
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> stream = streams.split((x, y), (x, y), [[0, 1], [2, 3]], batch=2)
    >>> setup = Setup(mlp(4, (3,), 4), problems.classification(), optimisers.sgd(0.1), start="lats")
    >>> check(setup, stream)
    Traceback (most recent call last):
    ValueError: no start is named 'lats': did you mean last?
    """
    wrong = _specs(setup)
    if not wrong:
        wrong = [*_setup(setup, stream, traced), *wrong_values(stream)]
    if not wrong:
        wrong = [*_evaluated(setup, stream), *_kinds(setup, stream), *_counts(setup, stream)]
    if wrong:
        raise ValueError(listed(wrong))
    parts = build(setup, stream.tasks)
    key = jax.random.key(0)
    _flat(setup)
    outputs = _outputs(stream, parts)
    stand = jax.eval_shape(stages.create, setup, stream, key)
    if traced:
        kept = lambda k: rows_kept(setup, parts.model, stand.base, k)
        grown = [f"the merge {k!r}" for k in setup.merges if kept(k)]
        if grown:
            raise ValueError(
                f"{listed(grown)[:-1]} keeps every model, so that the state grows with each task: "
                "use `run`."
            )
    wrong = _columns(stream, parts, outputs)
    wrong = wrong or [*_metrics(stream, parts), *_targets(stream, parts, outputs)]
    if setup.moments == "kept":
        wrong += [
            f"moments are kept from task to task, but {n!r} has a slot for each task, and the "
            "moments of one are not those of the next"
            for n in lengths_of_slots(parts.model, stand.params, trained=True)
        ][:1]
    if wrong:
        raise ValueError(listed(wrong))
    host = any(m.host for m in parts.methods)
    for stage in (stages.train,) if host else (stages.begin, stages.train, stages.end):
        jax.eval_shape(stage, setup, stream, stand, jnp.int32(0))


def check_calls(stream: Stream, score_every: int, least: int, anytime: int = 1) -> None:
    """Raise ValueError for numbers of a driver that do not fit a stream."""
    numbers = {"score_every": (score_every, least), "anytime": (anytime, 1)}
    wrong = [
        f"{n} is a whole number from {low} on, got {v!r}"
        for n, (v, low) in numbers.items()
        if not is_whole(v) or v < low
    ]
    steps = stream.rows.shape[1]
    if not wrong and anytime > steps:
        wrong.append(f"anytime={anytime} is more than the {steps} steps of a task")
    if wrong:
        raise ValueError(listed(wrong))


def check_resumed(setup: Setup, stream: Stream, state: State | None, first: int) -> None:
    """Raise ValueError where a stream cannot go on from a state with task `first`."""
    if not is_whole(first) or not 0 <= first < stream.tasks:
        raise ValueError(f"first is a task, 0 to {stream.tasks - 1}, got {first!r}.")
    if state is None:
        if first:
            raise ValueError(f"To go on with task {first} takes the state after the one before it.")
        return
    if not isinstance(state, State):
        raise ValueError(f"state is a `State`, such as `watch` is given; found {kind(state)}.")
    stand = jax.eval_shape(stages.create, setup, stream, jax.random.key(0))
    for n in ("base", "params", "memory", "merges"):
        same_form(getattr(stand, n), getattr(state, n), "a state of another setup", f"the {n}")


def _specs(setup: Setup) -> list[str]:
    """What stands where a spec is due."""
    fields = {n: getattr(setup, n) for n in ("model", "problem", "optimiser")}
    fields |= {f"method {i}": m for i, m in enumerate(setup.methods)}
    wrong = [
        f"{n} is what a function of `jaxmerge.continual` gives when it is called, or one that you "
        f"register with @{n.split()[0]}s.register (`jaxmerge.continual.registry`); found {kind(s)}"
        for n, s in fields.items()
        if not isinstance(s, Spec)
    ]
    for label, s in setup.merges.items():
        found = s.build() if isinstance(s, Spec) else getattr(s, "value", s)
        if not isinstance(found, Merge):
            wrong.append(
                f"merge {label!r} is a jaxmerge method, such as jm.magmax(); found {kind(found)}"
            )
    return wrong


def _flat(setup: Setup) -> None:
    """Raise ValueError where a model's parameters have no flat names."""
    made = jax.eval_shape(setup.model.build().init, jax.random.key(0))
    if not isinstance(made, Mapping):
        raise ValueError(f"The model's `init` gives {kind(made)}, expected name -> array.")
    nested = [n for n, x in made.items() if not hasattr(x, "shape")]
    if nested:
        raise ValueError(
            f"The model's `init` gives name -> array, found {kind(made[nested[0]])} at "
            f"{nested[0]!r}: give flat names, `jaxmerge.core.names.flatten(params)[0]`, and let "
            "`apply` put them back."
        )


def _setup(setup: Setup, stream: Stream, traced: bool) -> list[str]:
    wrong = []
    if setup.start not in (*STARTS, *setup.merges):
        known = (*STARTS, *setup.merges)
        wrong.append(f"no start is named {setup.start!r}: {closest(str(setup.start), known)}")
    wrong += [
        f"no merge can be labelled {k!r}: that is {'a start' if k in STARTS else 'the last model'} "
        "of every stream"
        for k in (*STARTS, LAST)
        if k in setup.merges
    ]
    view = getattr(setup.problem.build(), "view", None)
    if view is as_stored and isinstance(stream.info, Mapping):
        wrong += [
            f"the problem's view does not read info[{k!r}], so that all tasks are the same: give "
            f"it one that does, as in classification(view={reader})"
            for k, reader in READ_BY_VIEWS.items()
            if k in stream.info
        ]
    if setup.moments not in MOMENTS:
        hint = closest(str(setup.moments), MOMENTS)
        wrong.append(f"no moments are named {setup.moments!r}: {hint}")
    elif setup.moments == "kept" and not hasattr(setup.optimiser.build(), "update"):
        wrong.append(
            f"moments are kept from task to task, but the schedule of {setup.optimiser!r} ends "
            "with each task: give a rate that is a number, or leave moments new"
        )
    batch = np.shape(stream.rows)[-1:]
    if not is_whole(setup.accumulate) or setup.accumulate < 1:
        wrong.append(f"accumulate is a whole number from 1 on, got {setup.accumulate!r}")
    elif batch and batch[0] % setup.accumulate:
        wrong.append(f"accumulate={setup.accumulate} does not divide batches of {batch[0]}")
    methods = [(m.factory.__name__, m.build()) for m in setup.methods]
    wrong += [
        f"{name} chooses examples before the batches of a stream are drawn, and "
        "these are: use `jaxmerge.studies.loop.Stream`"
        for name, m in methods
        if getattr(m, "examples", None)
    ]
    if traced:
        wrong += [
            f"{name} needs the host at the borders of tasks: use `run`"
            for name, m in methods
            if getattr(m, "host", False)
        ]
    return wrong


def _evaluated(setup: Setup, stream: Stream) -> list[str]:
    """What is wrong with which figures groups have."""
    names = sorted(setup.problem.build().evaluators)
    wrong = [] if names else ["the problem has no evaluator"]
    for k, g in enumerate(sets_of(stream)):
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
                f"{whose(stream, k)} {i} chooses none of the evaluators {', '.join(names)}"
                for i in none[:3]
            ]
    return wrong


def _kinds(setup: Setup, stream: Stream) -> list[str]:
    """Targets that are no whole numbers, where the problem says that they are columns."""
    if setup.problem.build().labels is None:
        return []
    read = {"training": stream.targets}
    read |= {f"{whose(stream, k)}s": g.targets for k, g in enumerate(sets_of(stream))}
    return [
        f"targets are whole numbers, those of {who} are {jnp.result_type(x)}"
        for who, targets in read.items()
        for x in jax.tree.leaves(targets)
        if not jnp.issubdtype(jnp.result_type(x), jnp.integer)
    ]


def _counts(setup: Setup, stream: Stream) -> list[str]:
    """Merges that take more or fewer models than there are tasks."""
    takes = {k: s.build().models for k, s in setup.merges.items()}
    few = [
        f"{k} takes {a if b is None else f'{a} to {b}'} models"
        for k, (a, b) in takes.items()
        if stream.tasks < a or (b is not None and stream.tasks > b)
    ]
    return [*few, f"this stream has {stream.tasks} tasks"] if few else []


def _inputs(stream: Stream, parts: stages.Parts, g: Groups) -> tuple[Any, Any]:
    """Inputs and targets of the first group of a set, as the model reads them."""
    take = lambda tree: jax.tree.map(lambda a: jnp.asarray(a)[jnp.asarray(g.rows)[0]], tree)
    given = jnp.zeros(g.rows.shape[1], jnp.int32)
    return parts.problem.view(take(g.inputs), stream.info, given, None), take(g.targets)


def _outputs(stream: Stream, parts: stages.Parts) -> Any:
    """The form of what the model gives for the first group."""
    first = sets_of(stream)[0]
    outputs = lambda key: parts.model.apply(
        parts.model.init(key), _inputs(stream, parts, first)[0], jnp.int32(0)
    )
    found = jax.eval_shape(outputs, jax.random.key(0))
    if not hasattr(found, "logits"):
        raise ValueError(
            f"The model's `apply` gives {kind(found)}, expected `Outputs(logits)` of "
            "`jaxmerge.continual.records`."
        )
    return found


def _columns(stream: Stream, parts: stages.Parts, outputs: Any) -> list[str]:
    """Columns of tasks and groups that are of another number than those of the model."""
    forms = forms_of_own(stream)
    if parts.problem.labels is None or not forms:
        return []
    many = outputs.logits.shape[-1]
    return [
        f"the model has {many} columns, {who} has {columns}"
        for who, (*_, columns) in forms.items()
        if columns != many
    ]


def _metrics(stream: Stream, parts: stages.Parts) -> list[str]:
    """Evaluators that give no number for each example."""
    wrong = []
    for g in sets_of(stream):
        many, task = g.rows.shape[1], jnp.int32(0)

        def values(key, g=g, many=many, task=task):
            inputs, targets = _inputs(stream, parts, g)
            info = jax.tree.map(lambda a: jnp.asarray(a)[jnp.zeros(many, jnp.int32)], g.info)
            info = with_met(info, stream.info, task)
            return scores(parts, parts.model.init(key), inputs, targets, task, task, info)

        found = {
            n: x if hasattr(x, "shape") else None
            for n, x in jax.eval_shape(values, jax.random.key(0)).items()
        }
        bad = [
            f"{n} gives {kind(x)}"
            for n, x in found.items()
            if x is None or x.shape != (many,) or not jnp.issubdtype(x.dtype, jnp.floating)
        ]
        if bad:
            wrong += [f"An evaluator gives one float for each of {many} examples", *bad]
            break
    return wrong


def _targets(stream: Stream, parts: stages.Parts, outputs: Any) -> list[str]:
    """Targets that are no column of what the model gives, where the problem says that they are."""
    if parts.problem.labels is None:
        return []
    low, high = parts.problem.labels(outputs)
    read = {"training": (stream.targets, stream.rows, stream.weight)}
    for k, g in enumerate(sets_of(stream)):
        read[f"{whose(stream, k)}s"] = (g.targets, g.rows, g.weight)
    wrong = []
    for who, (targets, rows, weight) in read.items():
        if not concrete(targets, rows, weight):
            continue
        used = np.unique(np.asarray(rows)[np.asarray(weight) > 0])
        for x in jax.tree.leaves(targets):
            own = np.asarray(x)[used]
            if own.min() < low or own.max() > high:
                wrong.append(f"targets are {low} to {high}, {who} has {own.min()} to {own.max()}")
    return wrong
