"""The five stages of a task, each ``(setup, stream, state, t) -> state`` with a traced t.

Nothing depends on t in shape, so nothing is compiled twice.  Both drivers call these functions, and
so does the loop that reads its batches from the host (`train` with `part`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmerge.continual.records import (
    LAST,
    Batch,
    Border,
    Groups,
    Method,
    Model,
    Outputs,
    Problem,
    Setup,
    State,
    Step,
    Stream,
)
from jaxmerge.core.types import Array, Leaves
from jaxmerge.drivers import memory as merging


class Parts(NamedTuple):
    """A setup built: the wrapped model, methods with their names, the problem."""

    model: Model
    methods: tuple[Method, ...]
    names: tuple[str, ...]
    problem: Problem


def build(setup: Setup, tasks: int) -> Parts:
    """Build the specs of a setup; wraps are applied in order, the last is outermost.

    Raises:
        ValueError: two methods replace the objective.
    """
    model, methods = setup.model.build(), tuple(m.build() for m in setup.methods)
    names, seen = [], {}
    for spec, method in zip(setup.methods, methods, strict=True):
        name = spec.factory.__name__
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
        if method.wrap is not None:
            model = method.wrap(model, tasks)
    own = [n for n, m in zip(names, methods, strict=True) if m.objective is not None]
    if len(own) > 1:
        raise ValueError(
            f"{' and '.join(own)} both replace the objective; use one of them in a stream."
        )
    return Parts(model, methods, tuple(names), setup.problem.build())


def named_key(key: Array, name: str) -> Array:
    """A key by name, as in merges: a method placed beside another changes none of its draws."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def objective_of(parts: Parts, info: Any, t: Array) -> Callable[..., Array]:
    """``(outputs, batch) -> [B]`` of task t."""
    own = [m.objective for m in parts.methods if m.objective is not None]
    function = own[0] if own else parts.problem.objective
    return lambda outputs, batch: function(outputs, batch, info, t)


# ------------------------------------------------------------------ reading the data


class Fed(NamedTuple):
    """Inputs of a batch whose view the host has made (packed sentences); `stored` as in `Step`."""

    stored: Any
    inputs: Any


def stored(stream: Stream, rows: Array, origin: Array, weight: Array) -> Batch:
    """Examples as they are stored."""
    take = lambda tree: jax.tree.map(lambda x: jnp.asarray(x)[rows], tree)
    return Batch(take(stream.inputs), take(stream.targets), origin, weight)


def steps_of(stream: Stream, t: Array) -> Array:
    """int32, the steps of task t that hold an example."""
    return jnp.sum(jnp.any(jnp.asarray(stream.weight)[t] > 0, axis=-1), dtype=jnp.int32)


def reader(parts: Parts, stream: Stream, t: Array) -> Callable[[int], Batch]:
    """`Border.read` of task t: its sample, or else the order of training."""

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
        batch = stored(stream, rows, origin, weight)
        return batch._replace(inputs=parts.problem.view(batch.inputs, stream.info, origin, None))

    return read


# ------------------------------------------------------------------ the leaves that a task trains


def trained_leaves(model: Model, params: Leaves, t: Array) -> dict[str, Array]:
    """The leaves that task t trains; of slots one only, so moments do not grow with the tasks."""
    slot = model.slot(params, t)
    own = lambda n, p: (
        jax.lax.dynamic_index_in_dim(p, slot, keepdims=False) if model.slots(n) else p
    )
    return {n: own(n, p) for n, p in params.items() if model.trainable(n)}


def with_trained(model: Model, params: Leaves, trained: Leaves, t: Array) -> dict[str, Array]:
    """`params` with trained leaves put in their places."""
    slot = model.slot(params, t)
    put = lambda n, x: (
        jax.lax.dynamic_update_index_in_dim(params[n], x, slot, 0) if model.slots(n) else x
    )
    return {**params, **{n: put(n, x) for n, x in trained.items()}}


# ------------------------------------------------------------------ the stages


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
    """The state before the first task, from theta_0 and the form of a stored batch."""
    folds = {
        label: merging.init(spec.build(), parts.model.weights(base, 0), key=key)
        for label, spec in setup.merges.items()
    }
    if isinstance(batch.inputs, Fed):
        kept, inputs = batch.inputs
    else:
        kept, inputs = batch.inputs, parts.problem.view(batch.inputs, info, batch.task, None)
    read = batch._replace(inputs=inputs)
    memory = tuple(m.init(parts.model, base, read, kept) for m in parts.methods)
    moments = transform(setup, 1).init(trained_leaves(parts.model, base, 0))
    return State(base, base, memory, folds, moments, jnp.int32(0), key)


