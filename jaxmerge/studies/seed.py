"""One seed of a study: several streams over the same tasks, every merge on each of them, and the
two ends of the scale, the zero-shot model and joint fine-tuning.

The rows of a paper's table, for any scenario and any learner: a `Plan` says how one stream learns
and what is made of its models.  A study is made of units (a task of a stream, the joint run); with
a `store` each finished unit is on disk, and a study that was killed goes on after the last one with
the same figures.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.continual import schedule
from jaxmerge.continual.deploys import LAST, Deploy
from jaxmerge.continual.schedule import Start
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Leaves
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.evaluation import metrics
from jaxmerge.evaluation.predict import Probe, probe
from jaxmerge.studies import vectors
from jaxmerge.studies.conversion import from_plain
from jaxmerge.studies.finetuned import Finetuned
from jaxmerge.studies.loop import Stream
from jaxmerge.studies.outcomes import Measured, Outcome, measure
from jaxmerge.studies.results import Entry, SeedRun, Sweep, Task
from jaxmerge.training import checkpoint
from jaxmerge.training.fit import OWN, fit
from jaxmerge.training.how import Training
from jaxmerge.training.mid_task import EVERY, Halfway
from jaxmerge.training.model_learner import AnyLearner

Watch = Callable[[str, str, int, float], None]  # stream, phase, steps, loss; see `Stream`
BASELINES = ("zero-shot", "joint")


class Plan(NamedTuple):
    """One stream of a study.

    Attributes:
        name: of its rows in tables ("sequential").
        start: where the training of each task starts.
        deploys: what is deployed.
        running: label of the merge that `schedule.from_running` reads.
        methods: specs of what is added to plain fine-tuning, in order.
        problem: spec of what is learnt.
        training: ``task -> Training``; None stands for all tasks at once.
        models: fine-tuned models at hand, or None; what is not there is trained and kept there.
        vectors: describe the task vectors; keeps all models (T x the model, on disk too).
    """

    name: str
    start: Start = schedule.from_last
    deploys: tuple[Deploy, ...] = (LAST,)
    running: str | None = None
    methods: tuple[Spec, ...] = ()
    training: Callable[..., Training] = lambda task=None: Training()
    models: Finetuned | None = None
    vectors: bool = False
    problem: Spec = OWN


def run_seed(
    scenario: Scenario,
    learner: AnyLearner,
    plans: Sequence[Plan],
    *,
    seed: int,
    how: Callable[..., Training] = lambda task=None: Training(),
    problem: Spec = OWN,
    baselines: Sequence[str] = BASELINES,
    store: Path | None = None,
    every: float = EVERY,
    batch: int = 128,
    watch: Watch | None = None,
    keep: Collection[tuple[str, str]] | None = None,
) -> tuple[SeedRun, dict[tuple[str, str], Leaves]]:
    """Learn every stream, merge, train jointly, evaluate.

    Args:
        scenario: the tasks.
        learner: the model under the head of the scenario.
        plans: the streams.
        seed: of all draws.
        batch: examples evaluated at once.
        how: how joint fine-tuning is trained.
        problem: what joint fine-tuning learns, and measures as the zero-shot model is measured.
        baselines: of "zero-shot" and "joint".
        store: folder for checkpoints, or None.
        every: seconds between checkpoints within a task.
        watch: for progress, called as that of `Stream` with the stream's name in front.
        keep: which merged models are given back, of `merges_of`; None: all.

    Returns:
        The figures, and the merged models at the end by (label, stream).

    Memory: the folds of one stream (with a `store` one of them), some four models more, and what is
    given back.

    >>> from jaxmerge.data.sources import Source
    >>> from jaxmerge.data.streams.scenario import class_incremental
    >>> from jaxmerge.training.learner import Learner
    >>> x = np.repeat(np.eye(2, dtype=np.float32), 6, axis=0)
    >>> splits = {"train": [0, 1, 2, 6, 7, 8], "val": [3, 9], "test": [4, 5, 10, 11]}
    >>> pets = Source("pets", x, [0] * 6 + [1] * 6, ("cat", "dog"), ("a {}.",), splits)
    >>> features = lambda params, x: x * params["w"]
    >>> learner = Learner({"w": np.ones(2, np.float32)}, features, np.asarray, np.eye(2), 10.0)
    >>> run, _ = run_seed(class_incremental(pets, 2), learner, (), seed=0, baselines=("zero-shot",))
    >>> run.entries[0].label, run.entries[0].metrics["accuracy"]
    ('zero-shot', 1.0)
    """
    watch = watch or (lambda stream, phase, steps, loss: None)
    val, test = (probe(learner, scenario, split, batch) for split in ("val", "test"))
    zero = measure(learner, learner.params, test, problem)
    outcomes: dict[str, dict[str, Outcome]] = {}
    seconds: dict[str, float] = {}
    spent_by: dict[str, dict[str, float]] = {}
    described, merged = [], {}
    donors = _donors(scenario, plans)
    first: dict[str, Leaves] = {}  # models of the first task that other streams need
    for plan in plans:
        stream = Stream(
            scenario, learner, start=plan.start, methods=plan.methods, problem=plan.problem,
            training=plan.training, seed=seed, deploys=plan.deploys, running=plan.running,
            probes=(val, test),
            store=store and store / plan.name, every=every, watch=partial(watch, plan.name),
            keep=plan.vectors or int(plan.name in donors.values()),
        )  # fmt: skip
        given = [row for row in merges_of([plan]) if keep is None or row in keep]
        for t in stream.tasks_left():
            task, models = scenario[t].name, plan.models
            known = None if models is None else models.get(task, learner.params)
            if known is None and t == 0 and plan.name in donors:
                known = first.get(donors[plan.name])
            stream.learn(t, known=known, whole=models is not None and models.whole)
            if models is not None and known is None:
                models.keep(task, stream.last)
        if plan.name in donors.values():
            first[plan.name] = stream.models[0]
        outcomes[plan.name] = stream.outcomes
        merged |= {row: stream.deployed[row[0]] for row in given}
        if plan.vectors:
            described.append(vectors.describe(learner.params, stream.models, plan.name))
        spent_by[plan.name] = stream.seconds
        for phase, spent in stream.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
        del stream  # its folds go before those of the next one come
    alone = individual(plans, outcomes)
    rows = []
    if "zero-shot" in baselines:
        rows.append(constant("zero-shot", "none", zero, zero.free, alone))
    for name, deploys in outcomes.items():
        rows += [entry(label, name, o, zero.free, alone) for label, o in deploys.items()]
    if "joint" in baselines:
        joint, spent = joint_training(
            scenario, learner, test, how(), seed, store, partial(watch, "joint"), every, problem
        )
        rows.append(constant("joint", "joint", joint, zero.free, alone))
        spent_by["joint"] = {"training": spent}
        seconds["training"] = seconds.get("training", 0.0) + spent
    run = SeedRun(
        seed=seed,
        order=list(scenario.order),
        tasks=[_task(scenario, t) for t in range(len(scenario))],
        entries=rows,
        vectors=described,
        seconds=seconds,
        streams=spent_by,
    )
    return run, merged


def merges_of(plans: Sequence[Plan]) -> list[tuple[str, str]]:
    """(label, stream) of every merge that `run_seed` can give back."""
    single = lambda d: not d.last and (not d.each or len(d.factors) < 2)
    return [(d.label, plan.name) for plan in plans for d in plan.deploys if single(d)]


def steps_of(
    scenario: Scenario,
    plans: Sequence[Plan],
    how: Callable[..., Training],
    baselines: Sequence[str] = BASELINES,
) -> int:
    """How many training steps `run_seed` takes."""
    donors = _donors(scenario, plans)
    sizes = [len(task.rows["train"]) for task in scenario]
    steps = how().steps(sum(sizes)) if "joint" in baselines else 0
    for plan in plans:
        per_task = [plan.training(k).steps(n) for k, n in zip(scenario, sizes, strict=True)]
        steps += sum(per_task[1:] if plan.name in donors else per_task)
    return steps


def _donors(scenario: Scenario, plans: Sequence[Plan]) -> dict[str, str]:
    """Stream -> an earlier one whose model of the first task is the same.

    Every stream starts from theta_0; plain fine-tuning on one problem with equal training gives
    one and the same model.
    """
    seen: dict[Any, str] = {}
    donors = {}
    for plan in plans:
        if plan.methods:
            continue
        key = plan.training(scenario[0]), plan.problem
        if key in seen:
            donors[plan.name] = seen[key]
        else:
            seen[key] = plan.name
    return donors


def individual(plans: Sequence[Plan], outcomes: dict[str, dict[str, Outcome]]) -> np.ndarray | None:
    """[T], task-aware accuracy on each task of the model fine-tuned on it alone.

    Measured where plain fine-tuning starts from theta_0 and deploys its last model.
    """
    for plan in plans:
        if plan.start is schedule.from_base and not plan.methods and LAST in plan.deploys:
            return np.diag(np.array(outcomes[plan.name][LAST.label].aware, float))
    return None


@dataclasses.dataclass
class Joint:
    """What is kept of joint training: accuracies by task, their mean over classes, seconds."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012
    free: list[float]
    aware: list[float]
    per_class: float
    seconds: float


