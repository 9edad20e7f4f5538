"""Several seeds of one stream as one compiled program, where data and models fit on the device.

`jaxmerge sweep` trains so what it can: the batches are those that a run of each seed would draw, so
the figures are the same to rounding.  What the program gives are the models of every task; merging,
choosing factors and evaluating them is the loop's work, as with any models at hand.

On an accelerator the seeds are one batched program (`vmap`), on a CPU one follows another in it;
several devices share them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.checks import check
from jaxmerge.continual.drivers import program
from jaxmerge.continual.seeds import alike, over, stacked
from jaxmerge.continual.stream_records import Groups, Setup, Stream
from jaxmerge.core.types import Leaves
from jaxmerge.data.pipeline import memory
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.studies.seed import Plan
from jaxmerge.training import data_parallel
from jaxmerge.training.fit import Chunks
from jaxmerge.training.how import Training
from jaxmerge.training.model_learner import AnyLearner


class Trained:
    """Models of the tasks of one stream that are in memory; like `Finetuned` to read.

    Attributes:
        seconds: of training, this seed's share of the program's.
    """

    whole = True  # each as the hooks at its task's end left it

    def __init__(self, models: dict[str, Leaves], seconds: float):
        self.models, self.seconds = models, seconds

    def get(self, task: str, like: Leaves) -> Leaves | None:
        """The model of a task."""
        return self.models.get(task)

    def keep(self, task: str, model: Leaves) -> None:
        """Nothing: they are in memory."""


def obstacle(plan: Plan, scenario: Scenario, learner: AnyLearner, room: int | None = None) -> str:
    """Why a stream cannot be one program; empty where it can.

    Args:
        room: bytes for data and models; a half of the device's memory, an eighth of the machine's
            on a CPU.
    """
    built = [m.build() for m in plan.methods]
    model = learner.model(params=True).build()
    seen_by_merges = jax.eval_shape(lambda: model.weights(dict(learner.params), jnp.int32(0)))
    ways = {dataclasses.replace(plan.training(task), epochs=1) for task in scenario}
    if plan.models is not None:
        return "its models are at hand"
    if plan.start.merged:
        return "its tasks start from a merge whose factor the validation examples choose"
    if any(m.host or m.examples or m.wrap for m in built):
        return "a method needs the host, or changes the network"
    if len(ways) > 1:
        return "its tasks are trained differently"
    if learner.collate is not np.asarray:
        return "its batches are packed on the host"
    if len({task.name for task in scenario}) < len(scenario):
        return "two tasks have one name"
    if set(seen_by_merges) != set(learner.params):
        return "its models have leaves that merges do not see"
    data = scenario.split("train", learner.prepare).inputs
    if not isinstance(data, np.ndarray):
        return "its examples do not fit into memory"
    size = sum(np.asarray(p).nbytes for p in learner.params.values())
    need, have = data.nbytes + (len(scenario) + 6) * size, _room() if room is None else room
    if need > have:
        return f"it needs {need / 1e9:.1f} GB, there is room for {have / 1e9:.1f}"
    return ""


def train(
    plan: Plan, scenarios: Sequence[Scenario], learner: AnyLearner, seeds: Sequence[int]
) -> list[Trained | Exception]:
    """The models of a stream for several seeds, or what went wrong with a seed.

    Where there are several devices the seeds are cut over them, filled up with more of the first
    one where they do not divide.  A member that has diverged is a `FloatingPointError` that names
    its task; the others are good.
    """
    streams, data = [], {}
    for scenario, seed in zip(scenarios, seeds, strict=True):
        streams.append(stream_of(scenario, learner, plan.training, seed, data))
    training = plan.training(scenarios[0][0])
    setup = Setup(
        model=learner.model(training.dtype, params=True),
        problem=plan.problem,
        optimiser=training.optimiser_of(),
        methods=plan.methods,
        start=plan.start.name,
        accumulate=training.accumulate,
    )
    for stream in streams:
        check(setup, stream, traced=True)  # inside of what is compiled their numbers are not seen
    one = jax.jit(lambda setup, s, key: program(setup, s, key, score_every=0, models=True)[-3:])
    began = time.perf_counter()
    across = _across(len(seeds))
    filler = -len(seeds) % across
    together, axes = _stack(streams + streams[:1] * filler)
    if together is None:
        filler = 0
    keys = jnp.stack([jax.random.key(seed) for seed in [*seeds, *[seeds[0]] * filler]])
    if together is None:  # tasks of different sizes: one after the other, compiled once
        outputs = [one(setup, s, k) for s, k in zip(alike(streams), keys, strict=True)]
        outputs = jax.tree.map(lambda *x: np.stack(x), *outputs)
    else:
        cut = across > 1 and across
        many = jax.jit(
            lambda setup, s, k: over(lambda a, b: one(setup, a, b), axes, s, k, sharded=cut)
        )
        outputs = many(setup, together, keys)
    _, finite, models = jax.tree.map(np.asarray, outputs)
    spent = (time.perf_counter() - began) / len(seeds)
    trained: list[Trained | Exception] = []
    for i, scenario in enumerate(scenarios):
        if not finite[i].all():
            t = int(np.argmin(finite[i]))
            text = f"stream {plan.name!r}: the loss is not finite in task {t + 1}; lower the rate."
            trained.append(FloatingPointError(text))
            continue
        own: dict[str, Leaves] = {
            k.name: {n: x[i, t] for n, x in models.items()} for t, k in enumerate(scenario)
        }
        trained.append(Trained(own, spent))
    return trained


def stream_of(
    scenario: Scenario, learner: AnyLearner, training: Any, seed: int, data: dict | None = None
) -> Stream:
    """A scenario as arrays, in the batches that the loop would draw with this seed.

    Args:
        training: task -> `Training`.
        data: shared between seeds of one source: prepared inputs are made once.
    """
    shared = {} if data is None else data
    split = scenario.split("train", learner.prepare)
    if data and len(shared["columns"]) == len(split.columns):
        place = _places(shared, split)
    else:
        shared |= {"inputs": split.inputs, "columns": split.columns}
        place = np.arange(len(split.columns))
    drawn = []
    for t, task in enumerate(scenario):
        own: Training = training(task)
        rows = place[split.index[split.task == t]]
        order = Chunks(len(rows), own, (seed, t)).order
        drawn.append(np.stack([rows[order[k]] for k in range(len(order))]))
    steps = max(len(d) for d in drawn)
    full = np.stack([np.resize(d, (steps, d.shape[1])) for d in drawn]).astype(np.int32)
    real = np.stack([np.arange(steps) < len(d) for d in drawn]).astype(np.float32)
    tasks = np.arange(len(scenario), dtype=np.int32)
    info = {"own": np.stack([scenario.mask(t) for t in range(len(scenario))])}
    sample = [place[split.index[split.task == t]] for t in tasks]
    size = max(map(len, sample))
    sample = np.stack([np.pad(_drawn(s), (0, size - len(s)), constant_values=-1) for s in sample])
    groups = Groups(  # nothing is scored here
        shared["inputs"][:1], shared["columns"][:1], np.zeros((1, 1), np.int32),
        np.ones((1, 1), np.float32), np.zeros(1, np.int32), {"own": info["own"][:1]},
    )  # fmt: skip
    origin = np.broadcast_to(tasks[:, None, None], full.shape).copy()
    weight = np.broadcast_to(real[..., None], full.shape).copy()
    return Stream(
        shared["inputs"], shared["columns"], full, origin, weight, info, groups,
        sample.astype(np.int32),
    )  # fmt: skip


def _across(seeds: int) -> int:
    """How many devices the seeds are cut over: those that training uses, in one process."""
    row = data_parallel.mesh()
    return 1 if row is None or jax.process_count() > 1 else min(row.size, seeds)


def _drawn(rows: np.ndarray) -> np.ndarray:
    """In the order in which the loop draws a sample."""
    return rows[np.random.default_rng(0).permutation(len(rows))]


def _places(shared: dict, split: Any) -> np.ndarray:
    """Where each of a split's examples is in the shared inputs, which another order made."""
    at = {x.tobytes(): i for i, x in enumerate(shared["inputs"])}
    return np.array([at[x.tobytes()] for x in split.inputs])


def _stack(streams: list[Stream]) -> tuple[Stream | None, Any]:
    try:
        return stacked(streams)
    except ValueError:
        return None, None


def _room() -> int:
    stats = jax.local_devices()[0].memory_stats()
    return memory() // 8 if not stats else stats["bytes_limit"] // 2