def transform(setup: Setup, total: Any) -> optax.GradientTransformation:
    """The optimiser of a task of `total` steps; a schedule may read them."""
    made = setup.optimiser.build()
    return made if hasattr(made, "update") else made(total)


def border(
    parts: Parts, info: Any, state: State, t: Array, which: str, read: Callable[[int], Batch]
) -> State:
    """The hooks `begin` or `end` of all methods."""
    params, memory = state.params, list(state.memory)
    objective = objective_of(parts, info, t)
    for i, (method, name) in enumerate(zip(parts.methods, parts.names, strict=True)):
        hook = getattr(method, which)
        if hook is None:
            continue
        key = named_key(jax.random.fold_in(state.key, t), f"{which} {name}")
        place = Border(t, state.base, info, key, read, objective)
        params, after = hook(parts.model, params, memory[i], place)
        memory[i] = same_form(memory[i], after, f"{name}: `{which}`")
        params = same_form(dict(state.params), dict(params), f"{name}: `{which}`", "the params")
    return state._replace(params=params, memory=tuple(memory))


def begin(setup: Setup, stream: Stream, state: State, t: Array) -> State:
    """Where the task starts, what methods do before its first step, a new optimiser."""
    parts = build(setup, stream.tasks)
    if setup.start == "base":
        state = state._replace(params=state.base)
    elif setup.start != "last":
        method = setup.merges[setup.start].build()
        enough = state.merges[setup.start].step >= method.models[0]
        merged = merged_params(setup, parts.model, state, setup.start)
        before = {n: jnp.where(enough, p, state.params[n]) for n, p in merged.items()}
        state = state._replace(params=before)
    state = border(parts, stream.info, state, t, "begin", reader(parts, stream, t))
    moments = transform(setup, steps_of(stream, t)).init(
        trained_leaves(parts.model, state.params, t)
    )
    return state._replace(moments=moments, count=jnp.int32(0))


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


def steps(
    setup: Setup, parts: Parts, info: Any, state: State, t: Array, total: Any, fit: Fit,
    part: tuple[Any, Array], read: Callable[[Any], Batch] = lambda batch: batch,
) -> tuple[Fit, Array]:  # fmt: skip
    """Several steps in one scan.

    Args:
        state: its base and key, and of its params what does not train.
        part: ``(what read reads, active [steps])``; nothing is computed where not active.
        read: gives a `Batch` of stored inputs, leaves ``[accumulate, B / accumulate, ...]``.

    Returns:
        What the steps change, and the total loss of each, 0 where it was skipped.
    """

    def step(fit, x):
        take = lambda f: one_step(setup, parts, info, state, t, total, f, read(x[0]))
        kind = jax.eval_shape(read, x[0]).weight.dtype
        return jax.lax.cond(x[1], take, lambda f: (f, jnp.zeros((), kind)), fit)

    return jax.lax.scan(step, fit, part)


class Fit(NamedTuple):
    """What a step changes: the trained leaves, statistics, moments, memory, steps taken."""

    trained: Any
    statistics: Any
    moments: Any
    memory: tuple
    count: Array


def fit_of(parts: Parts, state: State, t: Array) -> Fit:
    """The part of a state that the steps of task t change."""
    statistics = {n: p for n, p in state.params.items() if parts.model.statistics(n)}
    trained = trained_leaves(parts.model, state.params, t)
    return Fit(trained, statistics, state.moments, state.memory, state.count)


