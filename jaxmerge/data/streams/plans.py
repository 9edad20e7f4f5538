"""Index plans: which example arrives when, and under which label; numpy alone, before any training.

A `Plan` is made of labels and a seed, so it can be printed, checked, drawn
(`jaxmerge.report.streams.draw_plan`) and compared by its digest without data or model.

================  ==========================================================  ====================
maker             what arrives                                                each example comes
================  ==========================================================  ====================
online            the classes of task after task, one pass                    exactly once
si_blurry         disjoint and blurry classes, borders and shares at random   at most once
i_blurry          the same with equal tasks                                   at most once
recurring         a few classes, drawn anew for every task                    once in a task
expansion         coarse labels first, then finer ones (`hierarchy`)          once; "dual" a level
================  ==========================================================  ====================

`jaxmerge.continual.streams.planned` makes a stream of a plan and data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike

from jaxmerge.core.draws import draws
from jaxmerge.core.ranges import Count, Range, unfit
from jaxmerge.data.streams import faults
from jaxmerge.data.streams.faults import Promise, as_array, unfit_labels
from jaxmerge.data.streams.scenario import permutation
from jaxmerge.errors import listed


class Draws(Protocol):
    """What a plan draws from: numpy's generator, or another program's draws.

    >>> draws: Draws = np.random.default_rng(0)
    >>> sorted(draws.permutation(3).tolist()), int(draws.integers(0, 1))
    ([0, 1, 2], 0)
    """

    @property
    def permutation(self) -> Callable[..., Any]: ...

    @property
    def integers(self) -> Callable[..., Any]: ...


Seed = int | np.integer | Sequence[int] | np.ndarray | Draws
Whole = Annotated[int, Range("a whole number from 0 on", lambda v: v >= 0, whole=True)]
SHOWN = 30  # rows of a printed plan


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The order of arrival of a whole stream.

    Attributes:
        name: one line.
        rows: of every task, int [N_t]: positions in the training examples, as they arrive.
        columns: of every task, int [N_t]: the column of the head under which each arrives.
        examples: how many training examples there are.
        names: of the columns.
        promise: how often an example comes; "a level once": once under the labels of each level
            that arrives; "once in a task": no more often, in any number of tasks.
        level: int [columns]: the depth of a label in a hierarchy, 0 the coarsest; else all 0.
        parent: int [columns]: the column one level above, -1 at the top.

    >>> plan = Plan("toy", (np.array([0, 1]),), (np.array([0, 0]),), 3, ("a",))
    >>> plan.check()
    >>> plan.counts().tolist(), plan.left_out(), plan.levels.tolist(), len(plan.digest())
    ([[2]], 1, [0], 12)
    """

    name: str
    rows: tuple[np.ndarray, ...]
    columns: tuple[np.ndarray, ...]
    examples: int
    names: tuple[str, ...]
    promise: Promise = "at most once"
    level: np.ndarray | None = None
    parent: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def levels(self) -> np.ndarray:
        """int [columns], the depth of each label."""
        zero = np.zeros(len(self.names), np.int32)
        return zero if self.level is None else np.asarray(self.level, np.int32)

    def counts(self) -> np.ndarray:
        """int [columns, tasks]: how many examples of a column arrive in a task."""
        return np.stack([np.bincount(c, minlength=len(self.names)) for c in self.columns], 1)

    def left_out(self) -> int:
        """How many examples never come."""
        return self.examples - len(np.unique(np.concatenate(self.rows)))

    def digest(self) -> str:
        """Twelve hexadecimal digits that two plans share only if they are the same.

        Its name and those of the columns do not count.
        """
        said = [
            self.examples, self.promise, self.levels.tolist(),
            None if self.parent is None else np.asarray(self.parent).tolist(),
        ]  # fmt: skip
        total = hashlib.sha256(json.dumps(said).encode())
        for rows, columns in zip(self.rows, self.columns, strict=True):
            total.update(np.ascontiguousarray(np.stack([rows, columns]), np.int64).tobytes())
            total.update(b"|")
        return total.hexdigest()[:12]

    def __str__(self) -> str:
        counts = self.counts()
        sizes = ", ".join(str(len(r)) for r in self.rows)
        lines = [
            f"{self.name}: {len(self)} tasks of {sizes} examples, {self.left_out()} of "
            f"{self.examples} never come, digest {self.digest()}"
        ]
        width = max(len(str(counts.max(initial=0))), 3) + 1
        wide = min(max(map(len, self.names)), 24)
        for c in range(min(len(self.names), SHOWN)):
            row = "".join(f"{n:{width}}" if n else " " * (width - 1) + "." for n in counts[c])
            lines.append(f"  {self.names[c][:wide]:{wide}}{row}")
        if len(self.names) > SHOWN:
            lines.append(f"  ... and {len(self.names) - SHOWN} more classes")
        return "\n".join(lines)

    def check(self, labels: ArrayLike | None = None) -> None:
        """Raise ValueError, all of it at once, where the plan breaks what it promises.

        Args:
            labels: int [examples], of the training examples, finest classes; with them every
                column is compared with the label of its example on the column's level.

        Raises:
            ValueError: rows or columns that do not fit together or are out of range, an example
                that comes too often or never, a column that is not its example's label.

        >>> rows, columns = (np.array([0, 1]), np.array([2, 3])), (np.array([0, 0]),) * 2
        >>> Plan("swapped", rows, columns, 4, ("a", "b")).check(labels=[0, 1, 0, 0])
        Traceback (most recent call last):
        ValueError: swapped: task 0: row 1 comes as a, its label is b (1 of 2 examples).
        """
        if wrong := faults.malformed(self) or faults.outside(self):
            raise ValueError(f"{self.name}: {listed(wrong)}")
        if labels is not None and (wrong := faults.mislabelled(self, labels)):
            raise ValueError(f"{self.name}: {listed(wrong)}")
        if wrong := faults.too_often(self) + faults.missing(self):
            raise ValueError(f"{self.name} promises each example {self.promise}: {listed(wrong)}")


