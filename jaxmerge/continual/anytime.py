"""Accuracy at any time: how good the model is while it learns, not only at the borders of tasks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxmerge.continual.stream_records import Groups, Stream
from jaxmerge.core.types import Array


class Anytime(NamedTuple):
    """Accuracy over the classes met so far, mark by mark.

    Attributes:
        examples: int [marks], of the stream, learnt before each mark.
        accuracy: [marks], over the test examples of the classes met before it.
        A_AUC: the plain mean of these.
    """

    examples: np.ndarray
    accuracy: np.ndarray
    A_AUC: float


def anytime(stream: Stream, R: Array) -> Anytime:
    """The curve of a stream that was scored within its tasks, and its mean.

    Args:
        stream: its groups are classes, see `jaxmerge.continual.streams.planned`.
        R: [T, parts, G], one metric of ``program(..., anytime=parts)``. Parts in which nothing
            arrived (the end of a short task) are left out.

    Source: Koh et al., CLIB, ICLR 2022, section 4: accuracy at every so many examples over the
    classes met so far, and its mean; two runs compare only with the same marks.

    >>> from jaxmerge.continual.streams import planned
    >>> from jaxmerge.data.streams.plans import online
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> stream = planned(online(y, 2), (x, y), (x, y), batch=1)  # two tasks of two steps
    >>> anytime(stream, np.full((2, 2, 4), 0.5)).accuracy.tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    R = np.asarray(R)
    if R.ndim != 3:
        raise ValueError(f"R is [tasks, parts, groups] of program(anytime=parts); got {R.shape}.")
    tasks, parts, _ = R.shape
    sets = (stream.groups,) if isinstance(stream.groups, Groups) else tuple(stream.groups)
    classes = np.concatenate([np.asarray(g.targets)[np.asarray(g.rows)[:, 0]] for g in sets])
    tests = np.concatenate([np.asarray(g.weight).sum(1) for g in sets])
    used = np.asarray(stream.weight).reshape(tasks * parts, -1) > 0
    rows = np.asarray(stream.rows).reshape(tasks * parts, -1)
    labels, met = np.asarray(stream.targets), np.zeros(len(classes), bool)
    curve, at, total = [], [], 0
    for figures, r, u in zip(R.reshape(tasks * parts, -1), rows, used, strict=True):
        met |= np.isin(classes, labels[r[u]])
        total += int(u.sum())
        if u.any():
            at.append(total)
            curve.append(float((figures * tests)[met].sum() / tests[met].sum()))
    return Anytime(np.array(at), np.array(curve), float(np.mean(curve)))
