"""The loop: learn task after task, fold every model into the merges, evaluate, checkpoint.

One pass over a scenario trains one model per task and serves any number of *deployments* at once:
each is a fold over the same fine-tuned models (or the last model itself), so ten merges cost one
training.  What is remembered between tasks is constant however many tasks arrive: the last model,
the cells of the folds, the memory of the strategy.

    stream = Stream(scenario, learner, start=from_last, deploys=[Deploy("MagMax", jm.magmax, ...)])
    for t in stream.tasks_left():
        stream.learn(t)

Killed at any moment, a stream with a `store` goes on after the last finished task and gives the
same figures: shuffles depend on (seed, task, epoch) only.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge import run
from jaxmerge.combine import stochastic
from jaxmerge.continual import checkpoint
from jaxmerge.continual.evaluate import Probe, accuracies, logits, probe, stack
from jaxmerge.continual.learner import Learner
from jaxmerge.continual.metrics import over_time
from jaxmerge.continual.scenario import Scenario
from jaxmerge.continual.schedule import Position, Start, from_last
from jaxmerge.continual.strategy import Strategy, finetune
from jaxmerge.continual.train import Training, fit
from jaxmerge.core import Leaves, Merge


class Deploy(NamedTuple):
    """What is deployed after a task.

    Attributes:
        label: in tables; unique in a stream.
        method: ``factor -> Merge``, such as `jm.magmax`; None deploys the last model.
        factors: tried on the validation examples of the tasks seen so far; the best is deployed
            (the smallest of equals, nearest to the pretrained model).  One factor is not tried.
        always: merge and evaluate after every task, or after the last one only.
    """

    label: str
    method: Callable[..., Merge] | None = None
    factors: tuple[float, ...] = (1.0,)
    always: bool = True


@dataclasses.dataclass
class Outcome:
    """What one deployment gave; JSON-able.

    Attributes:
        matrix, aware: R[t][i] task-agnostic and task-aware, None in rows that were not measured.
        factors: the factor in use after each task.
        sweep: validation accuracy of every factor at the last merge, or None.
        method: the last merge as jaxmerge prints it.
    """

    matrix: list
    aware: list
    factors: list
    sweep: dict | None = None
    method: str = ""


class Stream:
    """One pass over a scenario; see the module's docstring.

    Args:
        scenario: the tasks.
        learner: the model.
        start: where the training of each task starts.
        strategy, training: how a task is learnt.
        deploys: what is deployed; the first one is the running merge of `from_running`.
        seed: of the shuffles and of random merges.
        store: folder for checkpoints, or None.
        keep: keep every fine-tuned model in `models` (T x the model), for statistics.
        watch: called with (phase, steps or 0, loss or None) for progress.
    """

    def __init__(
        self,
        scenario: Scenario,
        learner: Learner,
        *,
        start: Start = from_last,
        strategy: Strategy = finetune,
        training: Training = Training(),
        deploys: tuple[Deploy, ...] = (Deploy("last model"),),
        seed: int = 0,
        store: str | Path | None = None,
        keep: bool = False,
        watch: Callable[[str, int, float | None], None] | None = None,
        batch: int = 128,
    ):
        self.scenario, self.learner, self.start, self.training = scenario, learner, start, training
        self.strategy, self.deploys, self.seed, self.keep = strategy, tuple(deploys), seed, keep
        self.store = None if store is None else Path(store)
        self.watch = watch or (lambda phase, steps, loss: None)
        self.val = probe(learner, scenario, "val", batch)
        self.test = probe(learner, scenario, "test", batch)
        self.done = 0
        self.last = learner.params
        self.memory = tuple(term.start(learner) for term in strategy.terms)
        self.states = {
            d.label: run.init(d.method(d.factors[0]), learner.params, key=self._key(d))
            for d in self.deploys
            if d.method is not None
        }
        nothing = lambda: [[None] * len(scenario) for _ in scenario]
        self.outcomes = {
            d.label: Outcome(nothing(), nothing(), [None] * len(scenario)) for d in self.deploys
        }
        self.seconds: dict[str, float] = {}
        self.losses: list[list[float]] = []
        self.models: list[Leaves] = []
        self.deployed: dict[str, Leaves] = {}
        self._resume()

    def _key(self, d: Deploy) -> Any:
        return jax.random.key(self.seed) if stochastic(d.method(d.factors[0])) else None

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
        if self.keep:
            self.models.append({n: np.asarray(p) for n, p in model.items()})
        for d in self.deploys:
            if d.method is not None:
                self.states[d.label] = run.update(
                    d.method(d.factors[0]), self.states[d.label], self.learner.params, model
                )
        self._clock("merging", began)
        for d in self.deploys:
            if d.always or t == len(self.scenario) - 1:
                self._deploy(d, t)
        self.done = t + 1
        began = time.perf_counter()
        self._save(t)
        self._clock("checkpoints", began)

    def _train(self, t: int) -> Leaves:
        began = time.perf_counter()
        task = self.scenario[t]
        inputs, columns, own = self._examples(t)
        position = Position(self.learner.params, self.last, self._running)
        model, losses = fit(
            self.learner, self.start.at(position), inputs, columns, own, self.training,
            strategy=self.strategy, memory=self.memory, seed=(self.seed, t),
            watch=lambda steps, loss: self.watch("training", steps, loss),
        )  # fmt: skip
        self.memory = tuple(
            term.end(m, self.learner, model, task, (inputs, columns))
            for term, m in zip(self.strategy.terms, self.memory, strict=True)
        )
        self.losses.append(losses)
        self._clock("training", began)
        return model

    def _examples(self, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        inputs = [self.learner.prepare(k.source.inputs[rows]) for k, rows in parts]
        columns = [k.offset + k.source.labels[rows] for k, rows in parts]
        return np.concatenate(inputs), np.concatenate(columns).astype(np.int32), own

    def _running(self) -> Leaves:
        if self.done == 0:
            return self.learner.params
        first = self.deploys[0]
        if first.method is None:
            return self.last
        factor = self.outcomes[first.label].factors[self.done - 1]
        return run.merged(first.method(factor), self.states[first.label], self.learner.params)

    def _deploy(self, d: Deploy, t: int) -> None:
        outcome = self.outcomes[d.label]
        if d.method is None:
            chosen = self.last
        else:
            began = time.perf_counter()
            factor, sweep = d.factors[0], None
            if len(d.factors) == 1:
                chosen = run.merged(d.method(factor), self.states[d.label], self.learner.params)
            else:
                stacked = merged_many(d, self.states[d.label], self.learner.params)
                seen = self.val.upto(t + 1)
                right, _ = accuracies(logits(self.learner, stacked, seen), seen)
                means = right[:, : t + 1].mean(axis=1)
                best = int(np.argmax(means))
                factor = d.factors[best]
                chosen = {n: x[best] for n, x in stacked.items()}
                sweep = {"factors": list(d.factors), "accuracy": means.tolist(), "chosen": factor}
            outcome.factors[t], outcome.sweep = factor, sweep
            outcome.method = repr(d.method(factor))
            self.deployed[d.label] = chosen
            self._clock("merging", began)
        began = time.perf_counter()
        free, aware = self.measure(chosen, self.test)
        outcome.matrix[t], outcome.aware[t] = free.tolist(), aware.tolist()
        self._clock("evaluation", began)
        self.watch(d.label, 0, None)

    def measure(self, params: Leaves, data: Probe) -> tuple[np.ndarray, np.ndarray]:
        """Task-agnostic and task-aware accuracy of one model on every task, each [T]."""
        free, aware = accuracies(logits(self.learner, stack(params), data), data)
        return free[0], aware[0]

    def _clock(self, phase: str, began: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began

    # ---------------------------------------------------------------- checkpoints

    def _tree(self) -> dict:
        cells = {label: {"step": s.step, "cells": s.cells} for label, s in self.states.items()}
        return {"last": dict(self.last), "memory": self.memory, "merges": cells}

    def _save(self, t: int) -> None:
        if self.store is None:
            return
        if self.keep:
            checkpoint.save(self.store / f"task_{t:02d}.safetensors", self.models[t])
        record = {
            "done": self.done,
            "tasks": [task.name for task in self.scenario],
            "outcomes": {k: dataclasses.asdict(o) for k, o in self.outcomes.items()},
            "seconds": self.seconds,
            "losses": self.losses,
        }
        checkpoint.save(self.store / "state.safetensors", self._tree(), record)

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
            self.states[label] = run.MergeState(found["step"], key, found["cells"])
        self.outcomes = {k: Outcome(**o) for k, o in record["outcomes"].items()}
        self.seconds, self.losses = record["seconds"], record["losses"]
        if self.keep:
            self.models = [
                checkpoint.load(self.store / f"task_{t:02d}.safetensors")[0]
                for t in range(self.done)
            ]
        for d in self.deploys:  # what the last task left behind, for whoever asks
            factor = self.outcomes[d.label].factors[self.done - 1]
            if d.method is not None and factor is not None:
                self.deployed[d.label] = run.merged(
                    d.method(factor), self.states[d.label], self.learner.params
                )


def merged_many(deploy: Deploy, state: Any, base: Leaves) -> Leaves:
    """The merges under all factors of a deployment, stacked: name -> [F, ...]."""
    one = lambda factor: run.merged(deploy.method(factor), state, base)
    return jax.vmap(one)(jnp.asarray(deploy.factors, jnp.float32))


def accuracy_over_time(outcome: Outcome) -> list[float | None]:
    """After each task the mean accuracy on the tasks seen so far, None where not measured."""
    rows = np.array(outcome.matrix, float)
    return [None if np.isnan(x) else float(x) for x in over_time(rows)]
