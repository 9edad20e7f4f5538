"""Evaluation: accuracies of one model, or of many merged models at once, on prepared examples.

All examples pass in batches of one shape (packed sentences: of a few), filled up at the end, so
evaluation is compiled once for any number of examples, tasks and models (where models pass
together, once for their number).  Many models (one merge under many factors) are stacked and
vmapped on an accelerator; on a CPU they pass one after the other, and an iterator of them needs the
memory of two: batched matrix products were measured to cost 1.5 times as much there.  Where half of
the weights are the same in all of them, as those of a frozen tower, these are held once on a CPU,
and what stands before the first leaf that differs runs once for all models: with the last of four
blocks merged, twenty models cost 0.10 of twenty evaluations
(`experiments/bench/shared_evaluation.py`); where every leaf is merged there is nothing to share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.parts import Parts, build
from jaxmerge.continual.records import Outputs
from jaxmerge.continual.stream_records import Evaluator, Problem, Setup, as_stored
from jaxmerge.core.types import Leaves
from jaxmerge.data.pipeline import Batches, Examples
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.training.data_parallel import everywhere, spread, to_numpy
from jaxmerge.training.model_learner import AnyLearner

WORTH = 0.5  # share of the weights that models have in common from which on they pass together


class Probe(NamedTuple):
    """Prepared examples of one split; those that several tasks share pass through the model once.

    Attributes:
        chunks: batches as `features` reads them, on the device, the last one filled up; a list, or
            `Batches` that are read anew each time, where they do not fit into memory.
        columns, task: int32 [N], sorted by task.
        index: int [N], where each lies in the chunks.
        own: bool [T, columns], the columns of each task.
        batch: examples in a chunk.
    """

    chunks: list | Batches
    columns: np.ndarray
    task: np.ndarray
    index: np.ndarray
    own: np.ndarray
    batch: int

    def upto(self, tasks: int) -> Probe:
        """The examples of the first `tasks` tasks only."""
        count = int(np.searchsorted(self.task, tasks))
        index = self.index[:count]
        chunks = self.chunks[: index.max(initial=-1) // self.batch + 1]
        return self._replace(
            chunks=chunks, columns=self.columns[:count], task=self.task[:count], index=index
        )


def probe(learner: AnyLearner, scenario: Scenario, split: str, batch: int = 128) -> Probe:
    """Prepare a split of a scenario for evaluation.

    Raises:
        ValueError: the learner's head is not that of the scenario's classes.
    """
    learner.check(scenario)
    data = scenario.split(split, learner.prepare)
    inputs = data.inputs
    padded = np.resize(np.arange(len(inputs)), len(inputs) + -len(inputs) % batch)
    chunks = Batches(inputs, padded.reshape(-1, batch), learner.collate, spread)
    if not isinstance(inputs, Examples):
        chunks = list(chunks)  # they stay on the device
    own = np.stack([scenario.mask(t) for t in range(len(scenario))])
    return Probe(chunks, data.columns[data.index], data.task, data.index, own, batch)


def logits(learner: AnyLearner, models: Iterable[Leaves], data: Probe) -> np.ndarray:
    """[F, N, columns] of F models on the examples of a probe.

    Memory: on a CPU two models, or twice those leaves of all that are not the same in the first
    two, where the others are at least half of the weights; elsewhere twice all models.
    """
    if jax.default_backend() == "cpu":
        return _on_cpu(learner, models, data)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *map(dict, models))
    network, stacked = everywhere((learner.model(), stacked))
    parts = [_many(network, stacked, chunk) for chunk in data.chunks]
    return np.concatenate([to_numpy(p) for p in parts], axis=1)[:, data.index]


def logits_of(learner: AnyLearner, params: Leaves, data: Probe) -> np.ndarray:
    """[N, columns] of one model on the examples of a probe."""
    network, params = everywhere((learner.model(), dict(params)))
    parts = [_one(network, params, chunk) for chunk in data.chunks]
    return np.concatenate([to_numpy(p) for p in parts])[data.index]


def _on_cpu(learner: AnyLearner, models: Iterable[Leaves], data: Probe) -> np.ndarray:
    models = iter(models)
    ahead = [dict(m) for m in itertools.islice(models, 2)]
    common = _common(*ahead) if len(ahead) > 1 else {}
    names = ahead[0].keys() if common else ()
    found: dict[int, np.ndarray] = {}
    differing: dict[int, dict] = {}
    for i in itertools.count():
        model = ahead.pop(0) if ahead else next(models, None)
        if model is None:
            break
        if common and model.keys() == names and all(_equal(x, model[n]) for n, x in common.items()):
            differing[i] = {n: x for n, x in model.items() if n not in common}
        else:
            found[i] = logits_of(learner, model, data)
    if differing:
        order = list(differing)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *differing.values())
        differing.clear()
        given = everywhere((learner.model(), common, stacked))
        parts = [to_numpy(_in_turn(*given, chunk)) for chunk in data.chunks]
        together = np.concatenate(parts, axis=1)[:, data.index]
        found |= dict(zip(order, together, strict=True))
    return np.stack([found[i] for i in sorted(found)])


def _common(one: dict, other: dict) -> dict:
    """The leaves that are the same in two models, where that is worth it: where little is shared
    memory counts, and two equal models say nothing."""
    same = {n: x for n, x in one.items() if n in other and _equal(x, other[n])}
    size = lambda leaves: sum(x.size for x in leaves.values())
    return same if WORTH <= size(same) / max(1, size(one)) < 1 else {}


def _equal(a: Any, b: Any) -> bool:
    return a is b or (a.dtype == b.dtype and np.array_equal(a, b))


@jax.jit
def _in_turn(network, common, differing, inputs):
    """Models one after another; the compiler takes out of the loop what is the same in all."""
    return jax.lax.map(lambda own: _one(network, {**common, **own}, inputs), differing)


@jax.jit
def _one(network, params, inputs):
    return network.build().apply(params, inputs, jnp.int32(0)).logits


@jax.jit
def _many(network, models, inputs):
    return jax.vmap(lambda params: _one(network, params, inputs))(models)


def reads_tasks(parts: Parts) -> bool:
    """Whether a prediction may depend on the task: by a wrap, the model itself, or the view."""
    wrapped = any(m.wrap for m in parts.methods) or parts.model.predict is not None
    return wrapped or parts.problem.view is not as_stored


def outputs_of(
    learner: AnyLearner, setup: Setup, parts: Parts, models: Iterable[Leaves], data: Probe,
    seen: int,
) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """Logits [F, N, columns] of F models without the task, and with it where that may differ."""
    if not reads_tasks(parts):
        return logits(learner, models, data), None
    return task_logits(setup, models, data, seen, len(data.own))


def task_logits(
    setup: Setup, models: Iterable[Leaves], data: Probe, seen: int, tasks: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits [F, N, columns] of models whose predictions may depend on the task.

    Args:
        setup: of the stream.
        models: the params of each.
        data: tasks in a row; every batch passes once, and once more for each task in it (twice,
            where the problem has a view, which may be another for each task).
        seen: the last task that was learnt.

    Returns:
        Without the task, and with it: of each example under its own task.
    """
    batches = data.index // data.batch
    viewed = setup.problem.build().view is not as_stored
    free, own = [], []
    for model in models:
        fixed = everywhere((setup, {"own": data.own}, dict(model), np.int32(seen)))
        call = lambda chunk, task, aware, fixed=fixed: to_numpy(
            _answer(fixed, chunk, np.int32(task), aware, tasks)
        )

        def under_own(aware: bool, call: Callable = call) -> np.ndarray:
            found: Any = None
            for k, chunk in enumerate(data.chunks):
                for task in np.unique(data.task[batches == k]):
                    at = (batches == k) & (data.task == task)
                    rows = call(chunk, task, aware)[data.index[at] % data.batch]
                    if found is None:
                        found = np.empty((len(data.index), *rows.shape[1:]), rows.dtype)
                    found[at] = rows
            return found

        if viewed:
            free.append(under_own(False))
        else:
            parts = [call(chunk, seen, False) for chunk in data.chunks]
            free.append(np.concatenate(parts)[data.index])
        own.append(under_own(True))
    return np.stack(free), np.stack(own)


