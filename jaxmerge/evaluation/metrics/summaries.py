"""All figures of one method, of every metric of a stream, and their means over runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from jaxmerge.evaluation.metrics.accuracy import (
    area_under_curve,
    average_accuracy,
    normalised,
    over_time,
)
from jaxmerge.evaluation.metrics.forgetting_measures import (
    forgetting,
    forgetting_all_tasks,
    forgetting_anytime,
    forgetting_from_best,
)
from jaxmerge.evaluation.metrics.matrix import NAN, scored, teachers
from jaxmerge.evaluation.metrics.transfer import (
    backward_transfer,
    forward_transfer,
    plain_forward_transfer,
    positive_backward_transfer,
)


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Mean over runs and half the width of its confidence interval (Student's t).

    Args:
        values: [runs].
        confidence: in (0, 1).

    >>> mean, half = interval(np.array([1.0, 2.0, 3.0]))
    >>> mean, round(half, 4)
    (2.0, 2.4841)
    """
    from scipy import stats

    count = len(values)
    if count < 2:
        return float(np.mean(values)), NAN
    error = np.std(values, ddof=1) / np.sqrt(count)
    return float(np.mean(values)), float(error * stats.t.ppf((1 + confidence) / 2, count - 1))


def summary(
    R: np.ndarray,
    aware: np.ndarray,
    zero_shot: np.ndarray,
    classes: float = NAN,
    individual: np.ndarray | None = None,
) -> dict[str, float]:
    """All figures of one method, by the names in results.json (`definitions.DEFINITIONS`).

    Args:
        R: [T, T], the accuracy on task g after task t.
        aware: the same, the task given to the model.
        zero_shot: [T], the accuracy of the model before the first task.
        classes: the per-class figure at the end.
        individual: task-aware accuracy on each task of the model trained on it alone.

    >>> R = np.array([[1.0, 0.5], [0.5, 1.0]])
    >>> figures = summary(R, R, np.array([0.25, 0.25]))
    >>> figures["accuracy"], figures["bwt"], figures["fwt"]
    (0.75, -0.5, 0.25)
    """
    return {
        "accuracy": average_accuracy(R),
        "aware": average_accuracy(aware),
        "over_time": float(np.mean(over_time(R))),
        "bwt": backward_transfer(R),
        "fwt": forward_transfer(R, zero_shot),
        "forgetting": forgetting(R),
        "per_class": classes,
        "normalised": NAN if individual is None else normalised(aware, individual),
        "bwt_positive": positive_backward_transfer(R),
        "fwt_plain": plain_forward_transfer(R),
        "forgetting_from_best": forgetting_from_best(R),
        "forgetting_all_tasks": forgetting_all_tasks(R),
    }


def of_groups(
    R: Mapping[str, np.ndarray], evaluators: Mapping[str, object], learnt: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """The figures of every named metric of a stream, each in its direction.

    Where not every task end was scored (``run(..., score_every=2)``), the figures are those of the
    stream whose tasks are the stretches between two scores: rows without a score are left out, and
    a group counts as learnt at the first score since its task.  Transfer and forgetting then miss
    what happened within a stretch; ``"scored"`` says how many rows there were.

    Args:
        R: metric -> [T, G], or [T, parts, G] at any time, as `Result.R` has for a deployment.
        evaluators: metric -> `Evaluator`, which says the direction.
        learnt: [G], the task that teaches a group, -1 for none; by default group g's is g.

    Returns:
        metric -> figure -> value; groups without this metric (NaN throughout) are left out. Those
        that no task teaches count in ``"final"`` alone.

    Raises:
        ValueError: a metric without an evaluator; a metric that no group has; groups that are not
            tasks and no `learnt`.

    Example:
        >>> from jaxmerge.continual.problems import accuracy
        >>> R = {"accuracy": np.array([[1.0, 0.0], [0.5, 1.0]])}
        >>> of_groups(R, {"accuracy": accuracy().build()})["accuracy"]["forgetting"]
        0.5
    """
    from jaxmerge.errors import closest, listed

    wrong = [f"the metric {n!r} has no evaluator: {closest(n, evaluators)}" for n in R
             if n not in evaluators]  # fmt: skip
    wrong += [f"the metric {n!r} has no value in any group" for n, r in R.items()
              if np.isnan(r).all()]  # fmt: skip
    if wrong:
        raise ValueError(listed(wrong))
    figures = {}
    for name, values in R.items():
        values = np.asarray(values, float)
        have = ~np.isnan(values).all(axis=tuple(range(values.ndim - 1)))
        ends = values[:, -1] if values.ndim == 3 else values
        less = getattr(evaluators[name], "lower_is_better", False)
        met, own = scored(values[..., have], teachers(ends, learnt)[have])
        ends = met[:, -1] if met.ndim == 3 else met
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # series that are missing throughout
            figures[name] = {
                "final": average_accuracy(ends),
                "over_time": float(np.mean(over_time(ends, own))),
                "bwt": backward_transfer(ends, own, less),
                "bwt_positive": positive_backward_transfer(ends, own, less),
                "fwt_plain": plain_forward_transfer(ends, own),
                "forgetting": forgetting(ends, own, less),
                "forgetting_from_best": forgetting_from_best(ends, own, less),
                "forgetting_all_tasks": forgetting_all_tasks(ends, own, less),
                "scored": float(len(met)),
            }
        if met.ndim == 3:
            marks = np.stack([over_time(met[:, part], own) for part in range(met.shape[1])], axis=1)
            figures[name]["a_auc"] = area_under_curve(marks.ravel())
            figures[name]["forgetting_anytime"] = forgetting_anytime(met, own, less)
    return figures
