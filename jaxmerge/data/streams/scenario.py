"""Scenarios: which data arrive, in which order, under which columns of the head.

A `Scenario` is a sequence of `Task`; it can be indexed, iterated, printed, and drawn
(`jaxmerge.report.streams`).  All tasks
share one frozen head whose columns are the classes of all sources in turn; a task trains its own
columns and is evaluated both among all columns (task-agnostic) and among its own (task-aware).

`class_incremental` splits the classes of a source over the tasks; `jaxmerge.data.streams.builders`
holds the other builders.

"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.core.draws import draws
from jaxmerge.data.pipeline import Examples, examples
from jaxmerge.data.sources import SPLITS, Source
from jaxmerge.errors import listed


class Split(NamedTuple):
    """Examples of one split of a scenario; those that several tasks share are there once.

    Attributes:
        inputs: prepared: numpy [U, ...], or `Examples` where that does not fit into memory; in the
            order in which the tasks first ask for them.
        columns: int32 [U], the true column of the head.
        index: int [N], task after task, positions in `inputs`; 0..U-1 where nothing is shared.
        task: int32 [N], the task that each of `index` belongs to.
    """

    inputs: np.ndarray | Examples
    columns: np.ndarray
    index: np.ndarray
    task: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream.

    Attributes:
        name: "0, 3" or "sketch".
        source: where its examples live.
        offset: the head's column of the source's class 0.
        classes: the classes of the source it trains, in its order.
        rows: split -> rows of the source.

    >>> from jaxmerge.data.digits import digits
    >>> task = class_incremental(digits(), 5)[1]
    >>> task.columns.tolist(), sorted(set(task.labels("test").tolist()))
    ([2, 3], [2, 3])
    """

    name: str
    source: Source
    offset: int
    classes: tuple[int, ...]
    rows: dict[str, np.ndarray]

    @property
    def columns(self) -> np.ndarray:
        """The columns of the head that this task trains, int32."""
        return self.offset + np.asarray(self.classes, np.int32)

    def labels(self, split: str) -> np.ndarray:
        """The true column of every example of a split, int32.

        Args:
            split: "train", "val" or "test".
        """
        return self.offset + self.source.labels[self.rows[split]].astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Scenario:
    """A stream of tasks over one frozen head.

    Attributes:
        name: one line for reports.
        tasks: in the order of learning.
        sources: their classes in turn are the columns of the head.
        order: the class, domain or task order that made it, for reports.
        task_known: the task is known at test time, so that the task-aware figures are the ones to
            read.

    >>> from jaxmerge.data.digits import digits
    >>> scenario = class_incremental(digits(), 5)
    >>> len(scenario.classes), np.flatnonzero(scenario.mask(1)).tolist()
    (10, [2, 3])
    >>> test = scenario.split("test")
    >>> len(test.index) == len(test.task) == sum(len(task.rows["test"]) for task in scenario)
    True
    """

    name: str
    tasks: tuple[Task, ...]
    sources: tuple[Source, ...]
    order: tuple[int, ...] = ()
    task_known: bool = False

    def __post_init__(self):
        empty = [
            f"task {t} ({task.name}) has no {split} examples"
            for t, task in enumerate(self.tasks)
            for split in SPLITS
            if len(task.rows[split]) == 0
        ]
        if empty:
            raise ValueError(
                f"{self.name}: {listed(empty)} Every task needs examples for training, for "
                "validation and for tests: more data, or other shares of the splits (val, test)."
            )

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, t: int) -> Task:
        return self.tasks[t]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __str__(self) -> str:
        read = "; the task is told: read the task-aware figures" if self.task_known else ""
        lines = [f"{self.name}: {len(self)} tasks, {len(self.classes)} classes{read}"]
        for t, task in enumerate(self.tasks):
            counts = ", ".join(f"{s} {len(task.rows[s])}" for s in SPLITS)
            lines.append(f"  {t + 1}. {shortened(task.name)} ({counts})")
        return "\n".join(lines)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the head's columns."""
        return tuple(c for source in self.sources for c in source.classes)

    def mask(self, t: int) -> np.ndarray:
        """bool [columns]: those that task t trains.

        Args:
            t: the task, from 0.
        """
        mask = np.zeros(len(self.classes), bool)
        mask[self.tasks[t].columns] = True
        return mask

    def split(self, split: str, prepare: Callable[[Any], np.ndarray] = np.asarray) -> Split:
        """All examples of a split, task after task.

        Args:
            split: "train", "val" or "test".
            prepare: what a source holds (pictures of any size, texts) -> numpy of one shape.
        """
        seen = [np.full(len(source.labels), -1) for source in self.sources]
        parts, columns, index, count = [], [], [], 0
        for task in self.tasks:
            position, rows = seen[self.sources.index(task.source)], task.rows[split]
            new = rows[position[rows] < 0]
            position[new] = np.arange(count, count + len(new))
            count += len(new)
            parts.append((task.source.inputs, new))
            columns.append(task.offset + task.source.labels[new].astype(np.int32))
            index.append(position[rows])
        return Split(
            examples(parts, prepare),
            np.concatenate(columns),
            np.concatenate(index),
            np.repeat(np.arange(len(self)), [len(x) for x in index]).astype(np.int32),
        )