@partial(jax.jit, static_argnames=("aware", "tasks"))
def _answer(fixed, inputs, task, aware, tasks):
    setup, info, params, seen = fixed
    parts = build(setup, tasks)
    if parts.problem.view is not as_stored:
        every = jnp.full(jax.tree.leaves(inputs)[0].shape[0], task)
        inputs = parts.problem.view(inputs, info, every, None)
    if aware:
        return parts.model.apply(params, inputs, task).logits
    return parts.model.answer(params, inputs, seen).logits


class Evaluators(NamedTuple):
    """What R and its task-aware twin are measured by; None: accuracy."""

    free: Evaluator | None = None
    aware: Evaluator | None = None


def evaluators_of(problem: Problem, columns: int) -> Evaluators:
    """The evaluators of a problem that R is made of: its accuracy, or its first of each kind.

    Args:
        problem: with its evaluators.
        columns: of the logits.

    Raises:
        ValueError: an evaluator that reads more than logits, or whose small values are good.
    """
    chosen: dict[bool, Evaluator | None] = {}
    info = {k: jnp.ones((1, columns), bool) for k in ("own", "met")}
    for aware, plain in ((False, "accuracy"), (True, "aware")):
        names = sorted(n for n, e in problem.evaluators.items() if e.task_aware == aware)
        chosen[aware] = None
        if not names or plain in names:
            continue
        evaluator = problem.evaluators[names[0]]
        like = jnp.zeros((1, columns)), jnp.zeros(1, jnp.int32)
        try:
            form = jax.eval_shape(lambda z, y, e=evaluator: e.score(Outputs(z), y, info), *like)
            fits = form.shape == (1,) and not evaluator.lower_is_better
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            fits = False
        if not fits:
            raise ValueError(
                f"A stream measures shares of right answers from logits [B, {columns}]; the "
                f"problem has {names[0]!r}: give it 'accuracy' among its metrics, or use "
                "`jaxmerge.continual.drivers`."
            )
        chosen[aware] = evaluator
    return Evaluators(chosen[False], chosen[True])


