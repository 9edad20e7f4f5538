"""Streams of arrays in memory: classes split over tasks, permuted inputs, index plans.

Every stream is deterministic in its seed.  Batches are passes over a task's examples in random
order; a last batch that is short is filled up with weight 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.hook_calls import kind
from jaxmerge.continual.padding import batched, padded, rows_and_weights
from jaxmerge.continual.stream_records import Groups, Stream
from jaxmerge.core.draws import draws
from jaxmerge.core.ranges import Count, unfit
from jaxmerge.core.specs import Static
from jaxmerge.core.types import Array
from jaxmerge.data.streams.plans import Plan
from jaxmerge.errors import closest, listed

Data = tuple[Any, np.ndarray]  # inputs [N, ...] (of `split` also several by name), labels [N]
Scenario = Literal["class", "domain", "task"]


def split(
    train: Data,
    test: Data,
    order: Sequence[Sequence[int]],
    *,
    scenario: Scenario = "class",
    batch: int = 10,
    epochs: int = 1,
    seed: int = 0,
) -> Stream:
    """The classes dealt out over tasks, such as split MNIST.

    Args:
        train, test: inputs [N, ...], or a mapping of names to such, and int labels [N].
        batch: examples of a step, 1 or more.
        epochs: passes over a task.
        seed: of all that is drawn.
        order: the classes of each task.
        scenario: "class": a column for every class, the task is not given at tests; "task": the
            same columns, read with ``classification(columns="own")`` and the evaluator "aware";
            "domain": labels are positions within the task, whose columns all tasks share.

    Raises:
        ValueError: a class in two tasks, or one without an example; a task without a class; inputs
            and labels of different lengths; numbers out of their ranges.

    >>> x, y = np.zeros((8, 3), np.float32), np.arange(8) % 4
    >>> split((x, y), (x, y), [[0, 1], [2, 3]], batch=3).rows.shape
    (2, 2, 3)
    """
    train, test = _arrays(train, test, batch=batch, epochs=epochs)
    if scenario not in get_args(Scenario):
        known = closest(str(scenario), get_args(Scenario))
        raise ValueError(f"No scenario is named {scenario!r}: {known}.")
    order = list(order)
    if not all(isinstance(part, Sequence | np.ndarray | set) for part in order):
        raise ValueError(f"The order is the classes of each task, [[0, 1], [2, 3]], got {order!r}.")
    order = [[int(c) for c in part] for part in order]
    classes = [c for part in order for c in part]
    if len(set(classes)) != len(classes) or not all(order) or not order:
        raise ValueError(f"A class is in one task only, and a task has one; the order is {order}.")
    for what, (_, y) in {"training": train, "test": test}.items():
        if lacking := sorted(set(classes) - set(np.unique(y).tolist())):
            raise ValueError(f"No {what} example is of class {', '.join(map(str, lacking[:5]))}.")
    members = lambda y: [np.flatnonzero(np.isin(y, part)) for part in order]
    if scenario == "domain":
        width = max(map(len, order))
        place = {c: i for part in order for i, c in enumerate(part)}
        relabel = lambda y: np.array([place.get(int(c), 0) for c in y], np.int32)
        own = np.ones((len(order), width), bool)
        data = (train[0], relabel(train[1])), (test[0], relabel(test[1]))
    else:
        own = np.stack([np.isin(np.arange(max(classes) + 1), part) for part in order])
        data = train, test
    info = {"own": own}
    return _stream(*data, members(train[1]), members(test[1]), info, batch, epochs, seed)


def permuted(
    train: Data,
    test: Data,
    tasks: int = 10,
    *,
    batch: int = 10,
    epochs: int = 1,
    examples: int | None = None,
    seed: int = 0,
    first: bool = True,
) -> Stream:
    """All classes in every task, the numbers of an input in an order of each task's own.

    Args:
        train, test: inputs [N, ...] and int labels [N].
        tasks: how many, 1 or more.
        batch: examples of a step, 1 or more.
        epochs: passes over a task.
        seed: of all that is drawn.
        examples: of a task, drawn anew for each; None: all.
        first: whether the first task is permuted too.

    The order is ``info["permutation"]`` [tasks, inputs], applied by `pixels` as the view of the
    problem.

    Raises:
        ValueError: inputs and labels of different lengths; numbers out of their ranges.

    >>> x, y = np.zeros((8, 3), np.float32), np.arange(8) % 4
    >>> stream = permuted((x, y), (x, y), tasks=2, batch=4)
    >>> stream.rows.shape, stream.info["permutation"].shape
    ((2, 2, 4), (2, 3))
    """
    more = {} if examples is None else {"examples": examples}
    train, test = _arrays(train, test, tasks=tasks, batch=batch, epochs=epochs, **more)
    rng = draws(seed)
    width = int(np.prod(train[0].shape[1:]))
    orders = [rng.permutation(width) for _ in range(tasks)]
    orders[0] = orders[0] if first else np.arange(width)
    columns = int(max(train[1].max(), test[1].max())) + 1
    info = {
        "own": np.ones((tasks, columns), bool),
        "permutation": np.stack(orders).astype(np.int32),
    }
    many = len(train[1])
    chosen = [np.sort(rng.permutation(many)[: examples or many]) for _ in range(tasks)]
    tested = [np.arange(len(test[1]))] * tasks
    return _stream(train, test, chosen, tested, info, batch, epochs, seed)


def planned(plan: Plan, train: Data, test: Data, *, batch: int = 10) -> Stream:
    """An index plan in batches, in its order: one pass; a group for every class that arrives.

    ``info["own"]`` [tasks, columns] are the columns that arrive in a task, ``info["examples"]``
    [tasks] how many examples; a plan with levels has ``info["level"]`` and ``info["parent"]``
    [columns] too. A task without an example is left out.
    Groups do not depend on tasks: one for each column, level after level, its test examples all
    that are of this class or below it; a group's task is the first in which the class arrives.

    Args:
        plan: see `jaxmerge.data.streams.plans`.
        train: its labels are not read, the plan has them; of a "dual" plan an example is stored
            once for each of its labels.
        test: labels are finest classes.
        batch: examples of a step, 1 or more.

    Raises:
        ValueError: what is no plan, or one of another number of examples; a class that arrives
            without a test example; inputs and labels of different lengths; a batch without an
            example.

    >>> from jaxmerge.data.streams.blurry import i_blurry
    >>> x, y = np.zeros((8, 3), np.float32), np.arange(8) % 4
    >>> planned(i_blurry(y, 2), (x, y), (x, y), batch=3).rows.shape
    (2, 2, 3)
    """
    if not isinstance(plan, Plan):
        raise ValueError(f"planned takes a `Plan`, such as i_blurry(labels, 5); got {kind(plan)}.")
    plan.check()
    train, test = _arrays(train, test, batch=batch)
    if len(train[0]) != plan.examples:
        raise ValueError(f"The plan is of {plan.examples} examples, {len(train[0])} are given.")
    kept = [t for t in range(len(plan)) if len(plan.rows[t])]
    rows, columns = ([x[t] for t in kept] for x in (plan.rows, plan.columns))
    inputs, every = train[0], np.stack([np.concatenate(rows), np.concatenate(columns)], 1)
    pairs = np.unique(every, axis=0)
    if len(np.unique(pairs[:, 0])) == len(pairs):
        targets = np.zeros(plan.examples, np.int32)
        targets[pairs[:, 0]] = pairs[:, 1]
    else:
        inputs, targets = inputs[pairs[:, 0]], pairs[:, 1].astype(np.int32)
        place = {tuple(x): i for i, x in enumerate(pairs.tolist())}
        rows = [
            np.array([place[x] for x in zip(r.tolist(), c.tolist(), strict=True)])
            for r, c in zip(rows, columns, strict=True)
        ]
    at, origin, weight = _shown(padded([batched(r, batch) for r in rows]))
    own = plan.counts()[:, kept].T > 0
    info: dict[str, Any] = {"own": own, "examples": np.array([len(r) for r in rows], np.int32)}
    if plan.level is not None:
        info |= {"level": plan.levels, "parent": np.asarray(plan.parent, np.int32)}
    groups = _classes(plan, test, own, info)
    return Stream(
        inputs, targets, at, origin, weight, info,
        groups[0] if len(groups) == 1 else groups,
        promise=Static("epochs" if plan.promise == "once in a task" else "once"),
    )  # fmt: skip


def _classes(plan: Plan, test: Data, own: np.ndarray, info: dict) -> tuple[Groups, ...]:
    """Groups of the columns that arrive, a set for each level."""
    levels, sets = plan.levels, []
    above = np.asarray(test[1]) + np.argmax(levels == levels.max())  # the column on this level
    for d in range(levels.max(), -1, -1):
        met = np.flatnonzero(own.any(0) & (levels == d))
        members = [np.flatnonzero(above == c) for c in met]
        lacking = [plan.names[c] for c, m in zip(met, members, strict=True) if not len(m)]
        if lacking:
            raise ValueError(f"No test example is of class {', '.join(lacking[:5])}.")
        if len(met):
            more = {k: np.tile(info[k], (len(met), 1)) for k in ("level", "parent") if k in info}
            at, weight = rows_and_weights(padded(members))
            sets.append(Groups(
                test[0], above.astype(np.int32), at, weight,
                np.argmax(own[:, met], 0).astype(np.int32),
                {"own": own[np.argmax(own[:, met], 0)], **more},
            ))  # fmt: skip
        above = above if plan.parent is None or d == 0 else plan.parent[above]
    return tuple(sets[::-1])


def pixels(stored: Array, info: Mapping[str, Array], task: Array, key: Array | None) -> Array:
    """Bytes as one vector in [0, 1], in the order of each example's task where it has one.

    Args:
        stored: uint8 [B, ...].
        info: of the stream; ``"permutation"``, int [tasks, inputs], is read.
        task: int32 [B].
        key: not used.

    >>> pixels(jnp.array([[[0, 255]]], jnp.uint8), {}, jnp.zeros(1, int), None).tolist()
    [[0.0, 1.0]]
    """
    x = stored.reshape(stored.shape[0], -1) / jnp.float32(255)
    if "permutation" in info:
        x = jnp.take_along_axis(x, jnp.asarray(info["permutation"])[task], axis=1)
    return x


def _arrays(train: Data, test: Data, **numbers: int) -> tuple[Data, Data]:
    """The data as arrays; ValueError for what does not fit together or is no count, all at once."""
    for what, part in {"training": train, "test": test}.items():
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise ValueError(f"The {what} data are a pair (inputs, labels), got {kind(part)}.")
    one = lambda x: np.asarray(x) if isinstance(x, list | tuple) else x
    every = lambda x: {k: one(v) for k, v in x.items()} if isinstance(x, Mapping) else one(x)
    train, test = ((every(x), np.asarray(y)) for x, y in (train, test))
    wrong = [
        f"the {what} labels are {y.dtype}{list(y.shape)}, expected whole numbers [N]"
        for what, (_, y) in {"training": train, "test": test}.items()
        if y.ndim != 1 or y.dtype.kind not in "iu"
    ]
    wrong += [
        f"the {what} data have {len(part)} inputs and {len(y)} labels"
        for what, (x, y) in {"training": train, "test": test}.items()
        for part in (x.values() if isinstance(x, Mapping) else [x])
        if len(part) != len(y)
    ]
    wrong += unfit(Count, **numbers)
    if wrong:
        raise ValueError(listed(wrong))
    return train, test


def _stream(train, test, members, tested, info, batch, epochs, seed) -> Stream:
    rng = draws(seed, 1)
    plans = []
    for rows in members:
        passes = [batched(rng.permutation(rows), batch) for _ in range(epochs)]
        plans.append(np.concatenate(passes))
    at, used = rows_and_weights(padded(tested))
    groups = Groups(
        test[0], test[1], at, used, np.arange(len(tested), dtype=np.int32),
        {k: v for k, v in info.items() if k == "own"},
    )  # fmt: skip
    rows, origin, weight = _shown(padded(plans))
    sample = padded([rng.permutation(rows) for rows in members]).astype(np.int32)
    return Stream(
        train[0], train[1], rows, origin, weight, info, groups, sample, Static("epochs")
    )  # fmt: skip


def _shown(at: np.ndarray) -> tuple[Array, Array, Array]:
    """Rows, origin and weight of a stream whose tasks hold examples of their own alone."""
    rows, weight = rows_and_weights(at)
    origin = np.broadcast_to(np.arange(len(at), dtype=np.int32)[:, None, None], at.shape)
    return rows, origin, weight
