"""The loop: learn task after task, fold every model into the merges, evaluate, checkpoint.

One pass over a scenario trains one model per task and serves any number of *deployments* at once:
each is a fold over the same fine-tuned models (or the last model itself), so ten merges cost one
training.  What is remembered between tasks is constant however many tasks arrive: the last model,
the cells of the folds, the memory of the strategy.

    stream = Stream(scenario, learner, start=from_last, deploys=(Deploy("MagMax", jm.magmax, ...),))
    for t in stream.tasks_left():
        stream.learn(t)

Killed at any moment, a stream with a `store` goes on from its last checkpoint, after a task or in
the middle of one, and gives the same figures: shuffles depend on (seed, task, epoch) only.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual import schedule
from jaxmerge.continual.deploys import (
    LAST,
    Deploy,
    check_counts,
    deploy,
    merged_many,
    running_merge,
)
from jaxmerge.continual.schedule import Position, Start, from_last
from jaxmerge.continual.strategy import Strategy, finetune
from jaxmerge.core.composition import stochastic
from jaxmerge.core.types import Leaves, Merge
from jaxmerge.data.pipeline import Examples, examples
from jaxmerge.data.streams.scenario import Scenario, Task
from jaxmerge.drivers import memory
from jaxmerge.evaluation.metrics import over_time, per_class
from jaxmerge.evaluation.predict import Probe, accuracies, logits, probe, stack
from jaxmerge.training import checkpoint
from jaxmerge.training.fit import Training, fit
from jaxmerge.training.learner import Learner
from jaxmerge.training.mid_task import EVERY, Halfway


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

    matrix: list
    aware: list
    factors: list
    sweep: dict | None = None
    method: str = ""
    per_class: float | None = None
    fixed: float | None = None


class Stream:
    """One pass over a scenario; see the module's docstring.

    Args:
        scenario: the tasks.
        learner: the model.
        start: where the training of each task starts, or its name: "last", "base", "running".
        strategy: what is added to plain fine-tuning.
        training: how a task is trained, or a function of the task that says it.
        deploys: what is deployed; merges and names of methods are taken too.
        running: label of the merge that `from_running` reads; by default the first merge.
        seed: of the shuffles and of random merges.
        store: folder for checkpoints, or None.
        every: seconds between checkpoints within a task.
        keep: keep the fine-tuned models in `models` (T x the model), for statistics, or only so
            many of the first ones.
        probes: the prepared "val" and "test" examples of another stream over the same scenario.
        watch: for progress, called with ("training", steps, their loss), with (label, 0, accuracy
            on the tasks so far) for everything that is deployed, and with ("resumed", steps, loss)
            for what an earlier attempt has done.

    Raises:
        ValueError: deployments that do not fit together, or a checkpoint of another stream.
    """

    def __init__(
        self,
        scenario: Scenario,
        learner: Learner,
        *,
        start: Start | str = from_last,
        strategy: Strategy = finetune,
        training: Training | Callable[[Task], Training] = Training(),
        deploys: Sequence[Deploy | Merge | str] = (LAST,),
        running: str | None = None,
        seed: int = 0,
        store: str | Path | None = None,
        every: float = EVERY,
        keep: bool | int = False,
        probes: tuple[Probe, Probe] | None = None,
        watch: Callable[[str, int, float], None] | None = None,
        batch: int = 128,
    ):
        start = schedule.start(start)
        self.scenario, self.learner, self.start, self.strategy = scenario, learner, start, strategy
        self.training = training if callable(training) else lambda task: training
        self.deploys, self.seed = tuple(map(deploy, deploys)), seed
        self.running = running_merge(start, self.deploys, running)
        check_counts(self.deploys, len(scenario))
        self.keep = len(scenario) if keep is True else int(keep)
        self.store, self.every = None if store is None else Path(store), every
        self.watch = watch or (lambda phase, steps, loss: None)
        self.val, self.test = probes or (
            probe(learner, scenario, split, batch) for split in ("val", "test")
        )
        self.done = 0
        self.last = learner.params
        self.memory = tuple(term.start(learner) for term in strategy.terms)
        self.states = {
            d.label: memory.init(d.merge(), learner.params, key=self._key(d))
            for d in self.deploys
            if d.method is not None
        }
        nothing = lambda: [[None] * len(scenario) for _ in scenario]
        self.outcomes = {
            row: Outcome(nothing(), nothing(), [None] * len(scenario), fixed=factor)
            for d in self.deploys
            for row, factor in d.rows()
        }
        self.seconds: dict[str, float] = {}
        self.losses: list[list[float]] = []
        self.models: list[Leaves] = []
        self.deployed: dict[str, Leaves] = {}
        self._halfway: Halfway | None = None
        self._resume()
        if self.losses:
            self.watch("resumed", sum(map(len, self.losses)), self.losses[-1][-1])

    def _key(self, d: Deploy) -> Any:
        return jax.random.key(self.seed) if stochastic(d.merge()) else None

    def tasks_left(self) -> range:
        """Positions of the tasks that are not learnt yet."""
        return range(self.done, len(self.scenario))

    def run(self) -> Stream:
        """Learn all tasks that are left."""
        for t in self.tasks_left():
            self.learn(t)
        return self

    def learn(self, t: int, known: Leaves | None = None) -> None:
        """Learn task t, merge, evaluate, checkpoint.

        Args:
            known: the fine-tuned model, when the same training was done already (the first task
                is the same for sequential and independent training).
        """
        if t != self.done:
            raise ValueError(f"Task {self.done} comes next, got {t}.")
        model = self._train(t) if known is None else known
        began = time.perf_counter()
        self.last = model
        if t < self.keep:
            self.models.append({n: np.asarray(p) for n, p in model.items()})
        for d in self.deploys:
            if d.method is not None:
                self.states[d.label] = memory.update(
                    d.merge(), self.states[d.label], self.learner.params, model
                )
        self._clock("merging", began)
        for d in self.deploys:
            enough = d.method is None or t + 1 >= d.merge().models[0]
            if enough and (d.always or t == len(self.scenario) - 1):
                self._deploy(d, t)
        self.done = t + 1
        began = time.perf_counter()
        self._save(t)
        self._clock("checkpoints", began)

    def _train(self, t: int) -> Leaves:
        began = time.perf_counter()
        task = self.scenario[t]
        inputs, columns, own = self._examples(t)
        self._halfway = self.store and Halfway(self.store / f"training_{t:02d}", self.every)
        position = Position(self.learner.params, self.last, self._running)
        model, losses = fit(
            self.learner, self.start.at(position), inputs, columns, own, self.training(task),
            strategy=self.strategy, memory=self.memory, seed=(self.seed, t),
            watch=lambda steps, loss: self.watch("training", steps, loss), halfway=self._halfway,
        )  # fmt: skip
        self.memory = tuple(
            term.end(m, self.learner, model, task, (inputs, columns))
            for term, m in zip(self.strategy.terms, self.memory, strict=True)
        )
        self.losses.append(losses)
        self._clock("training", began - (self._halfway.before if self._halfway else 0))
        return model

    def _examples(self, t: int) -> tuple[np.ndarray | Examples, np.ndarray, np.ndarray]:
        """Training inputs and columns of a task, replayed ones too, and the columns in the loss."""
        parts = [(self.scenario[t], self.scenario[t].rows["train"])]
        own = self.scenario.mask(t)
        if self.strategy.replay:
            for s in range(t):
                own = own | self.scenario.mask(s)
                old = self.scenario[s]
                rng = np.random.default_rng((self.seed, s))
                for c in old.classes:
                    rows = old.rows["train"][old.source.labels[old.rows["train"]] == c]
                    parts.append((old, rng.permutation(rows)[: self.strategy.replay]))
        inputs = examples([(k.source.inputs, rows) for k, rows in parts], self.learner.prepare)
        columns = [k.offset + k.source.labels[rows] for k, rows in parts]
        return inputs, np.concatenate(columns).astype(np.int32), own

    def _running(self) -> Leaves:
        if self.running is None:
            return self.last
        outcome = self.outcomes[self.running.label]
        if outcome.matrix[self.done - 1][0] is None:
            return self.last  # before the first task, and while there are too few models to merge
        return self._merged(self.running, outcome.factors[self.done - 1])

    def _merged(self, d: Deploy, factor: float | None) -> Leaves:
        return memory.merged(d.merge(factor), self.states[d.label], self.learner.params)

    def _deploy(self, d: Deploy, t: int) -> None:
        """Merge, choose a factor if asked to, evaluate; many merged models at once."""
        began = time.perf_counter()
        rows: list[tuple[str, float | None]] = d.rows()
        sweep = None
        if len(d.factors) <= 1:
            rows = [(d.label, d.factors[0] if d.factors else None)]
            one = self.last if d.method is None else self._merged(d, rows[0][1])
            models = stack(one)
        else:
            models = merged_many(d, self.states[d.label], self.learner.params)
            if not d.each:
                sweep = self._choose(d, models, t)
                best = d.factors.index(sweep["chosen"])
                models = {n: x[best : best + 1] for n, x in models.items()}
                rows = [(d.label, sweep["chosen"])]
        self._clock("merging", began)
        began = time.perf_counter()
        found = logits(self.learner, models, self.test)
        free, aware = accuracies(found, self.test)
        columns = self.test.columns
        for k, (row, factor) in enumerate(rows):
            outcome = self.outcomes[row]
            outcome.matrix[t], outcome.aware[t] = free[k].tolist(), aware[k].tolist()
            outcome.per_class = per_class(found[k].argmax(-1) == columns, columns)
            outcome.factors[t], outcome.sweep = factor, sweep
            if d.method is not None:
                outcome.method = repr(d.merge(factor))
                if not d.each:
                    self.deployed[row] = {n: x[k] for n, x in models.items()}
            self.watch(row, 0, float(np.mean(free[k, : t + 1])))
        self._clock("evaluation", began)

    def _choose(self, d: Deploy, models: Leaves, t: int) -> dict:
        """Accuracy of every factor on the validation examples of the tasks so far."""
        seen = self.val.upto(t + 1)
        right, _ = accuracies(logits(self.learner, models, seen), seen)
        means = right[:, : t + 1].mean(axis=1)
        chosen = d.factors[int(np.argmax(means))]
        return {"factors": list(d.factors), "accuracy": means.tolist(), "chosen": chosen}

    def measure(self, params: Leaves, data: Probe) -> tuple[np.ndarray, np.ndarray]:
        """Task-agnostic and task-aware accuracy of one model on every task, each [T]."""
        return measure(self.learner, params, data)[:2]

    def _clock(self, phase: str, began: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began

    # ---------------------------------------------------------------- checkpoints

    def _tree(self) -> dict:
        cells = {label: {"step": s.step, "cells": s.cells} for label, s in self.states.items()}
        return {"last": dict(self.last), "memory": self.memory, "merges": cells}

    def _save(self, t: int) -> None:
        if self.store is None:
            return
        if t < self.keep:
            checkpoint.save(self.store / f"task_{t:02d}.safetensors", self.models[t])
        record = {
            "done": self.done,
            "tasks": [task.name for task in self.scenario],
            "outcomes": {k: dataclasses.asdict(o) for k, o in self.outcomes.items()},
            "seconds": self.seconds,
            "losses": self.losses,
        }
        checkpoint.save(self.store / "state.safetensors", self._tree(), record)
        if self._halfway is not None:
            self._halfway.clear()

    def _resume(self) -> None:
        if self.store is None or not (self.store / "state.safetensors").exists():
            return
        tree, record = checkpoint.load(self.store / "state.safetensors", self._tree())
        tree = jax.tree.map(jnp.asarray, tree)
        if record["tasks"] != [task.name for task in self.scenario]:
            raise ValueError(
                f"{self.store}: the checkpoint is of the tasks {record['tasks']}, "
                f"this stream has {[task.name for task in self.scenario]}."
            )
        self.last, self.memory, self.done = tree["last"], tree["memory"], record["done"]
        for label, found in tree["merges"].items():
            key = self.states[label].key
            self.states[label] = memory.MergeState(found["step"], key, found["cells"])
        self.outcomes = {k: Outcome(**o) for k, o in record["outcomes"].items()}
        self.seconds, self.losses = record["seconds"], record["losses"]
        self.models = [
            checkpoint.load(self.store / f"task_{t:02d}.safetensors")[0]
            for t in range(min(self.keep, self.done))
        ]
        for d in self.deploys:  # what the last task left behind, for whoever asks
            if d.method is None or (d.each and len(d.factors) > 1):
                continue
            outcome = self.outcomes[d.label]
            if outcome.matrix[self.done - 1][0] is not None:
                self.deployed[d.label] = self._merged(d, outcome.factors[self.done - 1])


class Measured(NamedTuple):
    """Accuracy on every task, task-agnostic and task-aware, each [T], and the mean over classes."""

    free: np.ndarray
    aware: np.ndarray
    per_class: float


def measure(learner: Learner, params: Leaves, data: Probe) -> Measured:
    """The accuracies of one model."""
    found = logits(learner, stack(params), data)
    free, aware = accuracies(found, data)
    return Measured(free[0], aware[0], per_class(found[0].argmax(-1) == data.columns, data.columns))


def accuracy_over_time(outcome: Outcome) -> list[float | None]:
    """After each task the mean accuracy on the tasks seen so far, None where not measured."""
    rows = np.array(outcome.matrix, float)
    return [None if np.isnan(x) else float(x) for x in over_time(rows)]
