"""Transfer: what later tasks did to earlier ones, and earlier tasks to later ones."""

from __future__ import annotations

import numpy as np

from jaxmerge.evaluation.metrics.matrix import mean_or_nan, signed, teachers


def backward_transfer(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """What later tasks did to groups learnt earlier, negative when they harmed.

    Args:
        R: [T, G], the score on group g after task t; NaN where it is missing.
        learnt: int [G], the task that teaches a group, -1 for none; by default group g's is g.
        lower_is_better: whether less is better, as of a perplexity.

    >>> backward_transfer(np.array([[1.0, 0.0], [0.5, 1.0]]))
    -0.5
    """
    R, learnt, early = signed(R, learnt, lower_is_better)
    return mean_or_nan([R[-1, g] - R[learnt[g], g] for g in early])


def positive_backward_transfer(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """BWT+: how much later tasks helped, over every later task end; 0 where they harmed.

    Args:
        R: [T, G], the score on group g after task t; NaN where it is missing.
        learnt: int [G], the task that teaches a group, -1 for none; by default group g's is g.
        lower_is_better: whether less is better, as of a perplexity.

    >>> positive_backward_transfer(np.array([[0.5, 0.0], [0.75, 1.0]]))
    0.25
    """
    R, learnt, early = signed(R, learnt, lower_is_better)
    change = mean_or_nan(
        [R[t, g] - R[learnt[g], g] for g in early for t in range(learnt[g] + 1, len(R))]
    )
    return change if np.isnan(change) else max(0.0, change)


def forward_transfer(
    R: np.ndarray, untrained: np.ndarray, learnt: np.ndarray | None = None,
    lower_is_better: bool = False,
) -> float:  # fmt: skip
    """What earlier tasks did to groups not yet learnt, against the model before any task.

    Args:
        R: [T, G], the score on group g after task t; NaN where it is missing.
        untrained: [G], the scores of the model before the first task.
        learnt: int [G], the task that teaches a group, -1 for none; by default group g's is g.
        lower_is_better: whether less is better, as of a perplexity.

    >>> forward_transfer(np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([0.5, 0.25]))
    0.25
    """
    R, learnt, _ = signed(R, learnt, lower_is_better)
    sign = -1 if lower_is_better else 1
    later = np.flatnonzero(learnt > 0)
    return mean_or_nan([R[learnt[g] - 1, g] - sign * untrained[g] for g in later])


def plain_forward_transfer(R: np.ndarray, learnt: np.ndarray | None = None) -> float:
    """The mean score on groups before they are learnt, nothing subtracted.

    Args:
        R: [T, G], the score on group g after task t; NaN where it is missing.
        learnt: int [G], the task that teaches a group, -1 for none; by default group g's is g.

    >>> plain_forward_transfer(np.array([[1.0, 0.5], [0.5, 1.0]]))
    0.5
    """
    learnt = teachers(R, learnt)
    return mean_or_nan([R[t, g] for g in range(R.shape[1]) for t in range(learnt[g])])
