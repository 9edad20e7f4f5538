"""What the settings of a stream and of a merge stand for: a `Plan` and a `Deploy`.

The settings are those that `jaxmerge.studies.config` lists; what cannot be built is refused before
anything is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from jaxmerge.continual.deploys import LAST, Deploy, running_merge
from jaxmerge.continual.parts import together
from jaxmerge.continual.registry import problems
from jaxmerge.continual.schedule import STARTS
from jaxmerge.data.streams.scenario import Task
from jaxmerge.errors import closest
from jaxmerge.evaluation.predict import evaluators_of
from jaxmerge.studies.finetuned import Finetuned
from jaxmerge.studies.seed import Plan
from jaxmerge.studies.settings import built, methods_of, only
from jaxmerge.training.how import OF_ADAMW, Training, beside_optimiser

if TYPE_CHECKING:
    from jaxmerge.studies.config import Experiment

STREAM = (
    "start", "deploys", "running", "methods", "strategy", "settings", "problem", "training",
    "models", "vectors",
)  # fmt: skip
KINDS = (
    ("deploys", list | tuple, "a list of labels"),
    ("settings", Mapping, "a mapping of key: value pairs"),
    ("vectors", bool, "true or false"),
)


def plan_of(
    experiment: Experiment, merges: Mapping[str, Deploy], name: str, options: Mapping[str, Any]
) -> Plan:
    """A stream as the loop runs it.

    Args:
        experiment: whose settings hold where the stream has none of its own.
        merges: label -> what may be deployed.
        name: of the stream.
        options: its settings.

    Raises:
        ValueError: settings that cannot be built, or that contradict each other.
    """
    only(options, STREAM, "a stream has")
    start = options.get("start", "last")
    if start not in STARTS:
        raise ValueError(f"no start is named {start!r}: {closest(str(start), STARTS)}")
    for key, kind, what in KINDS:
        if key in options and not isinstance(options[key], kind):
            raise ValueError(f"{key} is {what}, got {options[key]!r}.")
    labels, known = options.get("deploys", [LAST.label]), {LAST.label: LAST, **merges}
    for label in labels:
        if label not in known:
            raise ValueError(f"no merge is named {label!r}: {closest(str(label), known)}")
    if not labels:
        raise ValueError(f"nothing is deployed; {closest('', known)}")
    deploys = tuple(known[label] for label in labels)
    running_merge(STARTS[start], deploys, options.get("running"))
    added = methods_of(options)
    if options.get("models") and (start != "base" or added):
        raise ValueError("models at hand are those of plain fine-tuning from start: base.")
    together(added)
    problem = options.get("problem")
    problem = experiment.problem_spec() if problem is None else problems.from_settings(problem)
    evaluators_of(problem.build(), 2)
    changes = options.get("training", {})
    only(changes, [f.name for f in dataclasses.fields(Training)], "training has")
    how = _how(experiment, changes) if changes else experiment.how
    return Plan(
        name=name,
        start=STARTS[start],
        deploys=deploys,
        running=options.get("running"),
        methods=added,
        training=how,
        models=Finetuned(options["models"], experiment.read) if options.get("models") else None,
        vectors=options.get("vectors", False),
        problem=problem,
    )


def _how(experiment: Experiment, changes: Mapping[str, Any]) -> Callable[..., Training]:
    """How the tasks of a stream are trained that differs from the others."""
    changes = dict(changes)
    optimiser = changes.pop("optimiser", experiment.optimiser)
    beside = [n for n in OF_ADAMW if n in changes]
    if optimiser is not None and beside:
        raise ValueError(f"training: {beside_optimiser(optimiser, beside)}.")
    plain = experiment
    if experiment.optimiser is not None:
        plain = dataclasses.replace(experiment, optimiser=None)

    def how(task: Task | None = None) -> Training:
        return dataclasses.replace(plain.how(task).under(optimiser), **changes)

    how()  # a wrong value is found before anything is trained
    return how


def deploy_of(label: str, options: Mapping[str, Any]) -> Deploy:
    """A merge as it is deployed, with the factors that are tried.

    Args:
        label: of its rows.
        options: its settings.

    Raises:
        ValueError: settings of no merge; every factor is tried here.

    >>> deploy_of("MagMax", {"method": "magmax", "factor": [0.3, 0.5]}).factors
    (0.3, 0.5)
    """
    options = dict(options)
    factor, always = options.pop("factor", None), options.pop("always", True)
    each_factor, beyond = options.pop("each", False), options.pop("beyond", 0)
    method = partial(built, options.pop("method", None), options)
    factors = () if factor is None else tuple(factor) if isinstance(factor, list) else (factor,)
    if factors == () and factor is not None:
        raise ValueError("the list of factors is empty; leave it out, or give some.")
    for key, value in (("always", always), ("each", each_factor)):
        if not isinstance(value, bool):
            raise ValueError(f"{key} is true or false, got {value!r}.")
    deploy = Deploy(label, method, factors, always, each_factor, beyond)
    for one in factors or (None,):  # what is wrong is found before anything is trained
        deploy.merge(one)
    return deploy
