"""One seed of a study: every merge on sequential and on independent fine-tunes, and the two ends
of the scale, the zero-shot model and joint fine-tuning.

The rows of MagMax's tables, for any scenario and any learner.  A study is made of units (a task of
a stream, the joint run); with a `store` each finished unit is on disk, and a study that was killed
goes on after the last one with the same figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from jaxmerge.continual import checkpoint, metrics, schedule, vectors
from jaxmerge.continual.learner import Learner
from jaxmerge.continual.loop import Deploy, Outcome, Stream
from jaxmerge.continual.results import Entry, SeedRun, Sweep, Task
from jaxmerge.continual.scenario import Scenario
from jaxmerge.continual.strategy import Strategy, finetune
from jaxmerge.continual.train import Training, fit
from jaxmerge.core import Leaves

Watch = Callable[[str, str, int, float | None], None]  # stream, phase, steps, loss


def run_seed(
    scenario: Scenario,
    learner: Learner,
    deploys: tuple[Deploy, ...],
    *,
    seed: int,
    training: Training,
    strategy: Strategy = finetune,
    joint: bool = True,
    store: Path | None = None,
    batch: int = 128,
    watch: Watch | None = None,
) -> tuple[SeedRun, dict[tuple[str, str], Leaves]]:
    """Fine-tune sequentially and independently, merge, train jointly, evaluate.

    Returns:
        The figures, and the merged models at the end by (label, fine-tunes).
    """
    watch = watch or (lambda stream, phase, steps, loss: None)
    streams: dict[str, Stream] = {}
    for name, start in (("sequential", schedule.from_last), ("independent", schedule.from_base)):
        stream = Stream(
            scenario, learner, start=start, strategy=strategy, training=training, seed=seed,
            deploys=(Deploy("last model"), *deploys) if name == "sequential" else deploys,
            store=store and store / name, keep=True, batch=batch, watch=partial(watch, name),
        )  # fmt: skip
        for t in stream.tasks_left():
            # from theta_0 on the same data: the first task is one and the same training
            same = name == "independent" and t == 0 and not strategy.terms
            stream.learn(t, known=streams["sequential"].models[0] if same else None)
        streams[name] = stream
    first = streams["sequential"]
    free, aware = first.measure(learner.params, first.test)
    seconds: dict[str, float] = {}
    rows = [constant("zero-shot", "none", free, aware, free)]
    for name, stream in streams.items():
        rows += [entry(label, name, o, free) for label, o in stream.outcomes.items()]
        for phase, spent in stream.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + spent
    if joint:
        found, spent = joint_training(first, training, seed, store, partial(watch, "joint"))
        rows.append(constant("joint", "joint", *found, free))
        seconds["training"] += spent
    run = SeedRun(
        seed=seed,
        order=list(scenario.order),
        tasks=[_task(scenario, t) for t in range(len(scenario))],
        entries=rows,
        vectors=[vectors.describe(learner.params, s.models, name) for name, s in streams.items()],
        seconds=seconds,
    )
    merged = {(d, name): p for name, s in streams.items() for d, p in s.deployed.items()}
    return run, merged


def steps_of(scenario: Scenario, training: Training, joint: bool = True) -> int:
    """How many training steps `run_seed` takes."""
    each = [training.steps(len(task.rows["train"])) for task in scenario]
    together = training.steps(sum(len(task.rows["train"]) for task in scenario))
    return 2 * sum(each) - each[0] + joint * together


def joint_training(
    stream: Stream, training: Training, seed: int, store: Path | None, watch: Callable
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """All tasks at once: accuracies (task-agnostic, task-aware) and the seconds of training."""
    path = store and store / "joint.safetensors"
    if path and path.exists():
        _, record = checkpoint.load(path)
        return (np.array(record["free"]), np.array(record["aware"])), record["seconds"]
    began = time.perf_counter()
    learner, scenario = stream.learner, stream.scenario
    data = scenario.split("train", learner.prepare)
    own = np.any([scenario.mask(t) for t in range(len(scenario))], axis=0)
    model, _ = fit(
        learner, learner.params, data.inputs, data.columns, own, training,
        seed=(seed, len(scenario)), watch=lambda steps, loss: watch("training", steps, loss),
    )  # fmt: skip
    spent = time.perf_counter() - began
    free, aware = stream.measure(model, stream.test)
    if path:
        record = {"free": free.tolist(), "aware": aware.tolist(), "seconds": spent}
        checkpoint.save(path, model, record)
    return (free, aware), spent


def entry(label: str, finetunes: str, outcome: Outcome, zero_shot: np.ndarray) -> Entry:
    """One row of the results from what a deployment gave."""
    R, aware = np.array(outcome.matrix, float), np.array(outcome.aware, float)
    return Entry(
        label=label,
        finetunes=finetunes,
        method=outcome.method,
        matrix=_none(R),
        aware=_none(aware),
        over_time=_none(metrics.over_time(R)),
        metrics={k: _none(v) for k, v in metrics.summary(R, aware, zero_shot).items()},
        sweep=Sweep(**outcome.sweep) if outcome.sweep else None,
        factors=outcome.factors if outcome.method else None,
    )


def constant(
    label: str, finetunes: str, free: np.ndarray, aware: np.ndarray, zero_shot: np.ndarray
) -> Entry:
    """A row of a method that does not learn task after task: every row of R is the same."""
    repeat = lambda row: np.tile(row, (len(row), 1)).tolist()
    found = entry(label, finetunes, Outcome(repeat(free), repeat(aware), []), zero_shot)
    kept = ("accuracy", "aware", "over_time")
    found.metrics = {k: v if k in kept else None for k, v in found.metrics.items()}
    return found


def _none(x):
    """NaN as None, arrays as lists."""
    if isinstance(x, np.ndarray):
        return [_none(v) for v in x]
    return None if np.isnan(x) else float(x)


def _task(scenario: Scenario, t: int) -> Task:
    task = scenario[t]
    sizes = {split: len(rows) for split, rows in task.rows.items()}
    return Task(task.name, [task.source.classes[c] for c in task.classes], **sizes)
