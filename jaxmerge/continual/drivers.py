"""Two drivers of one definition: a stream as one pure function, and stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmerge.continual import scoring, stages
from jaxmerge.continual.checks import check
from jaxmerge.continual.parts import build
from jaxmerge.continual.stream_records import Groups, Result, Setup, State, Stream
from jaxmerge.core.specs import Static
from jaxmerge.core.types import Array, Tree

STAGES = (stages.begin, stages.train, stages.end, stages.fold)
compiled = {f: jax.jit(f) for f in (stages.create, *STAGES, scoring.score)}


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

    Wrap it in ``jax.jit``; over many seeds or strengths use ``jax.vmap`` on an accelerator and
    ``jax.lax.map`` on a CPU, where batched matrix products are slower than single ones.  Map over
    the rows of a stream, not over its weight: skipped steps would be computed.

    Args:
        setup: all that decides the figures besides data and key.
        stream: data and their order.
        key: PRNG key.
        score_every: score after every so many tasks, and after the last one; 0: never.
        models: give the weights after every task, what merges fold, ``[T, ...]``.
        anytime: parts of a task, after each of which is scored: R is ``[T, parts, G]``.  Merges
            fold whole tasks.

    Raises:
        ValueError: what does not fit together, see `jaxmerge.continual.checks`; steps of a task
            that `anytime` does not divide.

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
    steps = stream.rows.shape[1]
    if steps % anytime:
        raise ValueError(f"anytime={anytime} does not divide the {steps} steps of a task.")
    last = stream.tasks - 1

    def scored(state: State, t: Array) -> dict:
        score = lambda s: scoring.score(setup, stream, s, t)
        if score_every == 0:
            return {}
        if score_every == 1:
            return score(state)
        due = ((t + 1) % score_every == 0) | (t == last)
        return jax.lax.cond(due, score, lambda s: unscored(score, s), state)

    def at_once(state: State, t: Array):
        state, losses = stages.train(setup, stream, state, t)
        state = stages.fold(setup, stream, stages.end(setup, stream, state, t), t)
        return state, (scored(state, t), losses)

    def in_parts(state: State, t: Array):
        cut = lambda x: jnp.asarray(x)[t].reshape(anytime, steps // anytime, *x.shape[2:])
        total = stages.steps_of(stream, t)

        def part(state, rows):
            state, losses = stages.train(setup, stream, state, t, rows, total)
            return state, (scored(state, t), losses)

        rows = tuple(cut(x) for x in (stream.rows, stream.origin, stream.weight))
        state, (R, losses) = jax.lax.scan(part, state, rows)
        state = stages.fold(setup, stream, stages.end(setup, stream, state, t), t)
        return state, (R, losses.reshape(-1))

    def task(state: State, t: Array):
        state = stages.begin(setup, stream, state, t)
        state, (R, losses) = (at_once if anytime == 1 else in_parts)(state, t)
        model = build(setup, stream.tasks).model
        after = dict(model.weights(state.params, t)) if models else {}
        return state, (R, losses, is_finite(state, losses), after)

    state = stages.create(setup, stream, key)
    state, rest = jax.lax.scan(task, state, jnp.arange(stream.tasks))
    return Result(state, *rest)


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
    floats = [p for p in state.params.values() if jnp.issubdtype(p.dtype, jnp.floating)]
    good = [jnp.all(jnp.isfinite(x)) for x in (losses, *floats)]
    return jnp.all(jnp.stack(good))


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
        ValueError: what does not fit together, see `jaxmerge.continual.checks`.

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
    methods = [m.build() for m in setup.methods]
    host = any(m.host for m in methods)
    stream = jax.tree.map(jnp.asarray, stream)
    now: State = compiled[stages.create](setup, stream, key) if state is None else state
    figures, losses, finite = [], [], []
    for t in range(first, stream.tasks):
        index = np.int32(t) if host else jnp.int32(t)
        at_border = (lambda f: f) if host else compiled.__getitem__
        now = at_border(stages.begin)(setup, stream, now, index)
        now, task_losses = compiled[stages.train](setup, stream, now, index)
        now = at_border(stages.end)(setup, stream, now, index)
        now = compiled[stages.fold](setup, stream, now, index)
        losses.append(task_losses)
        finite.append(is_finite(now, task_losses))
        score = partial(compiled[scoring.score], setup, stream, t=index)
        due = (t + 1) % score_every == 0 or t == stream.tasks - 1
        figures.append(score(now) if due else unscored(score, now))
        watch(t, now, figures[-1])
    pile = lambda *x: jnp.stack(x)
    return Result(now, jax.tree.map(pile, *figures), jnp.stack(losses), jnp.stack(finite))


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


def stacked(streams: Sequence[Stream]) -> tuple[Stream, Stream]:
    """Streams of several seeds over the same data as one, what differs stacked; and `vmap` axes.

    Args:
        streams: at least one; inputs and targets are the same arrays.

    Raises:
        ValueError: streams of different shapes, or over different data.

    >>> from jaxmerge.continual import streams
    >>> data = np.eye(4, dtype=np.float32), np.arange(4)
    >>> every = [streams.split(data, data, [[0, 1], [2, 3]], batch=2, seed=s) for s in range(3)]
    >>> stacked(every)[0].rows.shape
    (3, 2, 1, 2)
    """
    first = streams[0]
    evaluated = [s.groups for s in streams if isinstance(s.groups, Groups)]
    if len(evaluated) < len(streams):
        raise ValueError("Streams with several sets of groups cannot be stacked; run them in turn.")
    shapes = sorted({str(s.rows.shape) for s in streams})
    if len(shapes) > 1 or any(s.inputs is not first.inputs for s in streams):
        raise ValueError(
            f"Stacked streams share their data and have one shape; found {', '.join(shapes)}."
        )
    same = lambda x, y: np.array_equal(np.asarray(x), np.asarray(y))
    if not all(same(s.weight, first.weight) for s in streams):
        raise ValueError("Stacked streams share their weights, or skipped steps would be computed.")
    size = max(g.rows.shape[1] for g in evaluated)
    fill = lambda x: np.pad(np.asarray(x), ((0, 0), (0, size - x.shape[1])))
    streams = [
        s._replace(groups=g._replace(rows=fill(g.rows), weight=fill(g.weight)))
        for s, g in zip(streams, evaluated, strict=True)
    ]
    sample = None if first.sample is None else 0
    groups = Groups(None, None, 0, 0, 0, 0)
    axes = Stream(None, None, 0, 0, None, 0, groups, sample)._replace(promise=None)
    pile = lambda axis, *x: x[0] if axis is None else jax.tree.map(lambda *y: np.stack(y), *x)
    return jax.tree.map(pile, axes, *streams, is_leaf=lambda x: x is None), axes


def over(
    one: Callable[[Stream, Array], Tree], axes: Stream, streams: Stream, keys: Array,
    *, sharded: bool = False,
) -> Tree:  # fmt: skip
    """``one(stream, key)`` of every stacked stream: `vmap`, or `lax.map` on a CPU.

    Args:
        one: a pure function of a stream and a key.
        keys: PRNG keys [seeds].
        axes, streams: of `stacked`.
        sharded: cut the seeds over all devices (their number must divide that of the seeds).

    >>> from jaxmerge.continual import streams
    >>> data = np.eye(4, dtype=np.float32), np.arange(4)
    >>> every = [streams.split(data, data, [[0, 1], [2, 3]], batch=2, seed=s) for s in range(3)]
    >>> together, axes = stacked(every)
    >>> count = lambda stream, key: jnp.sum(stream.weight)
    >>> over(count, axes, together, jax.random.split(jax.random.key(0), 3)).tolist()
    [4.0, 4.0, 4.0]
    """
    if jax.default_backend() != "cpu":
        if sharded:
            keys = jax.device_put(keys, NamedSharding(_seeds(), PartitionSpec("seeds")))
        return jax.vmap(one, (axes, 0))(streams, keys)
    leaves, form = jax.tree.flatten(streams)
    spread = jax.tree.map(
        lambda a, x: jax.tree.map(lambda _: a == 0, x), axes, streams, is_leaf=lambda a: a is None
    )
    flags = jax.tree.leaves(spread)
    own = [x for x, f in zip(leaves, flags, strict=True) if f]

    def one_seed(x):
        rest, key = iter(x[0]), x[1]
        full = [next(rest) if f else y for y, f in zip(leaves, flags, strict=True)]
        return one(jax.tree.unflatten(form, full), key)

    if not sharded:
        return jax.lax.map(one_seed, (own, keys))
    cut = PartitionSpec("seeds")
    per_device = jax.shard_map(
        lambda own, keys: jax.lax.map(one_seed, (own, keys)),
        mesh=_seeds(), in_specs=(cut, cut), out_specs=cut, check_vma=False,
    )  # fmt: skip
    return per_device([jnp.asarray(x) for x in own], keys)


def _seeds() -> Mesh:
    return Mesh(np.array(jax.devices()), ("seeds",))
