"""Eight tasks on `mini`: every data-free method merges the models, OPCM one by one in ten orders.

    python experiments/mini_suite.py --data /path/to/data --work /tmp/suite --save mini_suite.json

Each task is a data set, fine-tuned from `mini` on its own under the frozen head of its class names
(`TASKS` holds the examples of each class; six epochs, the quickstart's learning rate).  The methods
are all registered ones that take eight models and no data and give one model.  Where a method has a
factor, half, once, 1.5 and twice its default are tried on the validation split and the best is
tested; all other arguments stay at their defaults.  Accuracies are task-aware, as in the papers on
merging independent tasks; "normalised" divides them by those of the eight single models.

Fine-tuned models are kept in the work folder, so a second start goes on.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from functools import partial
from importlib import resources
from pathlib import Path

import jax
import numpy as np
from mini_images import images

import jaxmerge as jm
from jaxmerge.cli.methods import describe
from jaxmerge.core.composition import stochastic
from jaxmerge.core.types import Merge
from jaxmerge.data.streams.builders import suite
from jaxmerge.drivers import memory
from jaxmerge.evaluation.predict import accuracies, logits, probe
from jaxmerge.models import clip
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training import checkpoint
from jaxmerge.training.fit import Training, fit
from jaxmerge.training.learner import from_clip

TASKS = {  # examples of each class (and domain) for training, validation, test
    "cifar10": (60, 10, 20),
    "mnist": (60, 10, 20),
    "fashion_mnist": (60, 10, 20),
    "usps": (60, 10, 20),
    "caltech101": (8, 2, 3),
    "pacs": (24, 4, 8),
    "sign_digits": (60, 10, 20),
    "omniglot8": (8, 2, 3),
}
SHARES = (0.5, 1.0, 1.5, 2.0)  # of a factor's default
ORDERS = 10
STEPWISE = ("opcm", "continual_ties")  # what depends on the order of arrival
TRAINING = Training(epochs=6, batch=32, rate=3e-4)


class Suite:
    """The base, the eight models and their examples."""

    def __init__(self, data: Path, work: Path):
        sources = [
            images(data, n, dict(zip(("train", "val", "test"), c, strict=True)))
            for n, c in TASKS.items()
        ]
        self.scenario = suite(sources)
        model = clip.load(str(resources.files("jaxmerge") / "assets" / "mini"))
        self.learner = from_clip(model, self.scenario)
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
        print(f"{task.name}: {len(inputs)} images, loss {losses[0]:.2f} to {losses[-1]:.2f}")
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
