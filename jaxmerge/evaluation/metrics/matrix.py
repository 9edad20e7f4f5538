"""The matrix ``R[t, g]`` made ready: which task teaches each group, which direction is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NAN = float("nan")


def teachers(R: np.ndarray, learnt: np.ndarray | None) -> np.ndarray:
    """[G]: the task that teaches each group, by default group g in task g.

    Raises:
        ValueError: `R` is no matrix, or `learnt` does not fit it.
    """
    if R.ndim != 2:
        raise ValueError(f"R: found shape {R.shape}, expected [tasks, groups]")
    if learnt is None:
        if R.shape[0] != R.shape[1]:
            raise ValueError(
                f"R: {R.shape[1]} groups after {R.shape[0]} tasks; where groups are not the tasks,"
                " `learnt` says which task teaches each (-1: none)"
            )
        return np.arange(R.shape[1])
    learnt = np.asarray(learnt)
    if learnt.shape != (R.shape[1],) or learnt.max(initial=-1) >= len(R):
        raise ValueError(
            f"learnt: found {learnt.tolist()}, expected one task below {len(R)} for each of the"
            f" {R.shape[1]} groups"
        )
    return learnt


def scored(R: np.ndarray, learnt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows with a score and the last one, and `learnt` as the first of them since a task.

    >>> R = np.array([[NAN, NAN, NAN], [0.5, 0.75, 0.25], [0.5, 0.75, 1.0]])
    >>> rows, learnt = scored(R, np.array([0, 1, 2]))
    >>> rows.shape, learnt.tolist()
    ((2, 3), [0, 0, 1])
    """
    missing = np.isnan(R.reshape(len(R), -1)).all(axis=1)
    # the last one stays: without its score a figure of the end is missing, not that of another task
    rows = np.flatnonzero(~missing | (np.arange(len(R)) == len(R) - 1))
    return R[rows], np.where(learnt < 0, -1, np.searchsorted(rows, learnt))


def signed(
    R: np.ndarray, learnt: np.ndarray | None, lower_is_better: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R so that more is better, `learnt`, and the groups learnt before the last task."""
    learnt = teachers(R, learnt)
    early = np.flatnonzero((learnt >= 0) & (learnt < len(R) - 1))
    return (-R if lower_is_better else R), learnt, early


def best_score(R: np.ndarray, g: int | np.integer, first: int | np.integer) -> float:
    """The best score of a group; those from `first` on must be there, earlier ones may be."""
    since = np.max(R[first:, g])
    before = R[:first, g]
    before = before[~np.isnan(before)]
    return float(np.max(before, initial=since)) if not np.isnan(since) else NAN


def mean_or_nan(values: Sequence[float] | np.ndarray) -> float:
    """The mean; NaN of nothing."""
    return float(np.mean(values)) if len(values) else NAN