def one_step(
    setup: Setup, parts: Parts, info: Any, state: State, t: Array, total: Any, fit: Fit,
    batches: Batch,
) -> tuple[Fit, Array]:  # fmt: skip
    """One step of the optimiser on a batch in parts ``[accumulate, B, ...]`` of stored inputs."""
    model, problem = parts.model, parts.problem
    root = jax.random.fold_in(jax.random.fold_in(state.key, t), fit.count)
    objective = objective_of(parts, info, t)
    view = lambda x, task, key: problem.view(x, info, task, key)
    hooks = tuple(zip(parts.methods, parts.names, strict=True))
    before = {**state.params, **fit.statistics}

    def look(raw: Batch, key: Array) -> Step:
        if isinstance(raw.inputs, Fed):
            kept, inputs = raw.inputs
        else:
            kept, inputs = raw.inputs, view(raw.inputs, raw.task, named_key(key, "view"))
        return Step(
            None, state.base, raw._replace(inputs=inputs), kept, view, None, None, info, t,
            fit.count, total, key, objective,
        )  # fmt: skip

    def seen(i: int, step: Step, memory: Any, **more: Any) -> Step:
        return step._replace(memory=memory[i], key=named_key(step.key, parts.names[i]), **more)

    def losses(trained, raw: Batch, key: Array):
        params = with_trained(model, before, trained, t)
        step = look(raw, key)
        out = model.learn(params, step.batch.inputs, t, named_key(key, "model"))
        weight = step.batch.weight
        each = jnp.sum(weight * objective(out, step.batch)) / jnp.sum(weight)
        terms = [
            m.loss(model, seen(i, step, fit.memory, params=params, outputs=out))
            for i, (m, _) in enumerate(hooks)
            if m.loss is not None
        ]
        new = dict(out.aux["statistics"]) if fit.statistics else {}
        return (each, sum(terms, jnp.zeros_like(each))), (params, out, new)

    def summed(trained, raw, key):
        (each, terms), aux = losses(trained, raw, key)
        return each + terms, aux

    watched = any(m.gradient or m.update or m.observe for m, _ in hooks)
    apart = watched and any(m.loss for m, _ in hooks)

    def gradients(trained, raw, key):
        """(loss, gradient of all, of the objective alone), (params, outputs, statistics)."""
        if not apart:
            (loss, aux), grads = jax.value_and_grad(summed, has_aux=True)(trained, raw, key)
            return (loss, grads, grads), aux
        (each, terms), pull, aux = jax.vjp(lambda x: losses(x, raw, key), trained, has_aux=True)
        one, zero = jnp.ones_like(each), jnp.zeros_like(terms)
        return (each + terms, pull((one, one))[0], pull((one, zero))[0]), aux

    def over_parts(trained):
        if setup.accumulate == 1:
            return gradients(trained, jax.tree.map(lambda x: x[0], batches), root)

        def add(sums, x):
            raw, k = x
            found, (_, out, new) = gradients(trained, raw, jax.random.fold_in(root, k))
            return jax.tree.map(jnp.add, sums, found[: len(sums)]), (out, new)

        like = jax.eval_shape(
            lambda: gradients(trained, jax.tree.map(lambda x: x[0], batches), root)
        )
        kept = 3 if apart else 2
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like[0][:kept])
        sums, (out, new) = jax.lax.scan(add, zeros, (batches, jnp.arange(setup.accumulate)))
        new = jax.tree.map(lambda x: x[-1], new)
        found = jax.tree.map(lambda x: x / setup.accumulate, sums)
        out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]) if x.ndim > 1 else x, out)
        found = found if apart else (*found, found[1])
        return found, (with_trained(model, before, trained, t), out, new)

    def objective_at(trained):
        alone = lambda raw, key: jax.grad(lambda x: losses(x, raw, key)[0][0])(trained)
        if setup.accumulate == 1:
            return alone(jax.tree.map(lambda x: x[0], batches), root)
        each = lambda x: alone(x[0], jax.random.fold_in(root, x[1]))
        found = jax.lax.map(each, (batches, jnp.arange(setup.accumulate)))
        return jax.tree.map(lambda x: jnp.mean(x, 0), found)

    def joined() -> Step:
        """The step as hooks see it, with the parts of the batch as one."""
        whole, inputs = batches, batches.inputs
        if setup.accumulate > 1 and isinstance(inputs, Fed):
            whole = batches._replace(inputs=inputs.stored)
        return look(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), whole), root)

    start = fit.trained
    for i, (m, _) in enumerate(hooks):
        if m.perturb is not None:
            step = joined()._replace(params=with_trained(model, before, start, t))
            start = m.perturb(model, seen(i, step, fit.memory), start, objective_at)
    (loss, grads, plain), (params, out, statistics) = over_parts(start)
    memory = list(fit.memory)
    if watched:
        step = joined()._replace(params=params, outputs=out, grads=plain)
    grad_at = lambda trained: over_parts(trained)[0][1]
    for i, (m, _) in enumerate(hooks):
        if m.gradient is not None:
            grads = m.gradient(model, seen(i, step, memory), grads, grad_at)
    updates, moments = transform(setup, total).update(grads, fit.moments, start)
    for i, (m, name) in enumerate(hooks):
        if m.update is not None:
            updates, after = m.update(model, seen(i, step, memory), updates)
            memory[i] = same_form(memory[i], after, f"{name}: `update`")
    for i, (m, name) in enumerate(hooks):
        if m.observe is not None:
            after = m.observe(model, seen(i, step, memory, updates=updates))
            memory[i] = same_form(memory[i], after, f"{name}: `observe`")
    trained = optax.apply_updates(start, updates)
    fit = Fit(trained, statistics, moments, tuple(memory), fit.count + 1)
    return fit, loss.astype(batches.weight.dtype)


