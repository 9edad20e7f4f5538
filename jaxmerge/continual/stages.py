"""The stages of a task, each ``(setup, stream, state, t) -> state`` with a traced t.

Nothing depends on t in shape, so nothing is compiled twice.  Both drivers call these functions (and
`scoring.score`), and so does the loop that reads its batches from the host (`train` with `part`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.continual.hook_calls import kind, named, pair
from jaxmerge.continual.parts import (
    Fed,
    Parts,
    build,
    lengths_of_slots,
    merged_params,
    named_key,
    objective_of,
    same_form,
    stored,
    trained_leaves,
    transform,
    with_trained,
)
from jaxmerge.continual.records import Batch, Border
from jaxmerge.continual.step import fit_of, steps
from jaxmerge.continual.stream_records import Setup, State, Stream
from jaxmerge.core.types import Array, Leaves
from jaxmerge.drivers import memory as merging
from jaxmerge.errors import listed
from jaxmerge.numerics.precision import full_precision


def create(setup: Setup, stream: Stream, key: Array) -> State:
    """The state before the first task."""
    parts = build(setup, stream.tasks)
    first, rest = jax.random.split(key)
    base = dict(parts.model.init(first))
    batch = stored(
        stream, *(jnp.asarray(x)[0, 0] for x in (stream.rows, stream.origin, stream.weight))
    )
    return create_from(setup, parts, stream.info, base, batch, rest)


def create_from(
    setup: Setup, parts: Parts, info: Any, base: Leaves, batch: Batch, key: Array
) -> State:
    """The state before the first task, from theta_0 and the form of a stored batch.

    Raises:
        ValueError: slots that do not suffice for the tasks.
    """
    tasks, lengths = parts.tasks, lengths_of_slots(parts.model, base)
    if short := [f"{n} has {k} slots" for n, k in lengths.items() if k < tasks]:
        raise ValueError(
            f"The stream has {tasks} tasks, but {listed(short)[:-1]}; a leaf of slots is "
            "[tasks, ...]."
        )
    folds = {
        label: merging.init(spec.build(), parts.model.weights(base, 0), key=key)
        for label, spec in setup.merges.items()
    }
    if isinstance(batch.inputs, Fed):
        stored_inputs, inputs = batch.inputs
    else:
        stored_inputs, inputs = (
            batch.inputs,
            parts.problem.view(batch.inputs, info, batch.task, None),
        )
    read = batch._replace(inputs=inputs)
    memory = []
    for method, name in zip(parts.methods, parts.names, strict=True):
        with named(f"{name}: `init`"):
            memory.append(method.init(parts.model, base, read, stored_inputs))
    moments = transform(setup, 1).init(trained_leaves(parts.model, base, 0))
    return State(base, base, tuple(memory), folds, moments, jnp.int32(0), key)


def steps_of(stream: Stream, t: Array) -> Array:
    """int32, the steps of task t that hold an example."""
    return jnp.sum(jnp.any(jnp.asarray(stream.weight)[t] > 0, axis=-1), dtype=jnp.int32)


Read = Callable[[int], Batch]


def reader(parts: Parts, stream: Stream, t: Array) -> tuple[Read, Read]:
    """`Border.read` of task t, its sample or else the order of training; and the same as stored."""

    def read(count: int) -> Batch:
        if stream.sample is None:
            flat = [
                jnp.asarray(x)[t].reshape(-1) for x in (stream.rows, stream.origin, stream.weight)
            ]
            rows, origin, weight = (x[:count] for x in flat)
        else:
            rows = jnp.asarray(stream.sample)[t][:count]
            weight = (rows >= 0).astype(jnp.float32)
            rows, origin = jnp.maximum(rows, 0), jnp.full(rows.shape, t, jnp.int32)
        return stored(stream, rows, origin, weight)

    def seen(count: int) -> Batch:
        batch = read(count)
        view = parts.problem.view(batch.inputs, stream.info, batch.task, None)
        return batch._replace(inputs=view)

    return seen, read


def border(
    parts: Parts, info: Any, state: State, t: Array, which: str, read: Read,
    raw: Read | None = None,
) -> State:  # fmt: skip
    """The hooks `begin` or `end` of all methods; `raw` reads what is stored, where that differs."""
    params, memory = state.params, list(state.memory)
    objective = objective_of(parts, info, t)
    for i, (method, name) in enumerate(zip(parts.methods, parts.names, strict=True)):
        hook = getattr(method, which)
        if hook is None:
            continue
        key = named_key(jax.random.fold_in(state.key, t), f"{which} {name}")
        inputs = lambda count: (raw or read)(count).inputs
        place = Border(t, state.base, info, key, read, objective, inputs)
        who = f"{name}: `{which}`"
        with named(who, border=True):
            given = full_precision(hook)(parts.model, params, memory[i], place)
        params, after = pair(given, who, "params")
        if not isinstance(params, Mapping):
            raise ValueError(f"{who} gives (params, memory); its params are {kind(params)}.")
        memory[i] = same_form(memory[i], after, who)
        params = same_form(dict(state.params), dict(params), who, "the params")
    return state._replace(params=params, memory=tuple(memory))


def begin(setup: Setup, stream: Stream, state: State, t: Array) -> State:
    """Where the task starts, what methods do before its first step, the optimiser's moments."""
    parts = build(setup, stream.tasks)
    if setup.start == "base":
        state = state._replace(params=state.base)
    elif setup.start != "last":
        method = setup.merges[setup.start].build()
        enough = state.merges[setup.start].step >= method.models[0]
        merged = merged_params(setup, parts.model, state, setup.start)
        before = {n: jnp.where(enough, p, state.params[n]) for n, p in merged.items()}
        state = state._replace(params=before)
    state = border(parts, stream.info, state, t, "begin", *reader(parts, stream, t))
    if setup.moments == "new":
        own = trained_leaves(parts.model, state.params, t)
        state = state._replace(moments=transform(setup, steps_of(stream, t)).init(own))
    return state._replace(count=jnp.int32(0))


