"""Forgetting: what a group lost from its best score to the last, in its five meanings."""

from __future__ import annotations

import numpy as np

from jaxmerge.evaluation.metrics.matrix import NAN, best_score, mean_or_nan, signed, teachers


def forgetting(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """How far groups fell from their best since they were learnt, the last task's end left out.

    Args:
        R: [T, G], the score on group g after task t; NaN where it is missing.
        learnt: int [G], the task that teaches a group, -1 for none; by default group g's is g.
        lower_is_better: whether less is better, as of a perplexity.

    >>> forgetting(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.5
    """
    R, learnt, early = signed(R, learnt, lower_is_better)
    return mean_or_nan([np.max(R[learnt[g] : -1, g]) - R[-1, g] for g in early])


def forgetting_from_best(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """How far groups are from the best they ever were, the last task's end included.

    Args:
        R: [T, G], the score on group g after task t; NaN where it is missing.
        learnt: int [G], the task that teaches a group, -1 for none; by default group g's is g.
        lower_is_better: whether less is better, as of a perplexity.

    >>> forgetting_from_best(np.array([[0.5, 0.0], [0.75, 1.0]])), forgetting(
    ...     np.array([[0.5, 0.0], [0.75, 1.0]])
    ... )
    (0.0, -0.25)
    """
    R, learnt, early = signed(R, learnt, lower_is_better)
    return mean_or_nan([best_score(R, g, int(learnt[g])) - R[-1, g] for g in early])


def forgetting_all_tasks(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """As `forgetting_from_best`, divided by all groups: the last task's count, with what they lost.

    Args:
        R: [T, G], the score on group g after task t; NaN where it is missing.
        learnt: int [G], the task that teaches a group, -1 for none; by default group g's is g.
        lower_is_better: whether less is better, as of a perplexity.

    >>> forgetting_all_tasks(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.25
    """
    R, learnt, _ = signed(R, learnt, lower_is_better)
    if len(R) < 2:
        return NAN
    taught = np.flatnonzero(learnt >= 0)
    return mean_or_nan([best_score(R, g, learnt[g]) - R[-1, g] for g in taught])


def forgetting_by_class(R: np.ndarray) -> float:
    """Groups are classes: the fall from the best earlier task end, over classes once right.

    Which task teaches a class plays no part (in a blurry stream several do): classes that were
    never right before the last task are left out.  May be negative.

    Args:
        R: [T, C], the accuracy on class c after task t.

    >>> forgetting_by_class(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.5
    """
    if len(R) < 2:
        return NAN
    best = np.max(R[:-1], axis=0)
    if np.isnan(best).any():
        return NAN
    return mean_or_nan(best[best > 0] - R[-1][best > 0])


def forgetting_anytime(
    anytime: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """As `forgetting_from_best`, scores in the middle of tasks included.

    Args:
        anytime: [T, parts, G], the scores after every part of every task.
        learnt: int [G], the task that teaches a group, -1 for none; by default group g's is g.
        lower_is_better: whether less is better, as of a perplexity.

    >>> forgetting_anytime(np.array([[[0.5, 0.0], [1.0, 0.0]], [[0.75, 0.5], [0.5, 1.0]]]))
    0.5
    """
    if anytime.ndim != 3:
        raise ValueError(f"anytime: found shape {anytime.shape}, expected [tasks, parts, groups]")
    tasks, parts, groups = anytime.shape
    learnt = teachers(anytime[:, -1], learnt)
    rows, _, _ = signed(anytime.reshape(tasks * parts, groups), learnt, lower_is_better)
    early = np.flatnonzero((learnt >= 0) & (learnt < tasks - 1))
    return mean_or_nan([best_score(rows, g, learnt[g] * parts) - rows[-1, g] for g in early])
