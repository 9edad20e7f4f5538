"""Deployments: what is made of the models of a stream after a task.

A `Deploy` is the last model or a merge; several are served by one pass over the tasks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmerge.continual.schedule import Start
from jaxmerge.core.registry import REGISTRY, get
from jaxmerge.core.types import Merge
from jaxmerge.drivers import memory
from jaxmerge.errors import closest

LAST_MODEL = "last model"  # beside the names of methods


@dataclasses.dataclass(frozen=True)
class Deploy:
    """What is deployed after a task.

    Attributes:
        label: in tables; unique in a stream.  Alone it is the method itself: a name, a merge that
            is made, or a method.
        method: ``factor -> Merge``, such as `jm.magmax`, or its name; a merge that is made, such as
            ``jm.magmax(0.5)``, which then has no factors to try; "last model" for the last model.
        factors: tried on the validation examples of the tasks seen so far; the best is deployed
            (the smallest of equals, nearest to the pretrained model).  One factor is not tried;
            without one the method's own default is deployed.
        always: merge and evaluate after every task, or after the last one only.
        each: evaluate every factor on the test examples as a row of its own, choose none.
        beyond: where a factor is chosen, how many more are tried past an end of the list while
            the best stands there, see `jaxmerge.continual.factor_search`.

    Raises:
        ValueError: a name that no method has, factors of what takes none, or beyond which none lie.
        TypeError: a label that is no text, a method that is none.

    >>> both = Deploy("MagMax", "magmax", (0.25, 0.75), each=True)
    >>> both.rows()
    [('MagMax, factor 0.25', 0.25), ('MagMax, factor 0.75', 0.75)]
    >>> both.merge(), len(both.folds)  # one fold serves both
    (magmax(factor=0.25), 1)
    >>> [fold.label for fold in Deploy("TIES", "continual_ties", (0.25, 0.75)).folds]
    ['TIES, factor 0.25', 'TIES, factor 0.75']
    >>> Deploy("magmax").merge(), Deploy("magmax").last, Deploy("last model").last
    (magmax(), False, True)
    """

    label: str
    method: Callable[..., Merge] | Merge | str
    factors: tuple[float, ...]
    always: bool
    each: bool
    beyond: int

    def __init__(
        self,
        label: str | Merge | Callable[..., Merge],
        method: Callable[..., Merge] | Merge | str | None = None,
        factors: Sequence[float] | np.ndarray | float = (),
        always: bool = True,
        each: bool = False,
        beyond: int = 0,
    ):
        method = label if method is None else method
        if not isinstance(label, str):
            if method is not label:
                raise TypeError(f"A deployment is Deploy(label, method); the label is {label!r}.")
            label = repr(label) if isinstance(label, Merge) else getattr(label, "__name__", "")
        tried: Any = factors
        tried = tuple(tried) if np.ndim(tried) else (tried,)
        for field, value in {
            "label": label, "method": method, "factors": tried, "always": always, "each": each,
            "beyond": beyond,
        }.items():  # fmt: skip
            object.__setattr__(self, field, value)
        self._check()

    def _check(self) -> None:
        label, method = self.label, self.method
        if isinstance(method, str):
            if not self.last and REGISTRY.get(method, None) is None:
                known = closest(method, [*REGISTRY, LAST_MODEL])
                alone = "; a label of your own is Deploy(label, method)" * (label == method)
                raise ValueError(f"Nothing to deploy is named {method!r}: {known}{alone}")
        elif not isinstance(method, Merge) and not callable(method):
            raise TypeError(
                f"The method of {label or 'a deployment'} is {method!r}; expected a merge, such as "
                f"jm.magmax(0.5), a method, such as jm.magmax, its name, or {LAST_MODEL!r}."
            )
        if not label or label == "<lambda>":
            raise TypeError("A function has no name for tables: write Deploy(label, function).")
        if self.factors and self.last:
            raise ValueError(
                f"{label} is the last model, so its factors {list(self.factors)} cannot be tried."
            )
        if self.factors and isinstance(method, Merge):
            raise ValueError(
                f"{label} is made already, so its factors {list(self.factors)} cannot be "
                "tried: give the method itself, such as jm.magmax."
            )
        if type(self.beyond) is not int or self.beyond < 0:
            raise ValueError(
                f"beyond is how many factors are tried past an end, a whole number from 0 on; "
                f"{label} has {self.beyond!r}."
            )
        low = [f for f in self.factors if isinstance(f, int | float) and f <= 0]
        if self.beyond and low and len(self.factors) > 1:
            raise ValueError(
                f"{label} tries factors beyond {list(self.factors)} by their ratio, so all must be "
                f"positive; {low[0]!r} is not. Leave it out, or set beyond to 0."
            )

    @property
    def last(self) -> bool:
        """Whether this is the last model, and no merge."""
        return isinstance(self.method, str) and self.method == LAST_MODEL

    def rows(self) -> list[tuple[str, float | None]]:
        """(row of the table, its fixed factor or None); several where each factor is a row."""
        if not self.each or len(self.factors) < 2:
            return [(self.label, self.factors[0] if self.each and self.factors else None)]
        return [(f"{self.label}, factor {f:g}", f) for f in self.factors]

    @functools.cached_property
    def folds(self) -> tuple[Deploy, ...]:
        """What is folded over the models: this one, or one for each factor that enters the fold."""
        if self.last:
            return ()
        if len(self.factors) < 2 or _same_folds(self):
            return (self,)
        return tuple(
            dataclasses.replace(self, label=f"{self.label}, factor {f:g}", factors=(f,), beyond=0)
            for f in self.factors
        )

    def fold(self, factor: float | None) -> Deploy:
        """The fold that serves a factor.

        Args:
            factor: one of `factors`, one beyond them, or None: the first.
        """
        own = [fold for fold in self.folds if fold.factors == (factor,)]
        return own[0] if own else self.folds[0]

    def merge(self, factor: float | None = None) -> Merge:
        """The method under one factor, by default the first.

        Args:
            factor: of the method; None: the first of `factors`, or its default.
        """
        if self.last:
            raise TypeError(f"{self.label!r} deploys the last model: there is no merge to make.")
        if isinstance(self.method, Merge):
            return self.method
        method = get(self.method) if isinstance(self.method, str) else self.method
        if factor is None and self.factors:
            factor = self.factors[0]
        return method() if factor is None else method(factor)


LAST = Deploy(LAST_MODEL)


def deploy(what: Deploy | Merge | Callable[..., Merge] | str) -> Deploy:
    """A deployment from a name ("last model", "magmax"), a merge, a method, or one as it is.

    Args:
        what: "last model", the name of a method, a merge, a method, or a deployment.

    >>> deploy("last model") == LAST, deploy("magmax").merge()
    (True, magmax())
    """
    return what if isinstance(what, Deploy) else Deploy(what)


def deployments(
    several: Iterable[Deploy | Merge | Callable[..., Merge] | str],
) -> tuple[Deploy, ...]:
    """What a stream deploys, from a list of what `deploy` takes.

    Args:
        several: the list.

    Raises:
        TypeError: one alone, whose letters or fields would be taken for deployments.

    >>> deployments("magmax")
    Traceback (most recent call last):
    TypeError: deploys are a list; found 'magmax' alone: write ['magmax'].
    """
    if isinstance(several, str | Deploy | Merge) or callable(several):
        one = getattr(several, "__name__", None) or repr(several)
        raise TypeError(f"deploys are a list; found {one} alone: write [{one}].")
    if not isinstance(several, Iterable):
        raise TypeError(f"deploys are a list of deployments, got {several!r}.")
    return tuple(map(deploy, several))


def running_merge(start: Start, deploys: tuple[Deploy, ...], label: str | None) -> Deploy | None:
    """The merge that `start` reads, or None where it reads none."""
    merges = {d.label: d for d in deploys if not d.last}
    every = [*(d.label for d in deploys), *(f.label for d in deploys for f in d.folds if f != d)]
    twice = sorted({label for label in every if every.count(label) > 1})
    if twice:
        raise ValueError(f"Two deployments are labelled {', '.join(twice)}; rename one.")
    if label is not None and label not in merges:
        raise ValueError(f"No merge of this stream is named {label!r}: {closest(label, merges)}")
    if not start.merged:
        return None
    if not merges:
        raise ValueError(f"Training starts from the {start.name} merge, but nothing is merged.")
    merge = merges[label] if label is not None else next(iter(merges.values()))
    if merge.each and len(merge.factors) > 1:
        raise ValueError(
            f"Training starts from {merge.label}, whose factors are rows of their own; give it "
            "one factor, or name another merge in running."
        )
    if not merge.always:
        raise ValueError(
            f"Training starts from {merge.label}, which is merged after the last task only; "
            "set its always to true."
        )
    return merge


def check_counts(deploys: tuple[Deploy, ...], tasks: int) -> None:
    """Raise ValueError for merges that do not take as many models as there are tasks, or whose
    factors beyond the list have no fold."""
    wrong = []
    for d in deploys:
        least, most = (1, None) if d.last else d.merge().models
        if tasks < least or (most is not None and tasks > most):
            takes = f"at least {least}" if most is None else f"{least} to {most}"
            wrong.append(f"{d.label} takes {takes} models, this stream has {tasks} tasks")
        elif d.beyond and len(d.folds) > 1:
            wrong.append(
                f"the factor of {d.label} enters its fold, so that what lies beyond "
                f"{list(d.factors)} cannot be tried afterwards; give all in the list"
            )
    if wrong:
        raise ValueError("; ".join(wrong) + ".")


def _same_folds(d: Deploy) -> bool:
    """Whether the factor acts at the end only, on what one fold gave."""
    one, other = d.merge(d.factors[0]), d.merge(d.factors[-1])
    if one.core is not None and repr((one.before, one.core)) == repr((other.before, other.core)):
        return True
    base = {"kernel": np.zeros((2, 2), np.float32)}
    entries = [[[1, 2], [3, 5]], [[-2, 1], [1, 4]]]
    models = [{"kernel": np.array(x, np.float32)} for x in entries]

    def cells(method: Merge) -> list:
        state = memory.init(method, base, key=jax.random.key(0))
        for model in models:
            state = memory.update(method, state, base, model)
        return jax.tree.leaves(state.cells)

    return all(np.array_equal(a, b) for a, b in zip(cells(one), cells(other), strict=True))
