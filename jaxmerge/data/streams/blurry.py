"""Streams with blurry borders: some classes belong to one task, others leak into all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from jaxmerge.core.ranges import Count, Range
from jaxmerge.data.streams.plans import Draws, Plan, Seed, checked, checked_labels

Percent = Annotated[int, Range("a whole percentage, 0 to 100", lambda v: 0 <= v <= 100, whole=True)]


def si_blurry(
    labels: np.ndarray, tasks: int, disjoint: int = 50, blurry: int = 10, seed: Seed = 0,
    *, varying: bool = True, as_stored: bool = False, names: Sequence[str] | None = None,
) -> Plan:  # fmt: skip
    """Stochastic blurry stream: borders between tasks and the shares that leak are drawn.

    With C classes and T tasks, D = T floor(floor(C n / 100) / T) classes, drawn at random, are
    disjoint and T floor((C - D) / T) blurry; the rest is dropped. T - 1 sorted uniform integers cut
    each kind into tasks. Of the blurry examples q = floor(m percent) form a pool; T - 1 sorted
    integers in [0, q) cut it: task t gives k_t of its examples away, drawn at random (or all it
    has), and gets k_t of the shuffled pool back. Every task is shuffled.

    Args:
        labels: int [N], of the training examples; classes are numbered from 0 without gaps.
        tasks: T, 1 or more.
        disjoint: n, whole percent of the classes, 0 to 100.
        blurry: m, whole percent of the examples of the other classes, 0 to 100.
        seed: a number, or an object whose ``permutation(n)`` and ``integers(low, high, size)`` give
            the draws.
        varying: False: equal numbers of classes and shares in every task, see `i_blurry`.
        as_stored: a task gives its first examples in the order of the data, as released: of data
            that are sorted by class, one class of a task would leak alone.
        names: of the classes; their numbers by default.

    Returns:
        A plan that promises each example at most once: classes beyond a multiple of T never come
        (six classes in four tasks are four, none of them disjoint at n = 50), and as borders are
        drawn a task may be empty (ten classes in five tasks: 16 seeds of the first hundred).

    Source: Moon et al., Online Class Incremental Learning on Stochastic Blurry Task Boundary via
    Mask and Visual Prompt Tuning, ICCV 2023, section 3; its released program always has
    ``varying``, whatever its flag says.

    Differs:
        The draws are numpy's, not torch's, and examples that leak are drawn; with ``as_stored`` and
        the released draws every index is the same.

    >>> plan = si_blurry(np.arange(40) % 4, 2, seed=3)
    >>> plan.digest() == si_blurry(np.arange(40) % 4, 2, seed=3).digest(), plan.left_out()
    (True, 0)
    """
    labels, rng, names = checked_labels(
        labels, seed, names, tasks=(tasks, Count), disjoint=(disjoint, Percent),
        blurry=(blurry, Percent),
    )  # fmt: skip
    many = len(names)
    d = many * disjoint // 100 // tasks * tasks
    b = (many - d) // tasks * tasks
    if d + b == 0:
        raise ValueError(f"{many} classes make at most {many} tasks, got {tasks}.")
    order = rng.permutation(many)
    cut = lambda total: _cut(rng, total, tasks, varying)
    classes = [np.split(part, cut(len(part))) for part in (order[:d], order[d : d + b])]
    members = lambda c: np.flatnonzero(np.isin(labels, c))
    alone, mixed = ([members(c) for c in kind] for kind in classes)
    if not as_stored:
        mixed = [x[rng.permutation(len(x))] for x in mixed]
    if varying:
        pooled = sum(map(len, mixed)) * blurry // 100
        share = np.diff(np.r_[0, _cut(rng, pooled, tasks, True), pooled])
    else:
        share = np.array([len(x) * blurry // 100 for x in mixed])
    pool = np.concatenate([x[:k] for x, k in zip(mixed, share, strict=True)])
    rest = [x[k:] for x, k in zip(mixed, share, strict=True)]
    pool = pool[rng.permutation(len(pool))] if len(pool) else pool
    back = share if varying else np.full(tasks, len(pool) // tasks)
    given = np.split(pool, np.minimum(np.cumsum(back), len(pool)))
    rows = [np.concatenate(x) for x in zip(alone, rest, given[:tasks], strict=True)]
    rows = tuple(x[rng.permutation(len(x))] for x in rows)
    kind = "Si-Blurry" if varying else "i-Blurry"
    return checked(Plan(f"{kind} n={disjoint} m={blurry}, {tasks} tasks", rows,
                        tuple(labels[x] for x in rows), len(labels), names))  # fmt: skip


def i_blurry(
    labels: np.ndarray, tasks: int, disjoint: int = 50, blurry: int = 10, seed: Seed = 0,
    *, names: Sequence[str] | None = None,
) -> Plan:  # fmt: skip
    """Blurry stream with equal tasks: a blurry class keeps 1 - m of its examples in its own task.

    Every task has D / T disjoint and B / T blurry classes, gives floor(m percent) of its blurry
    examples into a pool and gets floor(pool / T) back; the pool's remainder never comes.

    Args:
        labels, tasks, disjoint, blurry, seed, names: as in `si_blurry`.

    Source: Koh et al., Online Continual Learning on Class Incremental Blurry Task Configuration
    with Anytime Inference (CLIB), ICLR 2022, section 3. No generator was released; the counts of
    the released splits of CIFAR-10 fit this rule.

    >>> i_blurry(np.arange(40) % 4, 2, seed=3).counts().sum(0)
    array([20, 20])
    """
    return si_blurry(labels, tasks, disjoint, blurry, seed, varying=False, names=names)


def _cut(rng: Draws, total: int, tasks: int, varying: bool) -> np.ndarray:
    """int [tasks - 1]: where a list of `total` is cut into the parts of tasks."""
    if not varying:
        return np.arange(1, tasks) * (total // tasks)
    if total == 0:
        return np.zeros(tasks - 1, int)
    return np.sort(rng.integers(0, total, tasks - 1))