def joint_training(
    scenario: Scenario, learner: AnyLearner, test: Probe, training: Training, seed: int,
    store: Path | None, watch: Callable, every: float = EVERY, problem: Spec = OWN,
) -> tuple[Measured, float]:  # fmt: skip
    """All tasks at once: accuracies, and the seconds of training."""
    path = store and store / "joint.safetensors"
    if path and path.exists():
        joint = from_plain(Joint, checkpoint.load(path)[1], str(path))
        if {len(joint.free), len(joint.aware)} != {len(scenario)}:
            raise ValueError(f"{path} is of other tasks; delete it to begin again.")
        return Measured(np.array(joint.free), np.array(joint.aware), joint.per_class), joint.seconds
    began = time.perf_counter()
    halfway = store and Halfway(store / "training_joint", every)
    data = scenario.split("train", learner.prepare)
    masks = np.stack([scenario.mask(t) for t in range(len(scenario))])
    own = np.broadcast_to(masks.any(axis=0), masks.shape)  # in the form of a stream's tasks
    model, _ = fit(
        learner, learner.params, data.inputs, data.columns, own, training,
        problem=problem, seed=(seed, len(scenario)), halfway=halfway,
        watch=lambda steps, loss: watch("training", steps, loss),
    )  # fmt: skip
    spent = time.perf_counter() - began + (halfway.before if halfway else 0)
    measured = measure(learner, model, test, problem)
    if path:
        joint = Joint(measured.free.tolist(), measured.aware.tolist(), measured.per_class, spent)
        checkpoint.save(path, model, dataclasses.asdict(joint))
    if halfway:
        halfway.clear()
    return measured, spent


