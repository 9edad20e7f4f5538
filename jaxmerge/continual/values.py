"""What is wrong with the arrays of a stream: their forms and, where they are known, their numbers.

Compiled code reads an index that is out of range as the nearest one there is, so that a wrong plan
would train on other examples in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.hook_calls import kind
from jaxmerge.continual.stream_records import Groups, Stream
from jaxmerge.core.specs import Static
from jaxmerge.core.types import Array, concrete
from jaxmerge.errors import closest

PROMISES = ("nothing", "epochs", "once")
OWN = "info['own']"


def wrong_values(stream: Stream) -> list[str]:
    """What is wrong with a stream, line by line; empty where it can be run.

    Args:
        stream: where its arrays are traced, only shapes and types are looked at.

    >>> from jaxmerge.continual import streams
    >>> data = np.eye(4, dtype=np.float32), np.arange(4)
    >>> stream = streams.split(data, data, [[0, 1], [2, 3]], batch=2)
    >>> wrong_values(stream._replace(rows=stream.rows + 1))
    ['rows are 0 to 3, the plan has 1 to 4']
    """
    wrong = _forms(stream)
    return wrong or [*_plan(stream), *_info(stream), *_sample(stream), *_groups(stream)]


def sets_of(stream: Stream) -> tuple[Groups, ...]:
    """The groups, as several sets of them."""
    return (stream.groups,) if isinstance(stream.groups, Groups) else tuple(stream.groups or ())


def whose(stream: Stream, k: int) -> str:
    """How a message calls the groups of set k."""
    return "group" if isinstance(stream.groups, Groups) else f"set {k}, group"


def _forms(stream: Stream) -> list[str]:
    plan = {"rows": stream.rows, "origin": stream.origin, "weight": stream.weight}
    wrong = _alike(plan, "[tasks, steps, B]")
    wrong += _integers({k: plan[k] for k in ("rows", "origin")})
    wrong += _examples(stream.inputs, stream.targets)
    if not isinstance(stream.promise, Static):
        wrong.append(f"promise is a Static, such as Static('once'); found {kind(stream.promise)}")
    elif stream.promise.value not in PROMISES:
        wrong.append(f"promise: {closest(str(stream.promise.value), PROMISES)}")
    if stream.sample is not None:
        wrong += _integers({"sample": stream.sample})
        form = np.shape(stream.sample)
        if len(form) != 2 or form[:1] != np.shape(stream.rows)[:1]:
            wrong.append(f"sample is [tasks, K]; found {list(form)}")
    sets = sets_of(stream)
    if not sets:
        wrong.append("groups is empty, so that nothing is evaluated: give one group or more")
    for k, g in enumerate(sets):
        of = "groups: " if len(sets) == 1 else f"groups, set {k}: "
        if not isinstance(g, Groups):
            wrong.append(f"{of}found {kind(g)}, expected `Groups`")
            continue
        own = _alike({"rows": g.rows, "weight": g.weight}, "[G, M]")
        own += _integers({"rows": g.rows, "task": g.task}) + _examples(g.inputs, g.targets)
        many = np.shape(g.rows)[:1]
        lengths = {"task": np.shape(g.task)} | _shapes(g.info, "info")
        own += [
            f"{n} has one entry for each of {many[0]} groups; found {list(form)}"
            for n, form in lengths.items()
            if many and form[:1] != many
        ]
        wrong += [of + w for w in own]
    if not wrong:
        wrong = [
            f"{n} says which columns are whose, as bool; found {jnp.result_type(x)}"
            for n, x in _own_leaves(stream).items()
            if not jnp.issubdtype(jnp.result_type(x), jnp.bool_)
        ]
    return wrong


def _own_leaves(stream: Stream) -> dict[str, Array]:
    """Which columns are each task's and each group's own, by where that is said."""
    said = {OWN: stream.info}
    said |= {f"{OWN} of {whose(stream, k)}s": g.info for k, g in enumerate(sets_of(stream))}
    return {n: i["own"] for n, i in said.items() if isinstance(i, Mapping) and "own" in i}


def forms_of_own(stream: Stream) -> dict[str, tuple[int, ...]]:
    """The shapes of ``info["own"]``, [tasks, columns], of the stream and of its groups."""
    return {n: tuple(np.shape(x)) for n, x in _own_leaves(stream).items()}


def _alike(arrays: dict[str, Array], words: str) -> list[str]:
    shapes = {tuple(np.shape(x)) for x in arrays.values()}
    if len(shapes) == 1 and len(next(iter(shapes))) == words.count(",") + 1:
        return []
    form = ", ".join(f"{k} {list(np.shape(x))}" for k, x in arrays.items())
    *first, last = arrays
    return [f"{', '.join(first)} and {last} are {words} alike; found {form}"]


def _integers(arrays: dict[str, Array]) -> list[str]:
    types = {n: jnp.result_type(x) for n, x in arrays.items()}
    wrong = [n for n, t in types.items() if not jnp.issubdtype(t, jnp.integer)]
    return [f"{n} are whole numbers; found {types[n]}" for n in wrong]


def _shapes(tree: Any, name: str) -> dict[str, tuple[int, ...]]:
    at = jax.tree.leaves_with_path(tree)
    return {name + jax.tree_util.keystr(path): tuple(np.shape(x)) for path, x in at}


def _examples(inputs: Any, targets: Any) -> list[str]:
    """Whether all leaves have one row for each example."""
    shapes = _shapes(inputs, "inputs") | _shapes(targets, "targets")
    if len({form[:1] for form in shapes.values()} - {()}) == 1 and all(shapes.values()):
        return []
    form = ", ".join(f"{n} {list(x)}" for n, x in shapes.items())
    return [f"inputs and targets have one row for each example; found {form}"]


def _many(tree: Any) -> int:
    return np.shape(jax.tree.leaves(tree)[0])[0]


def _outside(values: np.ndarray, low: int, high: int, words: str) -> list[str]:
    """One line where whole numbers are not in low .. high."""
    if not values.size or (values.min() >= low and values.max() <= high):
        return []
    return [f"{words} {values.min()} to {values.max()}"]


def _weights(weight: np.ndarray, what: str) -> list[str]:
    bad = ~(np.isfinite(weight) & (weight >= 0))
    if not bad.any():
        return []
    return [f"{what} are numbers from 0 on; found {weight[bad].flat[0]} at {_place(bad)}"]


def _place(bad: np.ndarray) -> str:
    return str(np.argwhere(bad)[0].tolist())


def _plan(stream: Stream) -> list[str]:
    """What is wrong with rows, weights and the promise."""
    if not concrete(stream.rows, stream.weight):
        return []
    rows, weight = np.asarray(stream.rows), np.asarray(stream.weight)
    used, many = weight > 0, _many((stream.inputs, stream.targets))
    wrong = _weights(weight, "weights")
    out = _outside(rows[used], 0, many - 1, f"rows are 0 to {many - 1}, the plan has")
    if wrong or out:
        return wrong + out
    empty = [t for t in range(len(rows)) if not used[t].any()]
    if empty:
        wrong.append(f"task {empty[0]} trains on no example")
    promise = stream.promise.value
    if promise == "once":
        count = np.bincount(rows[used], minlength=many)
        if (count > 1).any():
            first = int(np.argmax(count > 1))
            wrong.append(
                f"the plan promises each example at most once, {int((count > 1).sum())} come again "
                f"(row {first}, {count[first]} times)"
            )
    sample = stream.sample if stream.sample is not None and concrete(stream.sample) else None
    for t in range(len(rows)) if promise != "nothing" else ():
        plan = rows[t][used[t]]
        own = np.asarray([] if sample is None else np.asarray(sample)[t], int)
        missing = np.setdiff1d(own[own >= 0], plan)
        left_out = f"{_rows(missing)} of its sample never come" if len(missing) else ""
        problem = (_passes(plan, own) if promise == "epochs" else "") or left_out
        if problem:
            what = "whole passes" if promise == "epochs" else "each example once"
            wrong.append(f"the plan promises {what}, but in task {t} {problem}")
            break
    return wrong


def _passes(plan: np.ndarray, sample: np.ndarray) -> str:
    """How rows in the order of training come again before all members have; "" if none does."""
    members, many = np.union1d(plan, sample[sample >= 0]), np.arange(len(plan))
    order = np.argsort(plan, kind="stable")
    new = np.r_[True, np.diff(plan[order]) != 0]
    before = np.empty(len(plan), int)  # how often a row has come before this place
    before[order] = many - np.maximum.accumulate(np.where(new, many, 0))
    early = np.flatnonzero(before != many // len(members))
    if not len(early):
        return ""
    at = early[0]
    began = len(members) * (before[at] - 1)
    late = np.setdiff1d(members, plan[began:at])
    return f"row {plan[at]} comes again before {_rows(late)}"


def _rows(rows: np.ndarray) -> str:
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:3]))}{more}"


def _known(stream: Stream) -> int:
    """Of how many tasks the info is; of those of the stream where it is empty."""
    shapes = _shapes(stream.info, "info")
    form = shapes.get(OWN) or next(iter(shapes.values()), ())
    return form[0] if form else stream.tasks


def _info(stream: Stream) -> list[str]:
    """What is wrong with the tasks that examples are from, and with what is said of them."""
    tasks, known, shapes = stream.tasks, _known(stream), _shapes(stream.info, "info")
    if concrete(stream.origin, stream.weight):
        origin = np.asarray(stream.origin)[np.asarray(stream.weight) > 0]
        high = max(tasks, known) - 1
        wrong = _outside(origin, 0, high, f"origins are tasks, 0 to {high}, the plan has")
        if wrong:
            return wrong
        tasks = max(tasks, int(origin.max(initial=0)) + 1)
    elif known > tasks:
        tasks = known
    columns, wrong = shapes.get(OWN, ())[1:], []
    for n, form in shapes.items():
        expected = f"[{tasks} tasks, columns]" if n == OWN else f"[{tasks} tasks, ...]"
        good = form[:1] == (tasks,) and (n != OWN or len(form) == 2)
        if n != OWN and len(columns) == 1:
            good = good or form[:1] == columns
            expected += f" or [{columns[0]} columns, ...]"
        if not good:
            wrong.append(f"{n} is {expected}; found {list(form)}")
    return wrong


def _sample(stream: Stream) -> list[str]:
    if stream.sample is None or not concrete(stream.sample):
        return []
    sample, many = np.asarray(stream.sample), _many((stream.inputs, stream.targets))
    words = f"sample has rows, 0 to {many - 1}, and -1 to fill up; found"
    wrong = _outside(sample, -1, many - 1, words)
    empty = [t for t in range(len(sample)) if not (sample[t] >= 0).any()]
    return [*wrong, *[f"the sample of task {t} has no example" for t in empty[:1]]]


def _groups(stream: Stream) -> list[str]:
    wrong = []
    for k, g in enumerate(sets_of(stream)):
        who, many = whose(stream, k), _many((g.inputs, g.targets))
        if concrete(g.weight):
            weight = np.asarray(g.weight)
            bad = _weights(weight, f"the weights of {who}s")
            empty = np.flatnonzero((weight > 0).sum(1) == 0) if not bad else ()
            wrong += bad
            wrong += [f"{who} {i} has no example, so its metrics have no value" for i in empty[:3]]
            if concrete(g.rows):
                words = f"the rows of {who}s are 0 to {many - 1}; found"
                wrong += _outside(np.asarray(g.rows)[weight > 0], 0, many - 1, words)
        if concrete(g.task):
            high = max(stream.tasks, _known(stream)) - 1
            words = f"the tasks of {who}s are 0 to {high}; found"
            wrong += _outside(np.asarray(g.task), 0, high, words)
    return wrong
