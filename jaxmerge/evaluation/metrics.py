"""Figures from the accuracy matrix ``R[t, i]``: accuracy on task i after task t (0-based, T x T).

==================  ==========================================================================
accuracy            mean_i R[T-1, i]
over time           after task t: mean_{i <= t} R[t, i]; as one figure its mean over t
BWT                 mean_{i < T-1} (R[T-1, i] - R[i, i])                  backward transfer
FWT                 mean_{i > 0} (R[i-1, i] - zero_shot[i])               forward transfer
forgetting          mean_{i < T-1} (max_{t < T-1} R[t, i] - R[T-1, i]), over t from i on
per class           mean over classes of the share of their examples that is right, at the end
normalised          mean_i A[T-1, i] / individual[i], A task-aware as individual[i] is
==================  ==========================================================================

Each is given task-agnostic (all classes to choose from); ``aware`` is the accuracy with the classes
of the example's own task only, and the normalised figure is task-aware as in the papers that report
it: individual[i] is the accuracy on task i of the model fine-tuned on task i alone.

Rows that were not measured are NaN; a figure that needs one is NaN.  With one task BWT, FWT and
forgetting do not exist and are NaN.

Source: Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017, section 2 (accuracy, BWT,
FWT; their b is a random initialisation, ours the pretrained model); Chaudhry et al., Riemannian
Walk for Incremental Learning, ECCV 2018, section 3 (forgetting); Ilharco et al., Editing Models
with Task Arithmetic, ICLR 2023, section 4 (normalised accuracy).
"""

from __future__ import annotations

import numpy as np


def average_accuracy(R: np.ndarray) -> float:
    """Mean of the last row.

    >>> average_accuracy(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.75
    """
    return float(np.mean(R[-1]))


def over_time(R: np.ndarray) -> np.ndarray:
    """[T]: after each task the mean accuracy on the tasks seen so far.

    >>> over_time(np.array([[1.0, 0.0], [0.5, 1.0]])).tolist()
    [1.0, 0.75]
    """
    return np.array([np.mean(R[t, : t + 1]) for t in range(len(R))])


def backward_transfer(R: np.ndarray) -> float:
    """What later tasks did to earlier ones, negative when they harmed.

    >>> backward_transfer(np.array([[1.0, 0.0], [0.5, 1.0]]))
    -0.5
    """
    if len(R) < 2:
        return float("nan")
    return float(np.mean(R[-1, :-1] - np.diag(R)[:-1]))


def forward_transfer(R: np.ndarray, zero_shot: np.ndarray) -> float:
    """What earlier tasks did to tasks not yet learnt, against the pretrained model.

    >>> forward_transfer(np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([0.5, 0.25]))
    0.25
    """
    if len(R) < 2:
        return float("nan")
    return float(np.mean([R[i - 1, i] - zero_shot[i] for i in range(1, len(R))]))


def forgetting(R: np.ndarray) -> float:
    """How far each task fell from its best accuracy.

    >>> forgetting(np.array([[1.0, 0.0], [0.5, 1.0]]))
    0.5
    """
    if len(R) < 2:
        return float("nan")
    return float(np.mean([np.max(R[i:-1, i]) - R[-1, i] for i in range(len(R) - 1)]))


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


def summary(
    R: np.ndarray,
    aware: np.ndarray,
    zero_shot: np.ndarray,
    classes: float = float("nan"),
    individual: np.ndarray | None = None,
) -> dict[str, float]:
    """All figures of one method, by the names in results.json.

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
        "normalised": float("nan") if individual is None else normalised(aware, individual),
    }
