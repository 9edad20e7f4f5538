"""The loop: learn task after task, fold every model into the merges, evaluate, checkpoint.

One pass over a scenario trains one model per task and serves any number of *deployments* at once:
each is a fold over the same fine-tuned models (or the last model itself), so ten merges cost one
training.  What is remembered between tasks is constant however many tasks arrive: the last model,
the cells of the folds, the memory of the methods.  With a `store` the cells are on the disk, and in
memory a fold at a time while models are merged: ten merges need the memory of one.

    stream = Stream(scenario, learner, start=from_last, deploys=(Deploy("MagMax", jm.magmax, ...),))
    for t in stream.tasks_left():
        stream.learn(t)

Killed at any moment, a stream with a `store` goes on from its last checkpoint, after a task or in
the middle of one, and gives the same figures: shuffles depend on (seed, task, epoch) only.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual import schedule
from jaxmerge.continual.deploys import (
    LAST,
    Deploy,
    check_counts,
    deployments,
    running_merge,
)
from jaxmerge.continual.factor_search import best, search
from jaxmerge.continual.parts import build, known_slot
from jaxmerge.continual.registry import methods as registered
from jaxmerge.continual.registry import problems
from jaxmerge.continual.schedule import Position, Start, from_last
from jaxmerge.continual.stream_records import Setup, State, several
from jaxmerge.core.composition import stochastic
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Leaves, Merge
from jaxmerge.data.streams.scenario import Scenario, Task
from jaxmerge.drivers import memory
from jaxmerge.evaluation.metrics import per_class
from jaxmerge.evaluation.predict import Probe, accuracies, evaluators_of, outputs_of, probe
from jaxmerge.io.free_memory import give_back
from jaxmerge.studies.deployed import Deployed
from jaxmerge.studies.fold_states import FoldStates
from jaxmerge.studies.hooks import at_border, training_examples
from jaxmerge.studies.outcomes import Outcome, measure
from jaxmerge.studies.stream_checkpoint import restore, save
from jaxmerge.training.fit import OWN, Data, begin_state, fit_task, setup_of
from jaxmerge.training.how import Training
from jaxmerge.training.mid_task import EVERY, Halfway
from jaxmerge.training.model_learner import AnyLearner


class Stream:
    """One pass over a scenario; see the module's docstring.

    Args:
        scenario: the tasks.
        learner: the model.
        start: where the training of each task starts, or its name: "last", "base", "running".
        methods: specs of what is added to plain fine-tuning, in order; names are taken too.
        problem: spec of what is learnt, or its name, or ``{name: {setting: value}}``; by default
            each task's cross-entropy over its own columns.  R is accuracy, or what the problem
            measures in its place.
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
        ValueError: deployments that do not fit together, slots that do not suffice for the tasks,
            or a checkpoint of another stream.
    """

    def __init__(
        self,
        scenario: Scenario,
        learner: AnyLearner,
        *,
        start: Start | str = from_last,
        methods: Sequence[Spec | str] = (),
        problem: Spec | str | Mapping[str, Any] = OWN,
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
        self.scenario, self.learner, self.start = scenario, learner, start
        self.methods = tuple(map(registered.from_settings, several(methods)))
        self.problem = problems.from_settings(problem)
        self.training = training if callable(training) else lambda task: training
        self.deploys, self.seed = deployments(deploys), seed
        self.running = running_merge(start, self.deploys, running)
        check_counts(self.deploys, len(scenario))
        self.keep = len(scenario) if keep is True else int(keep)
        self.store, self.every = None if store is None else Path(store), every
        self.watch = watch or (lambda phase, steps, loss: None)
        self.val, self.test = probes or (
            probe(learner, scenario, split, batch) for split in ("val", "test")
        )
        self.done = self._trained = 0  # tasks
        self.info = {"own": np.stack([scenario.mask(t) for t in range(len(scenario))])}
        self.setup = self._setup(self.training(scenario[0]))
        self.parts = build(self.setup, len(scenario))
        self.model = self.parts.model
        self.evaluators = evaluators_of(self.parts.problem, len(scenario.classes))
        state = begin_state(
            self.setup, self.info, self._base(), self._examples(0), learner.collate,
            jax.random.key(seed),
        )  # fmt: skip
        self.base, self.last, self.memory = state.base, state.params, state.memory
        self.folded = self.model.weights(self.base, 0)  # what merges see of theta_0
        self.states = FoldStates(
            [fold for d in self.deploys for fold in d.folds], self.folded, self.key, self.store
        )

        def nothing() -> list[list[float | None]]:
            return [[None] * len(scenario) for _ in scenario]

        self.outcomes = {
            row: Outcome(nothing(), nothing(), [None] * len(scenario), fixed=factor)
            for d in self.deploys
            for row, factor in d.rows()
        }
        self.seconds: dict[str, float] = {}
        self.losses: list[list[float]] = []
        self.models: list[Leaves] = []
        self.halfway: Halfway | None = None
        restore(self)
        if self.losses:
            self.watch("resumed", sum(map(len, self.losses)), self.losses[-1][-1])

    def key(self, d: Deploy) -> Any:
        """The key of a fold; None where nothing is drawn."""
        return jax.random.key(self.seed) if stochastic(d.merge()) else None

    def tasks_left(self) -> range:
        """Positions of the tasks that are not learnt yet."""
        return range(self.done, len(self.scenario))

    def run(self) -> Stream:
        """Learn all tasks that are left."""
        for t in self.tasks_left():
            self.learn(t)
        return self

    def learn(self, t: int, known: Leaves | None = None, whole: bool = False) -> None:
        """Learn task t, merge, evaluate, checkpoint.

        Args:
            known: the fine-tuned model, when the same training was done already (the first task
                is the same for sequential and independent training).
            whole: `known` is as the hooks at the task's end left it, so none is called; methods
                remember nothing of this task.
        """
        if t != self.done:
            raise ValueError(f"Task {self.done} comes next, got {t}.")
        if self._trained > t:
            raise ValueError(
                f"Task {t} broke off after its training: begin a new Stream; on the same store it "
                "goes on from the checkpoint."
            )
        losses = self._train(t, known, whole)
        self._trained = t + 1
        model = self.model.weights(self.last, t)
        if t < self.keep:
            self.models.append({n: np.asarray(p) for n, p in model.items()})
        for d in self.deploys:
            for fold in d.folds:
                began = time.perf_counter()
                self.states.update(fold.label, model)
                self._clock("merging", began)
                began = time.perf_counter()
                self.states.write(fold.label)
                self._clock("checkpoints", began)
                give_back()  # the state before, and that of the fold before
            enough = d.last or t + 1 >= d.merge().models[0]
            if enough and (d.always or t == len(self.scenario) - 1):
                self._deploy(d, t)
        self.done = t + 1
        self.losses += [] if losses is None else [losses]
        began = time.perf_counter()
        save(self, t)
        self._clock("checkpoints", began)

    def _train(self, t: int, known: Leaves | None, whole: bool) -> list[float] | None:
        """Learn task t; a model that is at hand takes the place of the steps, not of the hooks.

        Returns:
            The losses of the steps, if there were any.
        """
        began = time.perf_counter()
        if known is not None and whole:
            self.last = dict(self.model.put(self.last, known))
            return None
        data, training = self._examples(t), self.training(self.scenario[t])
        self.halfway = self.store and Halfway(self.store / f"training_{t:02d}", self.every)
        begin = self.start.at(Position(self.base, self.last, self._running))
        self.last = dict(begin)  # what was learnt before is not held while this is
        self.states.release()  # nor are the folds
        state = State(
            self.base, begin, self.memory, {}, (), jnp.int32(0), jax.random.key(self.seed)
        )
        del begin
        setup = self._setup(training)
        state = at_border(setup, self.scenario, self.info, state, t, "begin", data)
        known_slot(self.parts, state.params, t)
        give_back()
        losses = None
        if known is None:
            state, losses = fit_task(
                setup, self.info, state, t, data, training, collate=self.learner.collate,
                seed=(self.seed, t), halfway=self.halfway,
                watch=lambda steps, loss: self.watch("training", steps, loss),
            )  # fmt: skip
            give_back()
        else:
            state = state._replace(params=self.model.put(state.params, known))
        state = at_border(setup, self.scenario, self.info, state, t, "end", data)
        self.last, self.memory = dict(state.params), state.memory
        if known is None:
            self._clock("training", began - (self.halfway.before if self.halfway else 0))
        return losses

    def _examples(self, t: int) -> Data:
        return training_examples(self.learner, self.scenario, self.methods, t, self.seed)

    def _setup(self, training: Training) -> Setup:
        return setup_of(self.learner, training, self.methods, problem=self.problem)

    def _base(self) -> Leaves:
        """theta_0 with the leaves that methods add."""
        own = dataclasses.replace(self.setup, model=self.learner.model(params=True))
        return build(own, len(self.scenario)).model.init(jax.random.key(self.seed))

    def _running(self) -> Leaves:
        if self.running is None:
            return self.last
        outcome = self.outcomes[self.running.label]
        if outcome.matrix[self.done - 1][0] is None:
            return self.last  # before the first task, and while there are too few models to merge
        return self.merged(self.running, outcome.factors[self.done - 1])

    def merged(self, d: Deploy, factor: float | None) -> Leaves:
        """The weights of a deployment now."""
        state = self.states[d.fold(factor).label]
        leaves = memory.merged(d.merge(factor), state, self.folded)
        return self.model.put(self.last, leaves)

    @property
    def deployed(self) -> Mapping[str, Leaves]:
        """The merges of the last task by their rows; each is made when it is read.

        Not among them: the last model, and merges whose factors are rows of their own.
        """
        return Deployed(self)

    def _deploy(self, d: Deploy, t: int) -> None:
        """Merge, choose a factor if asked to, evaluate."""
        rows, sweep = d.rows(), None
        if len(d.factors) <= 1:
            rows = [(d.label, d.factors[0] if d.factors else None)]
        elif not d.each:
            sweep = self._choose(d, t)
            rows = [(d.label, sweep["chosen"])]
        outputs, own = self._outputs(d, [factor for _, factor in rows], self.test, t)
        free, aware = accuracies(outputs, self.test, own, self.evaluators, t)
        columns = self.test.columns
        for k, (row, factor) in enumerate(rows):
            outcome = self.outcomes[row]
            outcome.matrix[t], outcome.aware[t] = free[k].tolist(), aware[k].tolist()
            outcome.per_class = per_class(outputs[k].argmax(-1) == columns, columns)
            outcome.factors[t], outcome.sweep = factor, sweep
            if not d.last:
                outcome.method = repr(d.merge(factor))
            self.watch(row, 0, float(np.mean(free[k, : t + 1])))

    def _choose(self, d: Deploy, t: int) -> dict:
        """Accuracy of every factor on the validation examples of the tasks so far."""
        seen = self.val.upto(t + 1)

        def means(factors: list[float]) -> list[float]:
            outputs = self._outputs(d, factors, seen, t)[0]
            right, _ = accuracies(outputs, seen, by=self.evaluators, seen=t)
            return right[:, : t + 1].mean(axis=1).tolist()

        tried, found = search(d.factors, means, d.beyond)
        return {"factors": tried, "accuracy": found, "chosen": best(tried, found)}

    def _outputs(
        self, d: Deploy, factors: Sequence[float | None], data: Probe, t: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Logits [F, N, columns] under each factor, without the task, and with it where methods
        change the network; a merge is made when it is asked for, so that not all need memory."""
        began, merging = time.perf_counter(), -self.seconds.get("merging", 0.0)

        def merge(factor):
            start = time.perf_counter()
            model = self.last if d.last else self.merged(d, factor)
            self._clock("merging", start)
            return model

        models = map(merge, factors)
        outputs = outputs_of(self.learner, self.setup, self.parts, models, data, t)
        self._clock("evaluation", began + merging + self.seconds.get("merging", 0.0))
        return outputs

    def measure(self, params: Leaves, data: Probe) -> tuple[np.ndarray, np.ndarray]:
        """Task-agnostic and task-aware accuracy of one model on every task, each [T]."""
        return measure(self.learner, params, data, self.problem)[:2]

    def _clock(self, phase: str, began: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began
