"""What the loop measures: the figures of every deployment, and the accuracies of one model."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxmerge.continual.parts import build
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Leaves
from jaxmerge.evaluation.metrics import over_time, per_class
from jaxmerge.evaluation.predict import Probe, accuracies, evaluators_of, outputs_of
from jaxmerge.training.fit import OWN, setup_of
from jaxmerge.training.how import Training
from jaxmerge.training.model_learner import AnyLearner


@dataclasses.dataclass
class Outcome:
    """What one deployment gave; JSON-able.

    Attributes:
        matrix, aware: R[t][i] task-agnostic and task-aware, None in rows that were not measured.
        factors: the factor in use after each task.
        sweep: validation accuracy of every factor at the last merge, or None.
        method: the last merge as jaxmerge prints it.
        per_class: accuracy as a mean over classes, when last measured.
        fixed: the factor, where each factor of a deployment is an outcome of its own.
    """

    matrix: list[list[float | None]]
    aware: list[list[float | None]]
    factors: list[float | None]
    sweep: dict | None = None
    method: str = ""
    per_class: float | None = None
    fixed: float | None = None


class Measured(NamedTuple):
    """Accuracy on every task, task-agnostic and task-aware, each [T], and the mean over classes."""

    free: np.ndarray
    aware: np.ndarray
    per_class: float


def measure(learner: AnyLearner, params: Leaves, data: Probe, problem: Spec = OWN) -> Measured:
    """The accuracies of one model, all of whose tasks are learnt."""
    tasks = len(data.own)
    setup = setup_of(learner, Training(), problem=problem)
    parts = build(setup, tasks)
    outputs, given = outputs_of(learner, setup, parts, [params], data, tasks - 1)
    columns = outputs.shape[-1]
    free, aware = accuracies(outputs, data, given, evaluators_of(parts.problem, columns))
    return Measured(
        free[0], aware[0], per_class(outputs[0].argmax(-1) == data.columns, data.columns)
    )


def accuracy_over_time(outcome: Outcome) -> list[float | None]:
    """After each task the mean accuracy on the tasks seen so far, None where not measured."""
    rows = np.array(outcome.matrix, float)
    return [None if np.isnan(x) else float(x) for x in over_time(rows)]