def entry(
    label: str,
    finetunes: str,
    outcome: Outcome,
    zero_shot: np.ndarray,
    alone: np.ndarray | None = None,
) -> Entry:
    """One row of the results from what a deployment gave; `alone` is `individual`."""
    R, aware = np.array(outcome.matrix, float), np.array(outcome.aware, float)
    classes = float("nan") if outcome.per_class is None else outcome.per_class
    summary = metrics.summary(R, aware, zero_shot, classes, alone)
    return Entry(
        label=label,
        finetunes=finetunes,
        method=outcome.method,
        matrix=_none(R),
        aware=_none(aware),
        over_time=_none(metrics.over_time(R)),
        metrics={k: _none(v) for k, v in summary.items()},
        sweep=Sweep(**outcome.sweep) if outcome.sweep else None,
        factors=outcome.factors if outcome.method else None,
        fixed=outcome.fixed,
    )


def constant(
    label: str,
    finetunes: str,
    measured: Measured,
    zero_shot: np.ndarray,
    alone: np.ndarray | None = None,
) -> Entry:
    """A row of a method that does not learn task after task: every row of R is the same."""
    repeat = lambda row: np.tile(row, (len(row), 1)).tolist()
    rows = Outcome(repeat(measured.free), repeat(measured.aware), [], per_class=measured.per_class)
    result = entry(label, finetunes, rows, zero_shot, alone)
    defined = ("accuracy", "aware", "over_time", "per_class", "normalised")
    result.metrics = {k: v if k in defined else None for k, v in result.metrics.items()}
    return result


def _none(x: Any) -> Any:
    """NaN as None, arrays as lists."""
    if isinstance(x, np.ndarray):
        return [_none(v) for v in x]
    return None if np.isnan(x) else float(x)


def _task(scenario: Scenario, t: int) -> Task:
    task = scenario[t]
    sizes = {split: len(rows) for split, rows in task.rows.items()}
    return Task(task.name, [task.source.classes[c] for c in task.classes], **sizes)
