"""Figures from the matrix ``R[t, g]``: the score on group g after task t (0-based).

A group is what is evaluated on its own: the test examples of a task, a class, a domain.  Each is
learnt in a task, ``learnt[g]``; by default group g in task g.

====================  =========================================================================
final                 mean_g R[T-1, g]
over time             after task t the mean of R[t, g] over the groups learnt so far; as one figure
                      its mean over t ("average incremental accuracy")
A_AUC                 the plain mean of a series that was scored at regular marks during training
backward transfer     mean over groups learnt before T-1 of R[T-1, g] - R[learnt, g]
  positive (BWT+)     max(0, mean over all t > learnt[g] of R[t, g] - R[learnt, g])
forward transfer      mean over groups learnt after 0 of R[learnt - 1, g] - untrained[g]
  plain               mean over all t < learnt[g] of R[t, g]
normalised            mean_g A[T-1, g] / individual[g], A task-aware as individual[g] is
per class             mean over the classes that occur of the share of their examples that is right
====================  =========================================================================

Forgetting is what a group lost from its best score to the last; the literature has five meanings
of it, so each has a name of its own:

======================  =======================================================================
forgetting              best over the task ends from learnt[g] to T-2; mean over groups learnt
                        before T-1; may be negative (Chaudhry et al. 2018)
forgetting_from_best    best over **all** task ends, the last one too, so never negative; mean over
                        groups learnt before T-1 (mammoth)
forgetting_all_tasks    as that, the mean over **all** groups; the last has lost nothing (OnPro and
                        the code of other online papers)
forgetting_by_class     groups are classes: best over the task ends before the last; mean over the
                        classes that were ever right before, may be negative (CLIB's F_last)
forgetting_anytime      best over all scores before the last, those in the middle of a task too;
                        mean over groups learnt before T-1 (PRD)
======================  =======================================================================

**Direction.** Where less is better (a perplexity), give ``lower_is_better=True``: best is then the
least, and forgetting is a rise, so that it is still less is better, as transfer is still more.

**Missing scores** are NaN.  A figure that needs one is NaN; scores before a group was learnt may be
missing where a figure only looks for a best among them.  With one task backward and forward
transfer and forgetting do not exist and are NaN.

Sources: Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017, section 2 (final, backward
and forward transfer; their untrained network is drawn at random, that of a study here is the
pretrained one); Díaz-Rodríguez et al., Don't forget, there is more than forgetting, 2018
(arXiv 1810.13166), section 2 (BWT+, plain forward transfer); Chaudhry et al., Riemannian Walk,
ECCV 2018, section 3;
Rebuffi et al., iCaRL, CVPR 2017, section 4 (over time); Koh et al., CLIB, ICLR 2022, section 4
(A_AUC); Asadi et al., PRD, ICML 2023; Wei et al., OnPro, ICCV 2023; Buzzega et al., DER, NeurIPS
2020 and its mammoth; Ilharco et al., Task Arithmetic, ICLR 2023, section 4 (normalised).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

NAN = float("nan")


def average_accuracy(R: np.ndarray) -> float:
    """Mean of the last row.

    >>> average_accuracy(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.75
    """
    return float(np.mean(R[-1]))


def over_time(R: np.ndarray, learnt: np.ndarray | None = None) -> np.ndarray:
    """[T]: after each task the mean over the groups learnt so far, NaN before there is one.

    >>> over_time(np.array([[1.0, 0.0], [0.5, 1.0]])).tolist()
    [1.0, 0.75]
    """
    learnt = _learnt(R, learnt)
    seen = [(learnt >= 0) & (learnt <= t) for t in range(len(R))]
    return np.array([np.mean(row[s]) if s.any() else NAN for row, s in zip(R, seen, strict=True)])


def area_under_curve(series: np.ndarray) -> float:
    """A_AUC: the plain mean of scores at regular marks during training (no trapezoids).

    Two runs compare only where the marks are equally far apart.

    >>> area_under_curve(np.array([0.5, 0.75, 1.0]))
    0.75
    """
    return float(np.mean(series))


def backward_transfer(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """What later tasks did to groups learnt earlier, negative when they harmed.

    >>> backward_transfer(np.array([[1.0, 0.0], [0.5, 1.0]]))
    -0.5
    """
    R, learnt, early = _signed(R, learnt, lower_is_better)
    return _mean([R[-1, g] - R[learnt[g], g] for g in early])


def positive_backward_transfer(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """BWT+: how much later tasks helped, over every later task end; 0 where they harmed.

    >>> positive_backward_transfer(np.array([[0.5, 0.0], [0.75, 1.0]]))
    0.25
    """
    R, learnt, early = _signed(R, learnt, lower_is_better)
    change = _mean([R[t, g] - R[learnt[g], g] for g in early for t in range(learnt[g] + 1, len(R))])
    return change if np.isnan(change) else max(0.0, change)


def forward_transfer(
    R: np.ndarray, untrained: np.ndarray, learnt: np.ndarray | None = None,
    lower_is_better: bool = False,
) -> float:  # fmt: skip
    """What earlier tasks did to groups not yet learnt, against the model before any task.

    Args:
        untrained: [G], the scores of the model before the first task.

    >>> forward_transfer(np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([0.5, 0.25]))
    0.25
    """
    R, learnt, _ = _signed(R, learnt, lower_is_better)
    sign = -1 if lower_is_better else 1
    later = np.flatnonzero(learnt > 0)
    return _mean([R[learnt[g] - 1, g] - sign * untrained[g] for g in later])


def plain_forward_transfer(R: np.ndarray, learnt: np.ndarray | None = None) -> float:
    """The mean score on groups before they are learnt, nothing subtracted.

    >>> plain_forward_transfer(np.array([[1.0, 0.5], [0.5, 1.0]]))
    0.5
    """
    learnt = _learnt(R, learnt)
    return _mean([R[t, g] for g in range(R.shape[1]) for t in range(learnt[g])])


def forgetting(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """How far groups fell from their best since they were learnt, the last task's end left out.

    >>> forgetting(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.5
    """
    R, learnt, early = _signed(R, learnt, lower_is_better)
    return _mean([np.max(R[learnt[g] : -1, g]) - R[-1, g] for g in early])


def forgetting_from_best(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """How far groups are from the best they ever were, the last task's end included.

    >>> forgetting_from_best(np.array([[0.5, 0.0], [0.75, 1.0]])), forgetting(
    ...     np.array([[0.5, 0.0], [0.75, 1.0]])
    ... )
    (0.0, -0.25)
    """
    R, learnt, early = _signed(R, learnt, lower_is_better)
    return _mean([_best(R, g, learnt[g]) - R[-1, g] for g in early])


def forgetting_all_tasks(
    R: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """As `forgetting_from_best`, divided by all groups: the last task's count, with what they lost.

    >>> forgetting_all_tasks(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.25
    """
    R, learnt, _ = _signed(R, learnt, lower_is_better)
    if len(R) < 2:
        return NAN
    taught = np.flatnonzero(learnt >= 0)
    return _mean([_best(R, g, learnt[g]) - R[-1, g] for g in taught])


def forgetting_by_class(R: np.ndarray) -> float:
    """Groups are classes: the fall from the best earlier task end, over classes once right.

    Which task teaches a class plays no part (in a blurry stream several do): classes that were
    never right before the last task are left out.  May be negative.

    >>> forgetting_by_class(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.5
    """
    if len(R) < 2:
        return NAN
    best = np.max(R[:-1], axis=0)
    if np.isnan(best).any():
        return NAN
    return _mean(best[best > 0] - R[-1][best > 0])


def forgetting_anytime(
    anytime: np.ndarray, learnt: np.ndarray | None = None, lower_is_better: bool = False
) -> float:
    """As `forgetting_from_best`, scores in the middle of tasks included.

    Args:
        anytime: [T, parts, G], the scores after every part of every task.

    >>> forgetting_anytime(np.array([[[0.5, 0.0], [1.0, 0.0]], [[0.75, 0.5], [0.5, 1.0]]]))
    0.5
    """
    if anytime.ndim != 3:
        raise ValueError(f"anytime: found shape {anytime.shape}, expected [tasks, parts, groups]")
    tasks, parts, groups = anytime.shape
    learnt = _learnt(anytime[:, -1], learnt)
    rows, _, _ = _signed(anytime.reshape(tasks * parts, groups), learnt, lower_is_better)
    early = np.flatnonzero((learnt >= 0) & (learnt < tasks - 1))
    return _mean([_best(rows, g, learnt[g] * parts) - rows[-1, g] for g in early])


def normalised(R: np.ndarray, individual: np.ndarray) -> float:
    """Mean over tasks of the accuracy divided by that of the task's own model.

    >>> normalised(np.array([[0.5, 0.5], [0.5, 1.0]]), np.array([1.0, 1.0]))
    0.75
    """
    return float(np.mean(R[-1] / individual))


def per_class(right: np.ndarray, classes: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their examples that is right.

    >>> per_class(np.array([True, True, False]), np.array([0, 0, 7]))
    0.5
    """
    counts = np.bincount(classes)
    shares = np.bincount(classes, right) / np.maximum(counts, 1)
    return float(np.mean(shares[counts > 0]))


def by_age(right: np.ndarray, classes: np.ndarray, known: int) -> dict[str, float]:
    """Share of examples that are right: of all, of old classes (below `known`), of new ones.

    NaN where there are no such examples.  Source: SLCA's and PyCIL's `accuracy`.

    >>> by_age(np.array([True, False, True]), np.array([0, 1, 2]), 2)
    {'all': 0.6666666666666666, 'old': 0.5, 'new': 1.0}
    """
    sets = {"all": np.ones(len(classes), bool), "old": classes < known, "new": classes >= known}
    return {name: float(np.mean(right[s])) if s.any() else NAN for name, s in sets.items()}


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Mean over runs and half the width of its confidence interval (Student's t).

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
        classes: the per-class figure at the end.
        individual: task-aware accuracy on each task of the model trained on it alone.
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

    Args:
        R: metric -> [T, G], or [T, parts, G] at any time, as `Result.R` has for a deployment.
        evaluators: metric -> `Evaluator`, which says the direction.
        learnt: [G], the task that teaches a group, -1 for none; by default group g's is g.

    Returns:
        metric -> figure -> value; groups without this metric (NaN throughout) are left out.

    Raises:
        ValueError: a metric without an evaluator; a metric that no group has; groups that are not
            tasks and no `learnt`.
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
        own, less = _learnt(ends, learnt)[have], getattr(evaluators[name], "lower_is_better", False)
        ends = ends[:, have]
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
            }
        if values.ndim == 3:
            met = values[..., have]
            seen = [met[t][:, own <= t].mean(axis=1) for t in range(len(met))]
            figures[name]["a_auc"] = area_under_curve(np.concatenate(seen))
            figures[name]["forgetting_anytime"] = forgetting_anytime(met, own, less)
    return figures


def _learnt(R: np.ndarray, learnt: np.ndarray | None) -> np.ndarray:
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


def _signed(
    R: np.ndarray, learnt: np.ndarray | None, lower_is_better: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R so that more is better, `learnt`, and the groups learnt before the last task."""
    learnt = _learnt(R, learnt)
    early = np.flatnonzero((learnt >= 0) & (learnt < len(R) - 1))
    return (-R if lower_is_better else R), learnt, early


def _best(R: np.ndarray, g: int, first: int) -> float:
    """The best score of a group; those from `first` on must be there, earlier ones may be."""
    since = np.max(R[first:, g])
    before = R[:first, g]
    before = before[~np.isnan(before)]
    return float(np.max(before, initial=since)) if not np.isnan(since) else NAN


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else NAN
