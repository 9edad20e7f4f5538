"""One step of the optimiser with the hooks of all methods, and several in one scan."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmerge.continual.hook_calls import named, pair, shaped
from jaxmerge.continual.parts import (
    Fed,
    Parts,
    lengths_of_slots,
    named_key,
    objective_name,
    objective_of,
    same_form,
    trained_leaves,
    transform,
    with_trained,
)
from jaxmerge.continual.projection import Projection, projection, spans_of, stopped
from jaxmerge.continual.records import Batch, Step
from jaxmerge.continual.stream_records import Setup, State
from jaxmerge.core.types import Array
from jaxmerge.numerics.precision import full_precision


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
        What the steps change, and the total loss of each: 0 where it was skipped, NaN where
        `Model.slot` names a slot that is not there, which no step can write.
    """

    form = jax.eval_shape(read, jax.tree.map(lambda x: x[0], part[0])).weight
    rows = len(part[1]) * math.prod(form.shape)
    project = projection(setup, parts, fit.memory, fit.trained, rows)

    def step(fit, x):
        take = lambda f: one_step(setup, parts, info, state, t, total, project, f, read(x[0]))
        return jax.lax.cond(x[1], take, lambda f: (f, jnp.zeros((), form.dtype)), fit)

    fit, losses = jax.lax.scan(step, fit, part)
    if lengths := lengths_of_slots(parts.model, state.params, trained=True):
        slot = parts.model.slot({**state.params, **fit.statistics}, t)
        there = (slot >= 0) & (slot < min(lengths.values()))
        losses = jnp.where(there, losses, jnp.nan)
    return fit, losses


