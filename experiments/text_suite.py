"""Eight text tasks on all-MiniLM-L6-v2: every data-free method merges their models.

    python experiments/text_suite.py --data DATA --work runs/suite \\
        --save experiments/results/text_suite.json

A run that is stopped goes on: models lie in the work folder, rows in the result file.

The tasks are five sets of sentence classification (TREC's six coarse classes, SST-2, CR, MPQA,
Subj), Banking77, and CLINC150 in two halves of five domains each.  One model is fine-tuned a task,
alone and from the same weights, under the frozen head of its class names: two epochs of at most
1,500 sentences, the learning rate of the text streams.  The methods are all registered ones that
take eight models and no data and give one model; OPCM and continual TIES also in ten orders of
arrival.  Where a method has a factor, half, once, 1.5 and twice its default are tried on 150
validation sentences a task (a merge is linear in it, so it is computed once); all other arguments
stay at their defaults.  Accuracies are of 300 test sentences a task, task-aware, as in the papers
on merging independent tasks; "normalised" divides them by those of the eight single models.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import time
from pathlib import Path

import jax
import numpy as np

import jaxmerge as jm
from jaxmerge.cli.methods import describe
from jaxmerge.core.composition import stochastic
from jaxmerge.core.types import Merge
from jaxmerge.data.sources import SPLITS, Source
from jaxmerge.data.streams.builders import suite
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.data.text import banking77, clinc150, sentences
from jaxmerge.drivers import memory
from jaxmerge.evaluation.predict import accuracies, logits, probe
from jaxmerge.models import bert
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training import checkpoint
from jaxmerge.training.fit import Training, fit
from jaxmerge.training.learner import from_bert

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SETS = ("trec", "sst2", "cr", "mpqa", "subj")
TASKS = 8
COUNTS = {"train": 1500, "val": 150, "test": 300}  # sentences of a task
SHARES = (0.5, 1.0, 1.5, 2.0)  # of a factor's default
ORDERS = 10
DEAR = ("pcb", "iso_c", "tsv_m", "iso_cts", "wudi", "dop")  # run last; they decompose, or step
STEPWISE = ("opcm", "continual_ties")  # what depends on the order of arrival
TRAINING = Training(epochs=2, batch=32, rate=1e-4)


def tasks(data: Path) -> Scenario:
    """The eight tasks, each cut to `COUNTS` drawn once."""
    intents = clinc150(data / "clinc150")  # in the order of their domains
    middle = len(intents.classes) // 2
    sources = [
        *(sentences(data / "sentence_cls", name) for name in SETS),
        banking77(data / "banking77"),
        part(intents, "clinc150, first half", 0, middle),
        part(intents, "clinc150, second half", middle, len(intents.classes)),
    ]
    return suite([drawn(source, np.random.default_rng(0)) for source in sources])


def part(source: Source, name: str, first: int, end: int) -> Source:
    """The classes from `first` up to `end`, as a source of its own."""
    splits = {s: source.rows(s, classes=range(first, end)) for s in SPLITS}
    labels = np.where((source.labels >= first) & (source.labels < end), source.labels - first, 0)
    return dataclasses.replace(
        source, name=name, labels=labels, classes=source.classes[first:end], splits=splits
    )


def drawn(source: Source, rng: np.random.Generator) -> Source:
    """At most `COUNTS` sentences of each split."""
    splits = {s: rng.permutation(source.splits[s])[: COUNTS[s]] for s in SPLITS}
    return dataclasses.replace(source, splits=splits)


class Suite:
    """The base, the eight models and their examples."""

    def __init__(self, data: Path, work: Path):
        self.scenario = tasks(data)
        self.learner = from_bert(bert.load(MINILM), self.scenario, length=32)
        self.base = self.learner.params
        self.val, self.test = (probe(self.learner, self.scenario, s) for s in ("val", "test"))
        trained = [self.model(t, work) for t in range(TASKS)]
        self.models = [params for params, _ in trained]
        self.seconds = sum(seconds for _, seconds in trained)

    def model(self, t: int, work: Path):
        """The model of one task, trained or read, and the seconds that its training took."""
        task = self.scenario[t]
        path = work / f"{task.name}.safetensors"
        if path.exists():
            return checkpoint.load(path)
        began = time.perf_counter()
        inputs = self.learner.prepare(task.source.inputs[task.rows["train"]])
        params, losses = fit(
            self.learner, self.base, inputs, task.labels("train"), self.scenario.mask(t),
            TRAINING, seed=(0, t),
        )  # fmt: skip
        print(f"{task.name}: {len(inputs)} sentences, loss {losses[0]:.2f} to {losses[-1]:.2f}")
        seconds = time.perf_counter() - began
        checkpoint.save(path, params, seconds)
        return params, seconds

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
        if merge.needs or least > TASKS or (most is not None and most < TASKS):
            continue
        default = parameters["factor"].default if "factor" in parameters else None
        factors_of[name] = () if default is None else tuple(s * default for s in SHARES)
    return dict(
        sorted(factors_of.items(), key=lambda item: item[0] in DEAR and DEAR.index(item[0]) + 1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--save", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = json.loads(options.save.read_text())["rows"] if options.save.exists() else {}
    problem, factors_of = Suite(options.data, options.work), methods()
    orders = {f"{n}, order {k}": (n, k) for n in STEPWISE for k in range(ORDERS)}

    def write() -> None:
        about = {
            "tasks": [t.name for t in problem.scenario],
            "counts": COUNTS,
            "train": [len(t.rows["train"]) for t in problem.scenario],
            "test": [len(t.rows["test"]) for t in problem.scenario],
            "training_seconds": problem.seconds,
            "versions": versions(),
            "machine": machine(),
            "left": [n for n in (*factors_of, *orders) if n not in rows],
        }
        checkpoint.replace(options.save, json.dumps({**about, "rows": rows}, indent=1) + "\n")

    def row(label: str, params, began: float | None = None, **more) -> None:
        correct = problem.aware(params, problem.test)
        if began is not None:
            more["seconds"] = time.perf_counter() - began
        rows[label] = {"each": correct.tolist(), **more}
        write()
        print(f"{label:28} {100 * correct.mean():5.1f} %", more, flush=True)

    if "zero-shot" not in rows:
        single = [problem.aware(m, problem.test)[t] for t, m in enumerate(problem.models)]
        rows["single models"] = {"each": [float(x) for x in single]}
        row("zero-shot", problem.base)
    write()
    for name, factors in factors_of.items():
        if name in rows:
            continue
        began, make = time.perf_counter(), jm.get(name)
        if factors:
            one = problem.merged(make(factor=1.0))
            scaled = lambda f, one=one: jm.merge(jm.linear([f]), problem.base, [one])
            scores = [float(problem.aware(scaled(f), problem.val).mean()) for f in factors]
            best = factors[int(np.argmax(scores))]
            row(name, scaled(best), began, factor=best, factors=factors, validation=scores)
        else:
            row(name, problem.merged(make()), began)
    for label, (name, k) in orders.items():
        if label not in rows:
            order = np.random.default_rng(k).permutation(TASKS).tolist()
            row(label, problem.merged(jm.get(name)(), order), order=order)


if __name__ == "__main__":
    main()
