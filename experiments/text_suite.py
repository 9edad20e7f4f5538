"""Eight tasks on all-MiniLM-L6-v2: every data-free method merges the models, OPCM in ten orders.

    python experiments/text_suite.py --data /path/to/data --work /tmp/suite --save text_suite.json

Each task is a data set of texts, on which the encoder is fine-tuned on its own under the frozen
head of its class names (`TASKS` holds the examples of each class; three epochs, AdamW 1e-4 under a
cosine): questions (TREC), sentiment (SST-2, CR), opinions (MPQA), subjectivity (Subj), intents of
bank customers (Banking77) and of assistants (CLINC150, each half of its domains a task).  The
methods are all registered ones that take eight models and no data and give one model.  Where a
method has a factor, half, once, 1.5 and twice its default are tried on the validation split and the
best is tested; all other arguments stay at their defaults.  Accuracies are task-aware, as in the
papers on merging independent tasks; "normalised" divides them by those of the eight single models.

Fine-tuned models are kept in the work folder, so a second start goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

import jaxmerge as jm
from jaxmerge.cli.methods import describe
from jaxmerge.core.composition import stochastic
from jaxmerge.core.types import Merge
from jaxmerge.data.sources import SPLITS, Source
from jaxmerge.data.splits import few
from jaxmerge.data.streams.builders import suite
from jaxmerge.data.text import banking77, clinc150, sentences
from jaxmerge.drivers import memory
from jaxmerge.evaluation.predict import accuracies, logits, probe
from jaxmerge.models import bert
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training import checkpoint
from jaxmerge.training.fit import Training, fit
from jaxmerge.training.learner import from_bert

TASKS = {  # examples of each class for training, validation, test
    "trec": (250, 20, 60),
    "sst2": (400, 50, 150),
    "cr": (400, 50, 150),
    "mpqa": (400, 50, 150),
    "subj": (400, 50, 150),
    "banking77": (20, 2, 4),
    "clinc150, domains 1 to 5": (20, 2, 4),
    "clinc150, domains 6 to 10": (20, 2, 4),
}
MODEL, LENGTH = "sentence-transformers/all-MiniLM-L6-v2", 40  # tokens; longer texts are cut
SHARES = (0.5, 1.0, 1.5, 2.0)  # of a factor's default
ORDERS = 10
STEPWISE = ("opcm", "continual_ties")  # what depends on the order of arrival
TRAINING = Training(epochs=3, batch=32, rate=1e-4)


def sources(data: Path) -> list[Source]:
    """The data sets, in the order of `TASKS`."""
    intents = clinc150(data / "clinc150")
    every = [
        *(sentences(data / "sentence_cls", n) for n in ("trec", "sst2", "cr", "mpqa", "subj")),
        banking77(data / "banking77"),
        *(part(intents, classes) for classes in (range(75), range(75, 150))),
    ]
    counts = (dict(zip(SPLITS, c, strict=True)) for c in TASKS.values())
    return [
        dataclasses.replace(few(source, c), name=name)
        for name, source, c in zip(TASKS, every, counts, strict=True)
    ]


def part(source: Source, classes: range) -> Source:
    """The examples of some classes that follow each other."""
    rows = {s: source.rows(s, classes) for s in SPLITS}
    chosen = np.concatenate(list(rows.values()))
    ends = np.cumsum([0, *map(len, rows.values())])
    return dataclasses.replace(
        source,
        inputs=source.inputs[chosen],
        labels=source.labels[chosen] - classes.start,
        classes=source.classes[classes.start : classes.stop],
        splits={s: np.arange(ends[i], ends[i + 1]) for i, s in enumerate(rows)},
    )


class Suite:
    """The base, the eight models and their examples."""

    def __init__(self, data: Path, work: Path):
        self.scenario = suite(sources(data))
        self.learner = from_bert(bert.load(MODEL), self.scenario, length=LENGTH)
        self.base = self.learner.params
        self.val, self.test = (probe(self.learner, self.scenario, s) for s in ("val", "test"))
        began = time.perf_counter()
        self.models = [self.model(t, work) for t in range(len(self.scenario))]
        self.seconds = time.perf_counter() - began

    def model(self, t: int, work: Path):
        """The model of one task, trained or read."""
        task = self.scenario[t]
        path = work / f"{task.name}.safetensors"
        if path.exists():
            return checkpoint.load(path)[0]
        inputs = self.learner.prepare(task.source.inputs[task.rows["train"]])
        params, losses = fit(
            self.learner, self.base, inputs, task.labels("train"), self.scenario.mask(t),
            TRAINING, seed=(0, t),
        )  # fmt: skip
        print(f"{task.name}: {len(inputs)} texts, loss {losses[0]:.2f} to {losses[-1]:.2f}")
        checkpoint.save(path, params)
        return params

    def aware(self, params, data) -> np.ndarray:
        """Task-aware accuracy of each task, [T]."""
        return accuracies(logits(self.learner, [params], data), data)[1][0]

    def merged(self, method: Merge, order=None):
        """The merge of all models, folded one by one in an order."""
        key = jax.random.key(0) if stochastic(method) else None
        state = memory.init(method, self.base, key=key)
        for t in range(len(self.models)) if order is None else order:
            state = memory.update(method, state, self.base, self.models[t])
        return memory.merged(method, state, self.base)


def methods() -> dict[str, tuple]:
    """name -> factors (none: the method has none), of every data-free method for eight models."""
    factors_of = {}
    for name, factory in jm.REGISTRY.items():
        parameters = inspect.signature(factory).parameters
        free = all(p.default is not p.empty for p in parameters.values())
        if describe(name)["kind"] != "method" or not free or "task" in parameters:
            continue
        merge = factory()
        least, most = merge.models if isinstance(merge, Merge) else (9, None)
        if merge.needs or least > len(TASKS) or (most is not None and most < len(TASKS)):
            continue
        default = parameters["factor"].default if "factor" in parameters else None
        factors_of[name] = () if default is None else tuple(s * default for s in SHARES)
    return factors_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--save", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "rows.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    problem = Suite(options.data, options.work)

    def row(label: str, params, **more) -> None:
        correct = problem.aware(params, problem.test)
        rows[label] = {"each": correct.tolist(), **more}
        file.write_text(json.dumps(rows))
        print(f"{label:28} {100 * correct.mean():5.1f} %", more, flush=True)

    if "zero-shot" not in rows:
        row("zero-shot", problem.base)
        single = [problem.aware(m, problem.test)[t] for t, m in enumerate(problem.models)]
        rows["single models"] = {"each": [float(x) for x in single]}
    for name, factors in methods().items():
        if name in rows:
            continue
        began, best = time.perf_counter(), None
        make = partial(jm.get(name))
        if factors:
            merges = [problem.merged(make(factor=f)) for f in factors]
            scores = [float(problem.aware(m, problem.val).mean()) for m in merges]
            best = int(np.argmax(scores))
            row(name, merges[best], factor=factors[best], factors=factors, validation=scores)
        else:
            row(name, problem.merged(make()))
        rows[name]["seconds"] = time.perf_counter() - began
    for name in STEPWISE:
        for k in range(ORDERS):
            label = f"{name}, order {k}"
            if label not in rows:
                order = np.random.default_rng(k).permutation(len(TASKS)).tolist()
                row(label, problem.merged(jm.get(name)(), order), order=order)
    about = {
        "tasks": [t.name for t in problem.scenario],
        "counts": {k: list(v) for k, v in TASKS.items()},
        "train": [len(t.rows["train"]) for t in problem.scenario],
        "test": [len(t.rows["test"]) for t in problem.scenario],
        "training_seconds": problem.seconds,
        "versions": versions(),
        "machine": machine(),
    }
    options.save.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