def generator(seed: Seed) -> Draws:
    """Draws: a number seeds numpy's generator; an object with its two methods is taken as it is.

    Args:
        seed: a number, or an object with ``permutation(n)`` and ``integers(low, high, size)``.

    >>> generator(0).permutation(3).tolist() == generator(0).permutation(3).tolist()
    True
    """
    given: Any = seed
    if _is_draws(given):
        return given
    return draws(given) if np.ndim(given) == 0 else np.random.default_rng(given)


def checked_labels(
    labels: ArrayLike, seed: Seed, names: Sequence[str] | None = None, **numbers: tuple[Any, Any]
) -> tuple[np.ndarray, Draws, tuple[str, ...]]:
    """What every maker is given: labels, draws and names of classes.

    Args:
        labels: int [N], N from 1 on; classes are numbered from 0 without gaps.
        seed: see `generator`.
        names: of the classes, one each; their numbers where None.
        numbers: name -> (value, what it may be), see `jaxmerge.core.ranges`.

    Raises:
        ValueError: what does not fit, all at once.

    >>> labels, _, names = checked_labels([0, 1, 1], 0, tasks=(2, Count))
    >>> labels.tolist(), names
    ([0, 1, 1], ('0', '1'))
    >>> checked_labels([0.5], "a", tasks=(2.5, Count))
    Traceback (most recent call last):
    ValueError: labels are whole numbers [N] from 0 on, got float64[1]; seed must be a whole ...
    """
    array, wrong, given = as_array(labels), [], ()
    if found := unfit_labels(array):
        wrong.append(f"labels are whole numbers [N] from 0 on, got {found}")
    else:
        classes = np.unique(array)
        gap = np.flatnonzero(classes != np.arange(len(classes)))
        if len(gap):
            wrong.append(
                f"no label is {gap[0]}, the largest is {classes[-1]}: number the classes from 0 "
                "without gaps, as np.unique(labels, return_inverse=True)[1] does"
            )
        try:
            given = tuple(map(str, range(len(classes)))) if names is None else texts(names)
        except ValueError as error:
            given = ()
            wrong.append(str(error).rstrip("."))
        if given and len(given) != len(classes) and not len(gap):
            wrong.append(f"{len(given)} names, but labels are 0 to {classes[-1]}")
    if not _is_draws(seed):
        wrong += unfit(Whole | Sequence[Whole], seed=seed)
    for name, (value, hint) in numbers.items():
        wrong += unfit(hint, **{name: value})
    if wrong:
        raise ValueError(listed(wrong))
    return array, generator(seed), given


def texts(names: object) -> tuple[str, ...]:
    """Names of labels as a tuple.

    Args:
        names: a list or an array of texts.

    Raises:
        ValueError: anything else than texts.

    >>> texts(["a", "b"])
    ('a', 'b')
    """
    several = isinstance(names, Sequence | np.ndarray) and not isinstance(names, str)
    given = list(cast(Sequence, names)) if several else [names]
    odd = [n for n in given if not several or not isinstance(n, str)]
    if odd:
        raise ValueError(f"names are texts, one a label; got {odd[0]!r}.")
    return tuple(map(str, given))


def _is_draws(seed: Any) -> bool:
    return hasattr(seed, "permutation") and hasattr(seed, "integers")


def checked(plan: Plan) -> Plan:
    """The plan, if it holds what it promises.

    Args:
        plan: of any maker.

    >>> rows = (np.array([0, 0]),)
    >>> checked(Plan("twice", rows, rows, 1, ("a",)))
    Traceback (most recent call last):
    ValueError: twice promises each example at most once: 1 examples come again (row 0, 2 times).
    """
    plan.check()
    return plan


def online(
    labels: np.ndarray, tasks: int, seed: Seed = 0, *, order: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Plan:  # fmt: skip
    """One pass over all examples, the classes in equal parts, shuffled within a task.

    Args:
        labels: int [N], of the training examples.
        tasks: how many, 1 or more.
        seed: a number, or an object with the draws (`generator`).
        names: of the classes; their numbers by default.
        order: the classes in order of arrival, a permutation; drawn by the seed where None.

    >>> print(online(np.arange(6) % 3, 3, order=(0, 2, 1)))
    online, 3 tasks: 3 tasks of 2, 2, 2 examples, 0 of 6 never come, digest 121369c39c55
      0   2   .   .
      1   .   .   2
      2   .   2   .
    """
    labels, rng, names = checked_labels(labels, seed, names, tasks=(tasks, Count))
    many = len(names)
    if tasks > many:
        raise ValueError(f"{many} classes make 1 to {many} tasks, got {tasks}.")
    drawn = rng.permutation(many) if order is None else permutation(order, many, "classes")
    arrive = np.asarray(drawn)
    bounds = [many * t // tasks for t in range(tasks + 1)]
    rows = []
    for low, high in itertools.pairwise(bounds):
        own = np.flatnonzero(np.isin(labels, arrive[low:high]))
        rows.append(own[rng.permutation(len(own))])
    return checked(Plan(f"online, {tasks} tasks", tuple(rows), tuple(labels[r] for r in rows),
                        len(labels), names, "exactly once"))  # fmt: skip
