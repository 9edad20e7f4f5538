"""The models that `data_driven.py` merges and their examples: one fine-tuned model for each task.

`images`: five sets of ten classes on `mini`; the task that is held out is scikit-learn's digits.
`text`: the ten domains of CLINC150, 15 intents each, on all-MiniLM-L6-v2; held out is Banking77.

Heads are made of class names and frozen.  An example is a pair (input, columns): its own task's
columns of the head, of which a task-aware prediction chooses, so that one function serves all
tasks::

    apply(params, (inputs [B, ...], columns [B, C])) -> logits [B, C]

The validation split is cut in two: "adapt" is what statistics, gradients and entropy see, "tune" is
what factors, thresholds and coefficients are chosen on.  Nothing sees the test split but scoring.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxmerge as jm
from jaxmerge.data.digits import digits
from jaxmerge.data.npz import npz
from jaxmerge.data.streams.builders import class_incremental, suite
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.data.text import banking77, clinc150
from jaxmerge.evaluation.predict import accuracies, logits, probe
from jaxmerge.models import bert, clip
from jaxmerge.training import checkpoint
from jaxmerge.training.fit import Training, fit
from jaxmerge.training.learner import from_bert, from_clip, head_logits

MINI = Path(jm.__file__).parent / "assets" / "mini"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@dataclasses.dataclass(frozen=True)
class Config:
    """What decides the figures; counts are for each task.

    Attributes:
        suite: "images" or "text".
        tasks: data sets of the images; empty for text.
        examples, epochs, rate: of the fine-tuning.
        adapt, tune, test, held: examples for each purpose; `held` of the held-out task.
        length: tokens of a sentence, longer ones are cut.
        batch: examples of each task in one step of a solver.
        adamerging: steps.  localize: steps.  surgery: steps.
        frank_wolfe: steps; each sees `proxy` examples of each task and refines coefficients in
            `inner` steps.
        related, unrelated: tasks of the scaling curve with irrelevant models: those that count
            and those whose models are added to the pool.
        pools: sizes of the pool on the two curves.
    """

    suite: str = "images"
    tasks: tuple[str, ...] = ("mnist", "fashion_mnist", "sign_digits", "usps", "cifar10")
    examples: int = 600
    epochs: int = 8
    rate: float = 3e-4
    adapt: int = 128
    tune: int = 64
    test: int = 500
    held: int = 360
    length: int = 20
    batch: int = 16
    adamerging: int = 100
    localize: int = 60
    surgery: int = 100
    frank_wolfe: int = 10
    inner: int = 10
    proxy: int = 32
    related: tuple[int, ...] = (1, 4)
    unrelated: tuple[int, ...] = (0, 2, 3)
    pools: tuple[tuple[int, ...], ...] = ((2, 3, 4, 5), (1, 2, 3, 4, 5))
    seed: int = 0


IMAGES = Config()
TEXT = Config(
    suite="text", tasks=(), examples=180, epochs=2, rate=1e-4, adapt=32, tune=15, test=60,
    held=200, batch=4, adamerging=25, localize=20, surgery=30, frank_wolfe=5, proxy=8, inner=5,
    related=(0, 1), unrelated=tuple(range(2, 10)), pools=((2, 4, 7, 10), (1, 4, 7, 10)),
)  # fmt: skip


class Suite:
    """Base, models and examples of one configuration; models are kept in `work` once trained."""

    def __init__(self, config: Config, data: Path, work: Path):
        self.config = config
        self.scenario, held_out = (_images if config.suite == "images" else _text)(config, data)
        self.names = [task.name for task in self.scenario]
        self.held_name = held_out[0].name
        self.learner = _learner(config, self.scenario)
        padded = config.suite == "text"  # 0 is the padding of BERT's tokens
        self.keep = (lambda tokens: (tokens != 0).ravel()) if padded else None
        self._held_learner = _learner(config, held_out)
        self.base = {n: jnp.asarray(x) for n, x in self.learner.params.items()}
        self.columns = [task.columns for task in self.scenario]
        rng = np.random.default_rng(config.seed)
        self._rows = {"adapt": [], "tune": []}
        for task in self.scenario:
            rows = rng.permutation(task.rows["val"])[: config.adapt + config.tune]
            self._rows["adapt"].append(rows[: config.adapt])
            self._rows["tune"].append(rows[config.adapt :])
            task.rows["test"] = rng.permutation(task.rows["test"])[: config.test]
        held_out[0].rows["test"] = rng.permutation(held_out[0].rows["test"])[: config.held]
        self.test = probe(self.learner, self.scenario, "test")
        self._held = probe(self._held_learner, held_out, "test")
        began = time.perf_counter()
        self.models = [self._model(t, work) for t in range(len(self.scenario))]
        self.training_seconds = time.perf_counter() - began
        self.tune = self.examples("tune", range(len(self.models)))

    def _model(self, t: int, work: Path):
        path = work / f"model_{t}.safetensors"
        if path.exists():
            return {n: jnp.asarray(x) for n, x in checkpoint.load(path)[0].items()}
        config, task = self.config, self.scenario[t]
        rows = task.rows["train"]
        training = Training(epochs=config.epochs, batch=32, rate=config.rate)
        params, losses = fit(
            self.learner, self.base, self.learner.prepare(task.source.inputs[rows]),
            task.labels("train"), self.scenario.mask(t), training, seed=(config.seed, t),
        )  # fmt: skip
        checkpoint.save(path, params)
        falls = f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
        print(f"{task.name}: {len(rows)} examples, {falls}", flush=True)
        return params

    def apply(self, params, batch):
        """Logits [B, C] over each example's own columns."""
        inputs, columns = batch
        return jnp.take_along_axis(self.learner.logits(params, inputs), columns, 1)

    def examples(self, purpose: str, tasks, start: int = 0, count: int | None = None):
        """((inputs, columns), labels) of some tasks: `count` of each, from `start`, going round.

        Args:
            purpose: "adapt", "tune", or "test", which is for test-time adaptation.
        """
        parts = []
        for t in tasks:
            task = self.scenario[t]
            rows = task.rows["test"] if purpose == "test" else self._rows[purpose][t]
            chosen = np.arange(start, start + (count or len(rows))) % len(rows)
            labels = np.searchsorted(task.classes, task.source.labels[rows[chosen]])
            inputs = self.learner.prepare(task.source.inputs[rows[chosen]])
            parts.append((inputs, np.tile(self.columns[t], (len(chosen), 1)), labels))
        inputs, columns, labels = (jnp.asarray(np.concatenate(x)) for x in zip(*parts, strict=True))
        return (inputs, columns), labels

    def batches(self, purpose: str, tasks, steps: int, count: int):
        """Batches of `examples`, one for each step, going round."""
        for i in range(steps):
            yield self.examples(purpose, tasks, i * count, count)

    def score(self, tasks=None):
        """params -> accuracy on the tuning examples of some tasks, traceable."""
        (inputs, columns), labels = self.tune if tasks is None else self.examples("tune", tasks)
        size = 128 if self.config.suite == "images" else 60
        chunks = [
            ((inputs[i : i + size], columns[i : i + size]), labels[i : i + size])
            for i in range(0, len(labels), size)
        ]
        return lambda params: (
            sum(jnp.sum(self.apply(params, x).argmax(-1) == y) for x, y in chunks) / len(labels)
        )

    def evaluate(self, params, adapters=None):
        """Task-aware test accuracy of each task [T], and accuracy on the held-out task."""
        if adapters is None:
            outputs = logits(self.learner, [params], self.test)
        else:
            outputs = self._operated(params, adapters)[None]
        _, aware = accuracies(outputs, self.test)
        free, _ = accuracies(logits(self._held_learner, [params], self._held), self._held)
        return aware[0], float(free[0, 0])

    def _operated(self, params, adapters):
        """Logits of the test examples, each behind its own task's adapter."""
        features = jax.jit(self.learner.features)
        embedded = jnp.concatenate([features(params, chunk) for chunk in self.test.chunks])
        parts = [
            jm.solvers.operate(a, embedded[np.flatnonzero(self.test.task == t)])
            for t, a in enumerate(adapters)
        ]
        return np.asarray(
            head_logits(jnp.concatenate(parts), self.learner.head, self.learner.scale)
        )


def _learner(config: Config, scenario: Scenario):
    if config.suite == "images":
        return from_clip(clip.load(MINI), scenario)
    return from_bert(bert.load(MINILM), scenario, length=config.length)


def _images(config: Config, data: Path):
    per_class = -(-(config.examples + config.adapt + config.tune) // 10) + 1  # of every class
    val = 1 - config.examples / 10 / per_class
    sources = [
        npz(data / n, n, val=val, per_class=per_class, seed=config.seed) for n in config.tasks
    ]
    return suite(sources), suite([digits()])


def _text(config: Config, data: Path):
    source = clinc150(data / "clinc150")
    rng = np.random.default_rng(config.seed)
    scenario = class_incremental(source, 10)  # intents are in the order of their domains
    domains = json.loads((data / "clinc150" / "domains.json").read_text())
    for task in scenario:
        task.rows["train"] = rng.permutation(task.rows["train"])[: config.examples]
    named = (dataclasses.replace(k, name=n) for k, n in zip(scenario, domains, strict=True))
    scenario = dataclasses.replace(scenario, tasks=tuple(named))
    return scenario, suite([banking77(data / "banking77")])
