"""What is wrong with an index plan, in words: lists that are empty where nothing is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from jaxmerge.data.streams.plans import Plan

Promise = Literal["exactly once", "at most once", "a level once", "once in a task"]


def as_array(x: ArrayLike) -> np.ndarray:
    """As numpy has it; what has no one shape as an array of objects.

    Args:
        x: anything.

    >>> as_array([1, 2]).shape, as_array([[1], [1, 2]]).dtype
    ((2,), dtype('O'))
    """
    try:
        return np.asarray(x)
    except (TypeError, ValueError):
        return np.asarray(None)


def unfit_labels(labels: np.ndarray) -> str:
    """What is wrong with the form of labels, in words; empty where nothing is."""
    if labels.shape == (0,):
        return "none"
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return f"{labels.dtype}{list(labels.shape)}"
    return f"{labels.min()} among them" if labels.min() < 0 else ""


def malformed(plan: Plan) -> list[str]:
    """What keeps rows and columns from being read."""
    wrong = []
    if plan.promise not in get_args(Promise):
        wrong.append(f"promise is one of {', '.join(get_args(Promise))}; got {plan.promise!r}")
    if len(plan.rows) != len(plan.columns):
        wrong.append(f"rows are of {len(plan.rows)} tasks, columns of {len(plan.columns)}")
    elif not len(plan.rows):
        wrong.append("it has no task")
    for what, parts in (("rows", plan.rows), ("columns", plan.columns)):
        for t, x in enumerate(map(as_array, parts)):
            if x.ndim != 1 or not np.issubdtype(x.dtype, np.integer):
                wrong.append(f"task {t}: {what} are {x.dtype}{list(x.shape)}, not int [N]")
    for what, x in (("level", plan.level), ("parent", plan.parent)):
        if x is not None and np.shape(x) != (len(plan.names),):
            wrong.append(f"{what} is {list(np.shape(x))} for {len(plan.names)} columns")
    if plan.levels.any() and plan.parent is None:
        wrong.append("it has levels and no parents")
    return wrong


def outside(plan: Plan) -> list[str]:
    """Rows and columns that there are not."""
    wrong = []
    for t, (rows, columns) in enumerate(zip(plan.rows, plan.columns, strict=True)):
        if len(rows) != len(columns):
            wrong.append(f"task {t} has {len(rows)} rows and {len(columns)} columns")
            continue
        for what, x, high in (
            ("row", rows, plan.examples), ("column", columns, len(plan.names)),
        ):  # fmt: skip
            x = np.asarray(x)
            bad = x[(x < 0) | (x >= high)]
            if len(bad):
                wrong.append(f"task {t}: {what} {bad[0]} is not in 0..{high - 1}")
    return wrong


def mislabelled(plan: Plan, labels: ArrayLike) -> list[str]:
    """Columns that are not the labels of their examples, a task each."""
    finest = np.flatnonzero(plan.levels == plan.levels.max())
    labels, many = as_array(labels), len(finest)
    found = unfit_labels(labels)
    if found or len(labels) != plan.examples or labels.max() >= many:
        found = found or f"{len(labels)} up to {labels.max()}"
        return [f"labels are int [{plan.examples}] in 0..{many - 1}, got {found}"]
    above = {int(plan.levels.max()): finest}
    for d in range(int(plan.levels.max()), 0, -1):
        above[d - 1] = np.asarray(plan.parent)[above[d]]
    wrong = []
    for t, (rows, columns) in enumerate(zip(plan.rows, plan.columns, strict=True)):
        right = np.stack([above[d] for d in range(len(above))])[plan.levels[columns], labels[rows]]
        bad = np.flatnonzero(np.asarray(columns) != right)
        if len(bad):
            one = bad[0]
            wrong.append(
                f"task {t}: row {rows[one]} comes as {plan.names[columns[one]]}, its label is "
                f"{plan.names[right[one]]} ({len(bad)} of {len(rows)} examples)"
            )
    return wrong


def _keys(plan: Plan) -> np.ndarray:
    """int [N]: equal where the promise lets an example come only once."""
    rows, columns = (np.concatenate(x).astype(int) for x in (plan.rows, plan.columns))
    if plan.promise == "a level once":
        return rows + plan.examples * plan.levels[columns]
    if plan.promise == "once in a task":
        return rows + plan.examples * np.repeat(np.arange(len(plan)), list(map(len, plan.rows)))
    return rows


def too_often(plan: Plan) -> list[str]:
    """Examples that come more often than is promised."""
    times = np.bincount(_keys(plan))
    if not (times > 1).any():
        return []
    first = int(np.argmax(times > 1)) % plan.examples
    return [f"{int((times > 1).sum())} examples come again (row {first}, {times.max()} times)"]


def missing(plan: Plan) -> list[str]:
    """Examples that never come, where all are promised."""
    if plan.promise not in ("exactly once", "a level once"):
        return []
    rows, columns = np.concatenate(plan.rows), np.concatenate(plan.columns)
    deep = plan.levels[columns] if plan.promise == "a level once" else np.zeros(len(rows), int)
    wrong = []
    for d in np.unique(deep):
        never = np.setdiff1d(np.arange(plan.examples), rows[deep == d])
        where = f" on level {d}" if plan.promise == "a level once" else ""
        if len(never):
            wrong.append(f"{len(never)} examples never come{where} (row {never[0]})")
    return wrong