def train(
    setup: Setup, stream: Stream, state: State, t: Array, part: Any = None, total: Any = None
) -> tuple[State, Array]:
    """All steps of a task in one scan, or those of a part of it.

    Args:
        part: None, or ``(rows, origin, weight)`` of the part, each ``[steps, B]``.
        total: the steps of the whole task, where a part does not hold them all.

    Returns:
        The state, and the total loss of every step (0 where it was skipped).
    """
    parts = build(setup, stream.tasks)
    total = steps_of(stream, t) if total is None else total
    if part is None:
        part = tuple(jnp.asarray(x)[t] for x in (stream.rows, stream.origin, stream.weight))
    split = lambda x: x.reshape(setup.accumulate, -1, *x.shape[1:])
    read = lambda x: jax.tree.map(split, stored(stream, *x))
    fit = fit_of(parts, state, t)
    active = jnp.any(part[2] > 0, axis=1)
    fit, losses = steps(setup, parts, stream.info, state, t, total, fit, (part, active), read)
    params = {**state.params, **fit.statistics}
    params = with_trained(parts.model, params, fit.trained, t)
    return state._replace(
        params=params, moments=fit.moments, memory=fit.memory, count=fit.count
    ), losses


def end(setup: Setup, stream: Stream, state: State, t: Array) -> State:
    """What methods do after the last step of a task."""
    parts = build(setup, stream.tasks)
    return border(parts, stream.info, state, t, "end", *reader(parts, stream, t))


def fold(setup: Setup, stream: Stream, state: State, t: Array) -> State:
    """The model of this task enters every merge."""
    model = build(setup, stream.tasks).model
    base, now = model.weights(state.base, 0), model.weights(state.params, t)
    new = {
        label: merging.update(spec.build(), state.merges[label], base, now)
        for label, spec in setup.merges.items()
    }
    return state._replace(merges=new)
