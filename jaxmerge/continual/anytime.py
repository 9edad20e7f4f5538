"""Accuracy at any time: how good the model is while it learns, not only at the borders of tasks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxmerge.continual.hook_calls import kind
from jaxmerge.continual.stream_records import Groups, Stream
from jaxmerge.core.types import Array


class Anytime(NamedTuple):
    """Accuracy over the classes met so far, mark by mark.

    Attributes:
        examples: int [marks], of the stream, learnt before each mark.
        accuracy: [marks], over the test examples of the classes met before it.
        A_AUC: the area under the curve over examples: the mean of these, each weighted by the
            examples that came since the mark before; the plain mean where marks are regular.
    """

    examples: np.ndarray
    accuracy: np.ndarray
    A_AUC: float


def anytime(stream: Stream, R: Array, level: int | None = None) -> Anytime:
    """The curve of a stream that was scored within its tasks, and the area under it.

    Args:
        stream: its groups are classes, see `jaxmerge.continual.streams.planned`.
        R: [T, parts, G], one metric of ``program(..., anytime=parts)``. Parts in which nothing
            arrived (the end of a short task) are left out.
        level: of a stream with labels of several levels: the curve of those on this one, 0 the
            coarsest, from the first mark at which one of them has been met.

    Raises:
        ValueError: R of another form, or not scored at a mark; groups that are no classes; levels
            of which none is chosen, or that there are not.

    Source: Koh et al., CLIB, ICLR 2022, section 4: accuracy at every so many examples over the
    classes met so far, and the area under it; two runs compare only with the same marks.

    >>> from jaxmerge.continual.streams import planned
    >>> from jaxmerge.data.streams.plans import online
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> stream = planned(online(y, 2), (x, y), (x, y), batch=1)  # two tasks of two steps
    >>> anytime(stream, np.full((2, 2, 4), 0.5)).accuracy.tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"anytime takes a `Stream`, of `planned` for one, got {kind(stream)}.")
    R = np.asarray(R)
    sets = (stream.groups,) if isinstance(stream.groups, Groups) else tuple(stream.groups)
    classes = np.concatenate([np.asarray(g.targets)[np.asarray(g.rows)[:, 0]] for g in sets])
    if any(_classes(g).max() > 1 for g in sets):
        raise ValueError("anytime is of groups of one class each (`planned`); some have several.")
    if R.ndim != 3 or (R.shape[0], R.shape[2]) != (stream.tasks, len(classes)) or not R.shape[1]:
        raise ValueError(
            "R is [tasks, parts, groups] of program(anytime=parts), here "
            f"[{stream.tasks}, parts, {len(classes)}]; got {list(R.shape)}."
        )
    tests = np.concatenate([np.asarray(g.weight).sum(1) for g in sets])
    asked = _on_level(stream, classes, level)
    tasks, parts, _ = R.shape
    steps = stream.rows.shape[1]
    fill = lambda x: np.pad(np.asarray(x), ((0, 0), (0, -steps % parts), (0, 0)))
    used = fill(stream.weight).reshape(tasks * parts, -1) > 0
    rows = fill(stream.rows).reshape(tasks * parts, -1)
    labels, met = np.asarray(stream.targets), np.zeros(len(classes), bool)
    curve, at, new, total = [], [], [], 0
    for figures, r, u in zip(R.reshape(tasks * parts, -1), rows, used, strict=True):
        met |= asked & np.isin(classes, labels[r[u]])
        total += int(u.sum())
        if u.any() and met.any():
            at.append(total)
            new.append(int(u.sum()))
            curve.append(float((figures * tests)[met].sum() / tests[met].sum()))
    if not np.isfinite(curve).all():
        raise ValueError("R has marks that were not scored, or are not finite.")
    return Anytime(np.array(at), np.array(curve), float(np.average(curve, weights=new)))


def _classes(groups: Groups) -> np.ndarray:
    """int [groups]: how many classes each has."""
    targets = np.asarray(groups.targets)
    both = zip(np.asarray(groups.rows), np.asarray(groups.weight), strict=True)
    return np.array([len(np.unique(targets[rows[weight > 0]])) for rows, weight in both])


def _on_level(stream: Stream, classes: np.ndarray, level: int | None) -> np.ndarray:
    """bool [G]: the groups of a level; all of a stream without levels."""
    info = stream.info if isinstance(stream.info, dict) else {}
    depth = np.asarray(info["level"])[classes] if "level" in info else np.zeros(len(classes), int)
    there = np.unique(depth).tolist()
    if level is None and len(there) == 1:
        return np.ones(len(classes), bool)
    if level not in there:
        raise ValueError(f"level is one of {there}, whose labels arrive; got {level!r}.")
    return depth == level
