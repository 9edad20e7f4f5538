"""Accuracies: at the end, over time, by class and by age, against a model for each task."""

from __future__ import annotations

import numpy as np

from jaxmerge.evaluation.metrics.matrix import NAN, teachers


def average_accuracy(R: np.ndarray) -> float:
    """Mean of the last row.

    Args:
        R: [T, G], the score on group g after task t; NaN where it is missing.

    >>> average_accuracy(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.75
    """
    return float(np.mean(R[-1]))


def over_time(R: np.ndarray, learnt: np.ndarray | None = None) -> np.ndarray:
    """[T]: after each task the mean over the groups learnt so far, NaN before there is one.

    Args:
        R: [T, G], the score on group g after task t; NaN where it is missing.
        learnt: int [G], the task that teaches a group, -1 for none; by default group g's is g.

    >>> over_time(np.array([[1.0, 0.0], [0.5, 1.0]])).tolist()
    [1.0, 0.75]
    """
    learnt = teachers(R, learnt)
    seen = [(learnt >= 0) & (learnt <= t) for t in range(len(R))]
    return np.array([np.mean(row[s]) if s.any() else NAN for row, s in zip(R, seen, strict=True)])


def area_under_curve(series: np.ndarray) -> float:
    """A_AUC: the plain mean of scores at regular marks during training (no trapezoids).

    Two runs compare only where the marks are equally far apart.

    Args:
        series: [N], scores in the order of training.

    >>> area_under_curve(np.array([0.5, 0.75, 1.0]))
    0.75
    """
    return float(np.mean(series))


def normalised(R: np.ndarray, individual: np.ndarray) -> float:
    """Mean over tasks of the accuracy divided by that of the task's own model.

    Args:
        R: [T, T], task-aware accuracies in [0, 1].
        individual: [T], the accuracy on each task of the model trained on it alone.

    >>> normalised(np.array([[0.5, 0.5], [0.5, 1.0]]), np.array([1.0, 1.0]))
    0.75
    """
    return float(np.mean(R[-1] / individual))


def per_class(right: np.ndarray, classes: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their examples that is right.

    Args:
        right: bool [N], whether each example was answered rightly.
        classes: int [N], their classes.

    >>> per_class(np.array([True, True, False]), np.array([0, 0, 7]))
    0.5
    """
    counts = np.bincount(classes)
    shares = np.bincount(classes, right) / np.maximum(counts, 1)
    return float(np.mean(shares[counts > 0]))


def by_age(right: np.ndarray, classes: np.ndarray, known: int) -> dict[str, float]:
    """Share of examples that are right: of all, of old classes (below `known`), of new ones.

    NaN where there are no such examples.  Source: SLCA's and PyCIL's `accuracy`.

    Args:
        right: bool [N], whether each example was answered rightly.
        classes: int [N], their classes.
        known: how many classes are old, those below it.

    >>> by_age(np.array([True, False, True]), np.array([0, 1, 2]), 2)
    {'all': 0.6666666666666666, 'old': 0.5, 'new': 1.0}
    """
    sets = {"all": np.ones(len(classes), bool), "old": classes < known, "new": classes >= known}
    return {name: float(np.mean(right[s])) if s.any() else NAN for name, s in sets.items()}