def class_order(classes: int, seed: int | None) -> tuple[int, ...]:
    """The order in which classes arrive: as they are (None), or a permutation drawn by `seed`.

    Args:
        classes: how many.
        seed: of numpy's generator, or None.

    >>> class_order(3, None), len(class_order(3, seed=0))
    ((0, 1, 2), 3)
    """
    order = np.arange(classes)
    return tuple(order.tolist() if seed is None else draws(seed).permutation(order))


def class_incremental(source: Source, tasks: int, order: Sequence[int] | None = None) -> Scenario:
    """Split the classes into tasks: task t holds classes floor(C t / T) .. floor(C (t+1) / T).

    Args:
        source: its classes are the columns of the head.
        tasks: T, from 1 to the number of classes.
        order: the classes in order of arrival, a permutation; as they are by default.

    Raises:
        ValueError: more tasks than classes, an order that is not a permutation.

    Source: the splits of Marczak et al., MagMax, ECCV 2024.

    >>> from jaxmerge.data.digits import digits
    >>> print(class_incremental(digits(), 5))
    class-incremental, 5 tasks of 2 classes, digits: 5 tasks, 10 classes
      1. ...
    """
    total = len(source.classes)
    if not 1 <= tasks <= total:
        many = f"{total} classes, so between 1 and {total} tasks"
        raise ValueError(
            f"{source.name} has {'1 class, so 1 task' if total == 1 else many}; got {tasks}."
        )
    order = permutation(order, total, "classes")
    bounds = [total * t // tasks for t in range(tasks + 1)]
    stream = []
    for low, high in itertools.pairwise(bounds):
        chosen = order[low:high]
        names = ", ".join(source.classes[c] for c in chosen)
        stream.append(
            Task(names, source, 0, chosen, {s: source.rows(s, classes=chosen) for s in SPLITS})
        )
    sizes = {len(k.classes) for k in stream}
    per_task = f"{min(sizes)}" if len(sizes) == 1 else f"{min(sizes)} or {max(sizes)}"
    name = f"class-incremental, {tasks} tasks of {per_task} classes, {source.name}"
    return Scenario(name, tuple(stream), (source,), order)


def permutation(order: Sequence[int] | None, total: int, what: str) -> tuple[int, ...]:
    """`order` as a tuple, or 0..total-1 where it is None.

    Args:
        order: each of 0..total-1 once, or None.
        total: how many things there are.
        what: they are, for messages.

    Raises:
        ValueError: it does not name each of `total` things once.

    >>> permutation(None, 3, "classes"), permutation([2, 0, 1], 3, "classes")
    ((0, 1, 2), (2, 0, 1))
    """
    if order is None:
        return tuple(range(total))
    try:
        positions = [operator.index(i) for i in order]
    except TypeError:
        found = [*order][:8] if isinstance(order, Iterable) else repr(order)
        raise ValueError(f"The order of {what} holds whole numbers, got {found}.") from None
    if sorted(positions) != list(range(total)):
        missing = sorted(set(range(total)) - set(positions))
        wrong = sorted({i for i in positions if positions.count(i) > 1 or not 0 <= i < total})
        raise ValueError(
            f"The order of {what} must name each of 0..{total - 1} once; "
            f"missing {few_of(missing)}, repeated or out of range {few_of(wrong)}."
        )
    return tuple(positions)


def few_of(numbers: Sequence[int], shown: int = 10) -> str:
    """The first of some numbers, and how many there are.

    Args:
        numbers: any.
        shown: how many are written out.

    >>> few_of([]), few_of([3, 4]), few_of(range(20), 2)
    ('none', '3, 4', '0, 1 and 18 more')
    """
    rest = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return ", ".join(map(str, numbers[:shown])) + rest or "none"


def shortened(text: str, width: int = 80) -> str:
    """A text cut to `width` characters.

    Args:
        text: of one line.
        width: the most characters, 3 or more.

    >>> shortened("one, two, three", 10)
    'one, two …'
    """
    return text if len(text) <= width else f"{text[: width - 2].rstrip(', ')} …"
