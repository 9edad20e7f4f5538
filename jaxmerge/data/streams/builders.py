"""Scenarios beside class-incremental learning: other ways to cut data into a stream of tasks.

==================  =============================================  =========================
builder             task t holds                                   columns that it trains
==================  =============================================  =========================
class_incremental   the t-th share of the classes                  those classes
task_incremental    the same, and the task is told at test time    those classes
domain_incremental  all classes of the t-th domain                 the classes of the domain
data_incremental    the t-th random share of every class           all classes
recurring           a few classes, drawn anew for every task       those classes
planned             what an index plan says (blurry, online)       the classes that arrive
suite               a whole source                                 the classes of the source
==================  =============================================  =========================

Every run gives task-agnostic figures (the right class among all) and task-aware ones (among the
task's own).  Task-incremental learning and suites are read by the task-aware ones.

Evaluation of a task always uses its own val and test examples.  In `data_incremental`, `recurring`
and `planned` tasks share them: R[t, i] then says how well task i's classes are known after task t.

Sources: van de Ven et al., Three types of incremental learning, Nature Machine Intelligence 2022;
Lesort et al., Challenging Common Assumptions about Catastrophic Forgetting (SCoLe), CoLLAs 2023.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxmerge.core.draws import draws
from jaxmerge.data.sources import SPLITS, Source
from jaxmerge.data.streams.plans import Plan
from jaxmerge.data.streams.recurring import drawn_classes
from jaxmerge.data.streams.scenario import Scenario, Task, class_incremental, permutation

__all__ = [
    "class_incremental",
    "data_incremental",
    "domain_incremental",
    "planned",
    "recurring",
    "suite",
    "task_incremental",
]


def task_incremental(source: Source, tasks: int, order: Sequence[int] | None = None) -> Scenario:
    """The tasks of `class_incremental`, told at test time: read the task-aware figures.

    Args, Raises: as in `class_incremental`.
    """
    scenario = class_incremental(source, tasks, order)
    return dataclasses.replace(
        scenario, name=scenario.name.replace("class-", "task-", 1), task_known=True
    )


def domain_incremental(source: Source, order: Sequence[int] | None = None) -> Scenario:
    """One task a domain, the same classes in every domain.

    Args:
        order: the domains in order of arrival; as they are by default.

    Raises:
        ValueError: a source without domains, an order that is not a permutation, a domain
            without examples.
    """
    if source.domains is None:
        raise ValueError(f"Source {source.name!r} has no domains; use class_incremental.")
    total = len(source.domain_names)
    order = permutation(order, total, "domains")
    tasks = []
    for d in order:
        rows = {s: source.rows(s, domain=d) for s in SPLITS}
        classes = tuple(int(c) for c in np.unique(source.labels[rows["train"]]))
        tasks.append(Task(source.domain_names[d], source, 0, classes, rows))
    name = f"domain-incremental, {total} domains, {source.name}"
    return Scenario(name, tuple(tasks), (source,), order)


def data_incremental(source: Source, tasks: int, seed: int = 0) -> Scenario:
    """Every task holds all classes and an equal random share of the training examples.

    Raises:
        ValueError: no task, or a class has fewer training examples than there are tasks.
    """
    if tasks < 1:
        raise ValueError(f"{source.name}: at least one task, got {tasks}.")
    rng = draws(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(tasks)]
    starved = []
    for c in range(len(source.classes)):
        rows = rng.permutation(source.rows("train", classes=[c]))
        if len(rows) < tasks:
            starved.append(f"{source.classes[c]} ({len(rows)})")
        for t, part in enumerate(np.array_split(rows, tasks)):
            parts[t].append(part)
    if starved:
        raise ValueError(
            f"{source.name}: fewer than {tasks} training examples of {', '.join(starved)}."
        )
    every = tuple(range(len(source.classes)))
    shared = {s: source.splits[s] for s in SPLITS if s != "train"}
    stream = tuple(
        Task(f"share {t + 1}", source, 0, every, {"train": np.sort(np.concatenate(part)), **shared})
        for t, part in enumerate(parts)
    )
    return Scenario(f"data-incremental, {tasks} shares, {source.name}", stream, (source,))


def recurring(source: Source, tasks: int, classes: int, seed: int = 0) -> Scenario:
    """Every task draws `classes` classes at random; classes come back (SCoLe).

    The index plan with the same classes is `jaxmerge.data.streams.recurring.recurring`.

    Raises:
        ValueError: more classes a task than there are.
    """
    total = len(source.classes)
    stream = []
    for drawn in drawn_classes(draws(seed), total, tasks, classes):
        rows = {s: source.rows(s, classes=drawn) for s in SPLITS}
        names = ", ".join(source.classes[c] for c in drawn)
        stream.append(Task(f"{len(stream) + 1}: {names}", source, 0, drawn, rows))
    name = f"recurring, {tasks} tasks of {classes} of {total} classes, {source.name}"
    return Scenario(name, tuple(stream), (source,))


def planned(source: Source, plan: Plan) -> Scenario:
    """The tasks of an index plan, such as those with blurry borders.

    Tasks that have no example are left out. A task's val and test examples are those of the classes
    that arrive in it.

    Args:
        plan: of the training examples, in the order of ``source.rows("train")``, on one level.

    >>> from jaxmerge.data.digits import digits
    >>> from jaxmerge.data.streams.blurry import i_blurry
    >>> source = digits()
    >>> labels = source.labels[source.rows("train")]
    >>> [len(task.classes) for task in planned(source, i_blurry(labels, 5, 50, 10))]
    [6, 5, 6, 5, 5]
    """
    train = source.rows("train")
    if plan.level is not None:
        raise ValueError(
            f"{plan.name}: its labels have levels and a source has one; use "
            "jaxmerge.continual.streams.planned."
        )
    if plan.examples != len(train):
        raise ValueError(
            f"{source.name} has {len(train)} training examples, the plan is of {plan.examples}."
        )
    tasks = []
    for t, (rows, columns) in enumerate(zip(plan.rows, plan.columns, strict=True)):
        if len(rows):
            classes = tuple(int(c) for c in np.unique(columns))
            split = {s: source.rows(s, classes=classes) for s in SPLITS} | {"train": train[rows]}
            names = ", ".join(source.classes[c] for c in classes)
            tasks.append(Task(f"{t + 1}: {names}", source, 0, classes, split))
    return Scenario(f"{plan.name}, {source.name}", tuple(tasks), (source,))


def suite(sources: Sequence[Source], order: Sequence[int] | None = None) -> Scenario:
    """Independent tasks, one a source, each with its own label set and prompts.

    The head has the columns of all sources; task-agnostic figures ask for the right class among
    those of all sources, task-aware ones (what multi-task papers report) among the task's own.

    Args:
        order: the sources in order of arrival; as they are by default.
    """
    names = [s.name for s in sources]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice or not sources:
        raise ValueError(f"A suite needs sources of different names; got {names}.")
    order = permutation(order, len(sources), "sources")
    offsets = np.cumsum([0, *(len(s.classes) for s in sources)])
    tasks = tuple(
        Task(
            sources[i].name, sources[i], int(offsets[i]), tuple(range(len(sources[i].classes))),
            dict(sources[i].splits),
        )
        for i in order
    )  # fmt: skip
    return Scenario(f"suite of {len(sources)} tasks", tasks, tuple(sources), order, task_known=True)