def one_step(
    setup: Setup, parts: Parts, info: Any, state: State, t: Array, total: Any, project: Projection,
    fit: Fit, batches: Batch,
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
            stored_inputs, inputs = raw.inputs
        else:
            stored_inputs, inputs = raw.inputs, view(raw.inputs, raw.task, named_key(key, "view"))
        return Step(
            {}, state.base, raw._replace(inputs=inputs), stored_inputs, view, None, None, info, t,
            fit.count, total, key, objective,
        )  # fmt: skip

    def seen(i: int, step: Step, memory: Any, **more: Any) -> Step:
        return step._replace(memory=memory[i], key=named_key(step.key, parts.names[i]), **more)

    def losses(trained, raw: Batch, key: Array):
        params = with_trained(model, before, trained, t)
        step = look(raw, key)
        learn = lambda p, x: model.learn(p, x, t, named_key(key, "model"))
        out = project.learn(learn, params, step.batch.inputs)
        weight = step.batch.weight
        values = objective(out, step.batch)
        values = shaped(values, weight.shape, objective_name(parts), "a loss for each example")
        per_example = jnp.where(weight > 0, weight * values, 0)  # a filler's may be inf
        per_example = jnp.sum(per_example) / jnp.sum(weight)
        terms = []
        for i, (m, name) in enumerate(hooks):
            if m.loss is not None:
                with named(f"{name}: `loss`"):
                    term = m.loss(model, seen(i, step, fit.memory, params=params, outputs=out))
                terms.append(shaped(term, (), f"{name}: `loss`", "a scalar"))
        new = dict(out.aux["statistics"]) if fit.statistics else {}
        return (per_example, sum(terms, jnp.zeros_like(per_example))), (params, out, new)

    def summed(trained, raw, key):
        (data_loss, terms), aux = losses(trained, raw, key)
        return data_loss + terms, aux

    watched = any(m.gradient or m.update or m.observe for m, _ in hooks)
    apart = watched and any(m.loss for m, _ in hooks)

    def gradients(trained, raw, key):
        """(loss, gradient of all, of the objective alone), (params, outputs, statistics)."""
        if not apart:
            (loss, aux), grads = jax.value_and_grad(summed, has_aux=True)(trained, raw, key)
            return (loss, grads, grads), aux
        (data_loss, terms), pull, aux = jax.vjp(
            lambda x: losses(x, raw, key), trained, has_aux=True
        )
        one, zero = jnp.ones_like(data_loss), jnp.zeros_like(terms)
        return (data_loss + terms, pull((one, one))[0], pull((one, zero))[0]), aux

    def over_parts(trained):
        if setup.accumulate == 1:
            return gradients(trained, jax.tree.map(lambda x: x[0], batches), root)

        def add(sums, x):
            raw, k = x
            part, (_, out, new) = gradients(trained, raw, jax.random.fold_in(root, k))
            return jax.tree.map(jnp.add, sums, part[: len(sums)]), (out, new)

        like = jax.eval_shape(
            lambda: gradients(trained, jax.tree.map(lambda x: x[0], batches), root)
        )
        count = 3 if apart else 2
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like[0][:count])
        sums, (out, new) = jax.lax.scan(add, zeros, (batches, jnp.arange(setup.accumulate)))
        new = jax.tree.map(lambda x: x[-1], new)
        mean = jax.tree.map(lambda x: x / setup.accumulate, sums)
        out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]) if x.ndim > 1 else x, out)
        mean = mean if apart else (*mean, mean[1])
        return mean, (with_trained(model, before, trained, t), out, new)

    def objective_at(trained):
        alone = lambda raw, key: jax.grad(lambda x: losses(x, raw, key)[0][0])(trained)
        if setup.accumulate == 1:
            return alone(jax.tree.map(lambda x: x[0], batches), root)
        of_part = lambda x: alone(x[0], jax.random.fold_in(root, x[1]))
        values = jax.lax.map(of_part, (batches, jnp.arange(setup.accumulate)))
        return jax.tree.map(lambda x: jnp.mean(x, 0), values)

    def joined() -> Step:
        """The step as hooks see it, with the parts of the batch as one."""
        whole, inputs = batches, batches.inputs
        if setup.accumulate > 1 and isinstance(inputs, Fed):
            whole = batches._replace(inputs=inputs.stored)
        return look(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), whole), root)

    def call(i: int, which: str, step: Step, memory: Any, *args: Any, **more: Any) -> Any:
        with named(f"{parts.names[i]}: `{which}`"):
            hook = full_precision(getattr(parts.methods[i], which))
            return hook(model, seen(i, step, memory, **more), *args)

    def moved(tree: Any, given: Any, who: str, what: str) -> Any:
        return same_form(tree, given, who, what, dtypes=False)

    start = fit.trained
    for i, (m, name) in enumerate(hooks):
        if m.perturb is not None:
            step = joined()._replace(params=with_trained(model, before, start, t))
            given = call(i, "perturb", step, fit.memory, start, objective_at)
            start = moved(start, given, f"{name}: `perturb`", "the trained leaves")
    (loss, grads, plain), (params, out, statistics) = over_parts(start)
    memory = list(fit.memory)
    if watched:
        step = joined()._replace(params=params, outputs=out, grads=plain)
    grad_at = lambda trained: over_parts(trained)[0][1]
    for i, (m, name) in enumerate(hooks):
        if m.gradient is not None:
            given = call(i, "gradient", step, memory, grads, grad_at)
            grads = moved(grads, given, f"{name}: `gradient`", "the gradient")
    updates, moments = transform(setup, total).update(grads, fit.moments, start)
    if start is not fit.trained:  # what the step adds begins where the weights were
        updates = jax.tree.map(lambda u, a, b: u + (a - b), updates, start, fit.trained)
        params = with_trained(model, before, fit.trained, t)
    for i, (m, name) in enumerate(hooks):
        if m.update is not None:
            given = call(i, "update", step, memory, updates, params=params)
            given, after = pair(given, f"{name}: `update`", "updates")
            updates = moved(updates, given, f"{name}: `update`", "the updates")
            memory[i] = same_form(memory[i], after, f"{name}: `update`")
    updates = project.updates(updates, spans_of(parts, memory, fit.trained))
    updates = stopped(parts, memory, updates, t)
    for i, (m, name) in enumerate(hooks):
        if m.observe is not None:
            after = call(i, "observe", step, memory, updates=updates, params=params)
            memory[i] = same_form(memory[i], after, f"{name}: `observe`")
    trained = optax.apply_updates(fit.trained, updates)
    fit = Fit(trained, statistics, moments, tuple(memory), fit.count + 1)
    return fit, loss.astype(batches.weight.dtype)
