"""Streams whose classes come back: a few of them, drawn anew for every task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmerge.core.ranges import Count
from jaxmerge.data.streams.plans import Draws, Plan, Seed, checked, checked_labels


def recurring(
    labels: np.ndarray, tasks: int, classes: int, seed: Seed = 0,
    *, names: Sequence[str] | None = None,
) -> Plan:  # fmt: skip
    """Every task has all examples of a few classes, drawn at random, in random order.

    Args:
        labels: int [N], of the training examples; classes are numbered from 0 without gaps.
        tasks: how many, 1 or more.
        classes: of a task, 1 to the number of classes.
        seed: a number, or an object with the draws (`jaxmerge.data.streams.plans.generator`).
        names: of the classes; their numbers by default.

    Returns:
        A plan that promises each example once in a task; classes that are never drawn never come.

    Source: Lesort et al., Challenging Common Assumptions about Catastrophic Forgetting (SCoLe),
    CoLLAs 2023. The draws are ours: the classes of a seed are those of
    `jaxmerge.data.streams.builders.recurring`.

    >>> print(recurring(np.arange(6) % 3, 4, 1, seed=1))
    recurring, 4 tasks of 1 classes: 4 tasks of 2, 2, 2, 2 examples, 0 of 6 never come, digest a...
      0   2   .   .   .
      1   .   .   2   .
      2   .   2   .   2
    """
    labels, rng, names = checked_labels(
        labels, seed, names, tasks=(tasks, Count), classes=(classes, Count)
    )
    parts = drawn_classes(rng, len(names), tasks, classes)
    members = (np.flatnonzero(np.isin(labels, part)) for part in parts)
    rows = tuple(x[rng.permutation(len(x))] for x in members)
    name = f"recurring, {tasks} tasks of {classes} classes"
    columns = tuple(labels[r] for r in rows)
    return checked(Plan(name, rows, columns, len(labels), names, "once in a task"))


def drawn_classes(rng: Draws, total: int, tasks: int, classes: int) -> list[tuple[int, ...]]:
    """The classes of every task, each drawn without replacement from all.

    Args:
        rng: draws.
        total: how many classes there are.
        tasks: how many.
        classes: of a task.

    Raises:
        ValueError: more classes a task than there are, or none; no task.

    >>> drawn_classes(np.random.default_rng(0), 4, 3, 2)
    [(2, 0), (3, 2), (1, 3)]
    """
    if not 1 <= classes <= total or tasks < 1:
        raise ValueError(
            f"There are {total} classes: ask for 1 to {total} a task and at least one task; got "
            f"{classes} and {tasks}."
        )
    return [tuple(int(c) for c in rng.permutation(total)[:classes]) for _ in range(tasks)]