def end(setup: Setup, stream: Stream, state: State, t: Array) -> State:
    """What methods do after the last step of a task."""
    parts = build(setup, stream.tasks)
    return border(parts, stream.info, state, t, "end", reader(parts, stream, t))


def fold(setup: Setup, stream: Stream, state: State, t: Array) -> State:
    """The model of this task enters every merge."""
    model = build(setup, stream.tasks).model
    base, now = model.weights(state.base, 0), model.weights(state.params, t)
    new = {
        label: merging.update(spec.build(), state.merges[label], base, now)
        for label, spec in setup.merges.items()
    }
    return state._replace(merges=new)


def merged_params(setup: Setup, model: Model, state: State, label: str) -> Leaves:
    """The params of a deployment."""
    if label == LAST:
        return state.params
    base = model.weights(state.base, 0)
    return model.put(
        state.params, merging.merged(setup.merges[label].build(), state.merges[label], base)
    )


def score(setup: Setup, stream: Stream, state: State, t: Array) -> dict[str, dict[str, Array]]:
    """Deployment -> metric -> ``[G]``; t is the last task that was learnt."""
    parts = build(setup, stream.tasks)
    sets = (stream.groups,) if isinstance(stream.groups, Groups) else tuple(stream.groups)
    names = sorted(parts.problem.evaluators)

    def one(params, groups, x):
        rows, weight, task, info, chosen = x
        take = lambda tree: jax.tree.map(lambda a: jnp.asarray(a)[rows], tree)
        each = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(rows), *a.shape)), info)
        given = jnp.broadcast_to(task, rows.shape)
        inputs = parts.problem.view(take(groups.inputs), stream.info, given, None)
        values = scores(parts, params, inputs, take(groups.targets), task, t, each)
        mean = {n: jnp.sum(weight * v) / jnp.sum(weight) for n, v in values.items()}
        found = {n: parts.problem.evaluators[n].finish(mean[n]) for n in names}
        return {n: jnp.where(chosen[k], found[n], jnp.nan) for k, n in enumerate(names)}

    def every(params):
        columns = []
        for g in sets:
            chosen = np.ones((len(g.task), len(names)), bool) if g.metrics is None else g.metrics
            xs = jax.tree.map(jnp.asarray, (g.rows, g.weight, g.task, g.info, chosen))
            columns.append(jax.lax.map(lambda x, g=g: one(params, g, x), xs))
        return {n: jnp.concatenate([c[n] for c in columns]) for n in names}

    labels = (LAST, *setup.merges)
    return {k: every(merged_params(setup, parts.model, state, k)) for k in labels}


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


def same_form(before: Any, after: Any, who: str, what: str = "its memory") -> Any:
    """`after`, if its structure, shapes and dtypes are those of `before`.

    Raises:
        ValueError: they are not; compiled code needs one form for all tasks.
    """
    form = lambda tree: {
        jax.tree_util.keystr(path): (tuple(jnp.shape(x)), jnp.result_type(x))
        for path, x in jax.tree.leaves_with_path(tree)
    }
    one, other = form(before), form(after)
    wrong = [
        f"{k or 'it'} was {_said(one.get(k))}, is {_said(other.get(k))}"
        for k in {**one, **other}
        if one.get(k) != other.get(k)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{who} changes the form of {what}: {'; '.join(wrong[:3])}{more}.")
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(f"{who} changes the structure of {what}.")
    return after


def _said(form: tuple | None) -> str:
    return "absent" if form is None else f"{form[1]}{list(form[0])}"