def accuracies(
    scores: np.ndarray,
    data: Probe,
    aware: np.ndarray | None = None,
    by: Evaluators = Evaluators(),
    seen: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on each task: (task-agnostic, task-aware), each [F, T]; NaN without examples.

    Args:
        scores: logits [F, N, columns].
        aware: those with the task, where they differ.
        by: other evaluators in the place of accuracy.
        seen: the last task that was learnt, which these may ask for; None: all are.
    """
    given = scores if aware is None else aware
    if by.free is None:
        free = _by_task(scores.argmax(-1) == data.columns, data)
    else:
        free = _scored(by.free, scores, data, seen)
    if by.aware is not None:
        return free, _scored(by.aware, given, data, seen)
    masked = np.where(data.own[data.task], given, -np.inf)
    return free, _by_task(masked.argmax(-1) == data.columns, data)


def _scored(by: Evaluator, scores: np.ndarray, data: Probe, seen: int | None) -> np.ndarray:
    met = data.own[: None if seen is None else seen + 1].any(0)
    own = jnp.asarray(data.own[data.task])
    info = {"own": own, "met": jnp.broadcast_to(met, own.shape)}
    values = [by.score(Outputs(jnp.asarray(s)), jnp.asarray(data.columns), info) for s in scores]
    means = _by_task(np.stack([np.asarray(v, float) for v in values]), data)
    return np.asarray(by.finish(jnp.asarray(means, jnp.float32)), float)


def _by_task(right: np.ndarray, data: Probe) -> np.ndarray:
    tasks = len(data.own)
    counts = np.bincount(data.task, minlength=tasks).astype(float)
    sums = np.stack([np.bincount(data.task, r, minlength=tasks) for r in right])
    with np.errstate(invalid="ignore"):
        return sums / counts
