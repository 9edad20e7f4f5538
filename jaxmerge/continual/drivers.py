"""Two drivers of one definition: a stream as one pure function, and stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual import scoring, stages
from jaxmerge.continual.checks import check, check_calls, check_resumed
from jaxmerge.continual.parts import build, known_slot
from jaxmerge.continual.stream_records import Result, Setup, State, Stream
from jaxmerge.core.specs import Static
from jaxmerge.core.types import Array, concrete
from jaxmerge.errors import listed

STAGES = (stages.begin, stages.train, stages.end, stages.fold)
FIGURES = (scoring.score, scoring.not_numbers)
compiled = {f: jax.jit(f) for f in (stages.create, *STAGES, *FIGURES)}


def program(
    setup: Setup,
    stream: Stream,
    key: Array,
    *,
    score_every: int = 1,
    anytime: int = 1,
    models: bool = False,
) -> Result:
    """A whole stream as one pure function of the floats of the setup, of data and key.

    It is checked, and compiled once for all setups and streams of one form.  Inside ``jax.jit`` it
    is part of what is compiled there, and of arrays that are traced only the forms are checked.
    Over many seeds or strengths use ``jax.vmap`` on an accelerator and ``jax.lax.map`` on a CPU,
    where batched matrix products are slower than single ones.  Map over the rows of a stream, not
    over its weight: skipped steps would be computed.

    Args:
        setup: all that decides the figures besides data and key.
        stream: data and their order.
        key: PRNG key.
        score_every: score after every so many tasks, and after the last one; 0: never.
        models: give the weights after every task, what merges fold, ``[T, ...]``.
        anytime: parts of a task, after each of which is scored: R is ``[T, parts, G]``.  A part has
            ceil(steps / parts) steps of the longest task, so that marks come at equal distances
            within a task; the last ones of a task may have fewer, or none.  Merges fold whole
            tasks: within a task they are scored without it; the mark of its last step, and those
            after it, are taken when the task has ended and its model is folded, as without parts.

    Raises:
        ValueError: what does not fit together, see `jaxmerge.continual.checks`; more parts than a
            task has steps, or numbers out of their ranges.

    >>> from jaxmerge.continual import optimisers, problems, streams
    >>> from jaxmerge.models.mlp.learner import mlp
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> stream = streams.split((x, y), (x, y), [[0, 1], [2, 3]], batch=2)
    >>> setup = Setup(mlp(4, (3,), 4), problems.classification(), optimisers.sgd(0.1))
    >>> result = jax.eval_shape(program, setup, stream, jax.random.key(0))
    >>> result.R["last model"]["accuracy"].shape
    (2, 2)
    """
    check(setup, stream, traced=True)
    check_calls(stream, score_every, 0, anytime)
    whole = _program if concrete(setup, stream, key) else _traced
    return whole(setup, stream, key, score_every=score_every, anytime=anytime, models=models)


def _traced(
    setup: Setup, stream: Stream, key: Array, *, score_every: int, anytime: int, models: bool
) -> Result:
    """`program` as it is compiled."""
    steps, last = stream.rows.shape[1], stream.tasks - 1

    def scored(state: State, t: Array, wanted: Any = True) -> tuple[dict, Array]:
        """Figures, and whether they are numbers."""
        score = lambda s: scoring.score(setup, stream, s, t)
        if score_every == 0:
            return {}, jnp.bool_(True)
        due = (((t + 1) % score_every == 0) | (t == last)) & wanted
        if score_every == 1 and wanted is True:
            R = score(state)
        else:
            R = jax.lax.cond(due, score, lambda s: unscored(score, s), state)
        nan = jax.tree.leaves(scoring.not_numbers(setup, stream, state, R))
        return R, ~(due & jnp.any(jnp.stack(nan)))

    def at_once(state: State, t: Array):
        state, losses = stages.train(setup, stream, state, t)
        state = stages.fold(setup, stream, stages.end(setup, stream, state, t), t)
        return state, (scored(state, t), losses)

    def in_parts(state: State, t: Array):
        size = -(-steps // anytime)
        room = ((0, anytime * size - steps), (0, 0))  # steps of weight 0 are skipped
        cut = lambda x: jnp.pad(jnp.asarray(x)[t], room).reshape(anytime, size, -1)
        total = stages.steps_of(stream, t)

        rows = tuple(cut(x) for x in (stream.rows, stream.origin, stream.weight))
        used = jnp.any(rows[2] > 0, (1, 2))
        within = jnp.cumsum(used) < jnp.sum(used)  # more of the task comes after the mark

        def part(state, given):
            rows, more = given
            state, losses = stages.train(setup, stream, state, t, rows, total)
            return state, (scored(state, t, more), losses)

        state, ((R, numbers), losses) = jax.lax.scan(part, state, (rows, within))
        state = stages.fold(setup, stream, stages.end(setup, stream, state, t), t)
        whole, number = scored(state, t)
        chosen = lambda every, one: jnp.where(within.reshape(-1, *[1] * one.ndim), every, one)
        R = jax.tree.map(chosen, R, whole)
        return state, ((R, numbers & number), losses.reshape(-1)[:steps])

    def task(state: State, t: Array):
        state = stages.begin(setup, stream, state, t)
        state, ((R, numbers), losses) = (at_once if anytime == 1 else in_parts)(state, t)
        model = build(setup, stream.tasks).model
        after = dict(model.weights(state.params, t)) if models else {}
        return state, (R, losses, is_finite(state, losses) & jnp.all(numbers), after)

    state = stages.create(setup, stream, key)
    state, rest = jax.lax.scan(task, state, jnp.arange(stream.tasks))
    return Result(state, *rest)


_program = jax.jit(_traced, static_argnames=("score_every", "anytime", "models"))


def unscored(score: Callable[[State], dict[str, Any]], state: State) -> dict[str, Any]:
    """NaN in the form of figures.

    Args:
        score: state -> figures, a pytree of floats.
        state: of `run`; only shapes are read.

    >>> unscored(lambda state: {"accuracy": state}, jnp.zeros(2))["accuracy"].tolist()
    [nan, nan]
    """
    shapes = jax.eval_shape(score, state)
    return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)


def is_finite(state: State, losses: Array) -> Array:
    """bool: whether the losses and all weights are finite.

    Args:
        state: its weights are looked at.
        losses: of a task's steps.

    >>> from types import SimpleNamespace
    >>> state = SimpleNamespace(params={"w": jnp.array([1.0, jnp.inf])})
    >>> bool(is_finite(state, jnp.zeros(3)))
    False
    """
    return jnp.all(jnp.isfinite(losses)) & scoring.all_finite(state.params)


def run(
    setup: Setup,
    stream: Stream,
    key: Array,
    *,
    watch: Callable[[int, State, dict], None] = lambda t, state, R: None,
    score_every: int = 1,
    state: State | None = None,
    first: int = 0,
) -> Result:
    """The same stage by stage: each is compiled once, and hooks may use the host.

    Args:
        setup: all that decides the figures besides data and key.
        stream: data and their order.
        key: PRNG key.
        watch: called after every task with its index, the state (a checkpoint) and its figures
            (NaN where it was not scored).
        score_every: score after every so many tasks, 1 or more, and after the last one.
        state, first: go on from this state, with this task.

    Raises:
        ValueError: what does not fit together, see `jaxmerge.continual.checks`; a task that is to
            train a slot that is not there; an evaluator that gives NaN of finite weights.

    >>> from jaxmerge.continual import optimisers, problems, streams
    >>> from jaxmerge.models.mlp.learner import mlp
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> stream = streams.split((x, y), (x, y), [[0, 1], [2, 3]], batch=2)
    >>> setup = Setup(mlp(4, (3,), 4), problems.classification(), optimisers.sgd(0.1))
    >>> result = run(setup, stream, jax.random.key(0), watch=lambda t, state, R: print("task", t))
    task 0
    task 1
    >>> result.losses.shape
    (2, 1)
    """
    check(setup, stream)
    check_calls(stream, score_every, 1)
    check_resumed(setup, stream, state, first)
    parts = build(setup, stream.tasks)
    host = any(m.host for m in parts.methods)
    stream = jax.tree.map(jnp.asarray, stream)
    now: State = compiled[stages.create](setup, stream, key) if state is None else state
    figures, losses, finite = [], [], []
    for t in range(first, stream.tasks):
        index = np.int32(t) if host else jnp.int32(t)
        at_border = (lambda f: f) if host else compiled.__getitem__
        now = at_border(stages.begin)(setup, stream, now, index)
        known_slot(parts, now.params, t)
        now, task_losses = compiled[stages.train](setup, stream, now, index)
        now = at_border(stages.end)(setup, stream, now, index)
        now = compiled[stages.fold](setup, stream, now, index)
        losses.append(task_losses)
        finite.append(is_finite(now, task_losses))
        score = partial(compiled[scoring.score], setup, stream, t=index)
        due = (t + 1) % score_every == 0 or t == stream.tasks - 1
        figures.append(score(now) if due else unscored(score, now))
        watch(t, now, figures[-1])
        if due:
            nan = compiled[scoring.not_numbers](setup, stream, now, figures[-1])
            finite[-1] = finite[-1] & _numbers(t, nan, finite[-1])
    pile = lambda *x: jnp.stack(x)
    return Result(now, jax.tree.map(pile, *figures), jnp.stack(losses), jnp.stack(finite))


def _numbers(t: int, nan: dict[str, dict[str, Array]], finite: Array) -> bool:
    """Whether no figure is NaN; ValueError where one is that only an evaluator can have made."""
    wrong = [
        f"{n} gives NaN for group {int(np.argmax(x))} of {label!r}"
        for label, own in nan.items()
        for n, x in own.items()
        if np.any(x)
    ]
    if wrong and finite:
        raise ValueError(
            f"After task {t} all weights are finite, but {listed(wrong[:3])[:-1]}: an evaluator "
            "gives a number for every example, and `Groups.metrics` says which groups have none."
        )
    return not wrong


def joint(stream: Stream, key: Array) -> Stream:
    """All tasks at once: a stream of one task, its examples in random order.

    There is one task index then: use an objective over all columns, and no slots.

    Args:
        stream: of any tasks.
        key: PRNG key of the order.

    >>> from jaxmerge.continual import optimisers, problems, streams
    >>> from jaxmerge.models.mlp.learner import mlp
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> stream = streams.split((x, y), (x, y), [[0, 1], [2, 3]], batch=2)
    >>> joint(stream, jax.random.key(0)).rows.shape
    (1, 2, 2)
    """
    tasks, steps, batch = stream.rows.shape
    order = jax.random.permutation(key, tasks * steps * batch)
    mix = lambda x: jnp.asarray(x).reshape(-1)[order].reshape(1, tasks * steps, batch)
    return stream._replace(
        rows=mix(stream.rows), origin=mix(stream.origin), weight=mix(stream.weight), sample=None,
        promise=Static("once" if stream.promise.value == "once" else "nothing"),
    )  # fmt: skip
