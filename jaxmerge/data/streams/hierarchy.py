"""Streams whose labels grow finer: the classes of a tree, a level after another.

The columns of the head are the labels of all levels, the coarsest first. An example arrives under
one of them; which columns compete is said by ``info["level"]``
(``classification(columns="level")``), so that a hierarchy needs no head, loss or buffer of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxmerge.core.ranges import Count
from jaxmerge.data.streams.faults import as_array
from jaxmerge.data.streams.plans import (
    Plan,
    Promise,
    Seed,
    checked,
    checked_labels,
    texts,
)
from jaxmerge.data.streams.trees import Hierarchy
from jaxmerge.errors import listed

Kind = Literal["single", "dual", "multi"]


def expansion(
    labels: np.ndarray, tree: np.ndarray | Hierarchy, kind: Kind = "single",
    tasks: int | None = None, seed: Seed = 0, *, names: Sequence[str] | None = None,
) -> Plan:  # fmt: skip
    """Hierarchical label expansion: what was known as a vehicle is later known as a car.

    ``kind="single"``: one label an example. Of every fine class the first task has n / T examples,
    rounded (half to even), under their coarse label; the coarse classes, in random order, are dealt
    over the other T - 1 tasks, which have the rest of their examples under fine labels.

    ``kind="dual"``: the same with every example twice: the first task has all under coarse labels,
    the others all under fine ones.

    ``kind="multi"``: task t has the labels of level t, floor(n / T) examples of every finest class;
    T is the depth of the tree; every example comes at most once.

    Args:
        labels: int [N], finest classes, each with enough examples for the tasks.
        tree: int [finest classes, depth]: the label of a finest class on each level, the coarsest
            first, each level numbered from 0; the last level is 0, 1, 2, ...; or a `Hierarchy`
            (`jaxmerge.data.streams.trees`), which names the columns too.
        kind: "single", "dual" or "multi", see above.
        tasks: T; "single", "dual": 1 + the number of coarse classes where None.
        seed: a number, or an object with the draws (`jaxmerge.data.streams.plans.generator`).
        names: of the columns, all levels in turn.

    Source: Lee et al., Online Continual Learning on Hierarchical Label Expansion, ICCV 2023,
    section 3. The rule was read off the released splits: it gives the counts of CIFAR-100; that
    n / T is rounded and not cut off, the sizes of Stanford Cars say. The draws are ours.

    >>> tree = np.array([[0, 0], [0, 1], [1, 2], [1, 3]])
    >>> print(expansion(np.arange(24) % 4, tree, "single", 3))
    HLE single, 3 tasks: 3 tasks of 8, 8, 8 examples, 0 of 24 never come, digest be7a751c9169
      0:0   4   .   .
      0:1   4   .   .
      1:0   .   4   .
      1:1   .   4   .
      1:2   .   .   4
      1:3   .   .   4
    """
    if isinstance(tree, Hierarchy):
        names = tree.names if names is None else names
        tree = tree.tree
    tree = as_array(tree)
    labels, rng, _ = checked_labels(labels, seed, tasks=(tasks, Count | None))
    offsets, parent, level = _columns(labels, tree, kind)
    fine, depth = tree.shape
    widths = tree.max(0) + 1
    if names is None:
        names = [
            f"{d}:{c}" if depth > 1 else str(c) for d, w in enumerate(widths) for c in range(w)
        ]
    names = texts(names)
    if len(names) != len(level):
        raise ValueError(f"The tree has {len(level)} labels on all levels, {len(names)} names.")
    column = tree + offsets  # [fine, depth]
    if kind == "multi":
        if tasks not in (None, depth):
            raise ValueError(f"The tree is {depth} deep, so multi has {depth} tasks; got {tasks}.")
        members = [np.flatnonzero(labels == c) for c in range(fine)]
        _enough([len(x) // depth for x in members], names[-fine:], depth)
        order = [x[rng.permutation(len(x))] for x in members]
        part = lambda x, t: x[len(x) // depth * t : len(x) // depth * (t + 1)]
        parts = [np.concatenate([part(x, t) for x in order]) for t in range(depth)]
        shown = list(range(depth))
    else:
        coarse = int(widths[0])
        tasks = coarse + 1 if tasks is None else tasks
        if not 2 <= tasks <= coarse + 1:
            most = f"2 to {coarse + 1}" if coarse > 1 else "2"
            raise ValueError(
                f"tasks must be {most}, got {tasks}: the first has coarse labels, the others deal "
                f"out the {coarse} coarse {'classes' if coarse > 1 else 'class'} with fine ones."
            )
        arrive = rng.permutation(coarse)
        early = np.zeros(len(labels), bool)
        for c in range(fine if kind == "single" else 0):
            own = np.flatnonzero(labels == c)
            early[own[rng.permutation(len(own))[: round(len(own) / tasks)]]] = True
        if kind == "single":
            _enough(np.bincount(tree[labels[early], 0], minlength=coarse), names[:coarse], tasks)
        parts = [np.flatnonzero(early) if kind == "single" else np.arange(len(labels))]
        for t in range(tasks - 1):
            group = arrive[coarse * t // (tasks - 1) : coarse * (t + 1) // (tasks - 1)]
            parts.append(np.flatnonzero(np.isin(tree[labels, 0], group) & ~early))
        shown = [0] + [depth - 1] * (tasks - 1)
    rows = [x[rng.permutation(len(x))] for x in parts]
    columns = tuple(column[labels[r], d] for r, d in zip(rows, shown, strict=True))
    every: dict[str, Promise] = {
        "single": "exactly once", "dual": "a level once", "multi": "at most once",
    }  # fmt: skip
    promise = every[kind]
    return checked(Plan(f"HLE {kind}, {len(rows)} tasks", tuple(rows), columns, len(labels),
                        tuple(names), promise, level, parent))  # fmt: skip


def _enough(counts: Sequence[int] | np.ndarray, names: Sequence[str], tasks: int) -> None:
    """Raise ValueError for classes of which the part of a task is no example."""
    none = [n for n, k in zip(names, counts, strict=True) if not k]
    if none:
        raise ValueError(
            f"Too few examples for {tasks} tasks: the part of one task has none of class "
            f"{', '.join(none[:5])}{' and others' if len(none) > 5 else ''}."
        )


def _columns(labels: np.ndarray, tree: np.ndarray, kind: str) -> tuple[np.ndarray, ...]:
    """Offsets of the levels, parent and level of every column.

    Raises:
        ValueError: what is wrong with the tree, all at once.
    """
    wrong = []
    if kind not in ("single", "dual", "multi"):
        wrong.append(f"kind is 'single', 'dual' or 'multi', got {kind!r}")
    if tree.ndim != 2 or not np.issubdtype(tree.dtype, np.integer) or not tree.size:
        found = f"{tree.dtype}{list(tree.shape)}"
        raise ValueError(f"The tree is int [finest classes, depth], got {found}.")
    if tree.min() < 0:
        raise ValueError(f"The tree numbers the labels of a level from 0; it has {tree.min()}.")
    fine, depth = tree.shape
    if kind != "multi" and depth != 2:
        more = "choose two of its columns" if depth > 2 else "give the classes groups"
        wrong.append(f"{kind} has two levels, the tree has {depth}: {more}")
    if not np.array_equal(tree[:, -1], np.arange(fine)):
        wrong.append("the last level of the tree is not 0, 1, 2 and so on")
    if labels.max() != fine - 1:
        wrong.append(f"labels are 0 to {labels.max()}, the tree has {fine} classes")
    for d in range(depth):
        missing = np.setdiff1d(np.arange(tree[:, d].max() + 1), tree[:, d])
        if len(missing):
            wrong.append(f"level {d} has no class {missing[0]}")
        if d and len(np.unique(tree[:, [d - 1, d]], axis=0)) > len(np.unique(tree[:, d])):
            wrong.append(f"a class of level {d} has two parents")
    if wrong:
        raise ValueError(listed(wrong))
    widths = tree.max(0) + 1
    offsets = np.r_[0, np.cumsum(widths)[:-1]]
    level = np.repeat(np.arange(depth), widths).astype(np.int32)
    parent = np.full(widths.sum(), -1, np.int32)
    for d in range(1, depth):
        parent[offsets[d] + tree[:, d]] = offsets[d - 1] + tree[:, d - 1]
    return offsets, parent, level
