"""Merges that look at data against those that do not: independent image tasks on `mini`.

    python experiments/data_driven.py --data DIR [--out experiments/results/data_driven.json]

DIR holds the .npz data sets named in `Config.tasks`, in the form of `jaxmerge.data.npz`.  One model
a task is fine-tuned from `mini`; every method merges them.  Figures are task-aware test accuracies
(a task's own classes), averaged, and MergeBench's: normalised by the individual models; forgetting,
as what is left of the zero-shot accuracy on a held-out task (handwritten digits); merge seconds
plus the seconds of validation for choosing the factor.

Nothing is chosen on test data: the validation split is halved, one half adapts (statistics,
gradients, entropy: "adapt"), the other chooses factors ("tune").

Two curves show how FW-Merging scales: the accuracy on two tasks against the number of irrelevant
models in the pool, and the accuracy on all tasks against the number of relevant ones.

Time and figures of the last run are in the result file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmerge as jm
from jaxmerge import solvers, statistics
from jaxmerge.continual.evaluate import accuracies, logits, probe
from jaxmerge.continual.learner import from_clip
from jaxmerge.continual.machine import machine, peak_memory, versions
from jaxmerge.continual.streams import suite
from jaxmerge.continual.train import Training, fit
from jaxmerge.data.digits import digits
from jaxmerge.data.npz import npz
from jaxmerge.models import clip

ASSETS = Path(jm.__file__).parent / "assets"


@dataclasses.dataclass(frozen=True)
class Config:
    """What decides the figures."""

    tasks: tuple[str, ...] = ("mnist", "fashion_mnist", "sign_digits", "usps", "cifar10")
    examples: int = 600  # training examples a task, about
    adapt: int = 64  # unlabelled or labelled examples a task that adaptation may see
    tune: int = 128  # labelled examples a task that choose factors
    test: int = 500
    epochs: int = 8
    rate: float = 3e-4
    factors: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5)
    seed: int = 0


def get_config() -> Config:
    """The configuration of the committed result."""
    return Config()


class Suite:
    """The fine-tuned models, and the data of each purpose, of all tasks."""

    def __init__(self, config: Config, data: Path):
        sources = []
        for name in config.tasks:
            classes = len(np.load(data / name / f"{name}_test.npz")["class_names"])
            each = -(-(config.examples + 2 * (config.adapt + config.tune)) // classes)
            sources.append(npz(data / name, name, val=0.4, per_class=each, seed=config.seed))
        self.scenario = suite(sources)
        self.learner = from_clip(clip.load(ASSETS / "mini"), self.scenario)
        rng = np.random.default_rng(config.seed)
        self.adapt, self.tune = [], []
        for task in self.scenario:
            rows = rng.permutation(task.rows["val"])
            adapt, tune = np.split(rows[: config.adapt + config.tune], [config.adapt])
            for target, some in ((self.adapt, adapt), (self.tune, tune)):
                images = jnp.asarray(self.learner.prepare(task.source.inputs[some]))
                columns = task.offset + jnp.asarray(task.source.labels[some], jnp.int32)
                target.append((images, columns))
            task.rows["test"] = rng.permutation(task.rows["test"])[: config.test]
        self.test = probe(self.learner, self.scenario, "test")
        held = suite([digits()])
        self.held_learner = from_clip(clip.load(ASSETS / "mini"), held)
        self.held = probe(self.held_learner, held, "test")
        self.own = [self.scenario.mask(t) for t in range(len(self.scenario))]
        self.base = {n: jnp.asarray(x) for n, x in self.learner.params.items()}
        self.models = [self._finetune(t, config) for t in range(len(self.scenario))]

    def _finetune(self, t: int, config: Config):
        task = self.scenario[t]
        images = self.learner.prepare(task.source.inputs[task.rows["train"]])
        training = Training(epochs=config.epochs, batch=32, rate=config.rate)
        params, _ = fit(
            self.learner, self.base, images, task.labels("train"), self.own[t], training,
            seed=(config.seed, t),
        )  # fmt: skip
        return params

    def apply(self, t: int):
        """(params, images) -> logits over the own columns of task t."""
        columns = np.flatnonzero(self.own[t])
        return lambda params, images: self.learner.logits(params, images)[:, columns]

    def local(self, data, t: int):
        """Images and labels counted from the task's own first column."""
        images, columns = data[t]
        return images, columns - int(np.flatnonzero(self.own[t])[0])

    def loss(self, tasks, kind):
        """Mean over tasks of `kind(apply)`; a batch is a tuple with an entry for each task."""
        each = [kind(self.apply(t)) for t in tasks]
        return lambda params, batch: (
            sum(one(params, b) for one, b in zip(each, batch, strict=True)) / len(each)
        )

    def score(self, tasks):
        """Mean accuracy on the tuning examples of some tasks, traceable."""
        parts = [(self.apply(t), *self.local(self.tune, t)) for t in tasks]
        return lambda params: (
            sum(jnp.mean(apply(params, x).argmax(-1) == y) for apply, x, y in parts) / len(parts)
        )

    def evaluate(self, params):
        """Task-aware test accuracies [T], and the accuracy on the held-out task."""
        stacked = {n: jnp.asarray(x)[None] for n, x in params.items()}
        _, aware = accuracies(logits(self.learner, stacked, self.test), self.test)
        free, _ = accuracies(logits(self.held_learner, stacked, self.held), self.held)
        return aware[0], float(free[0, 0])


def tuned(suite: Suite, build, factors, tasks):
    """The merge of the factor with the best accuracy on the tuning examples, and that factor."""
    found = solvers.grid(lambda c: build(c[0]), suite.score(tasks), [factors], at_once=4)
    factor = float(found.coefficients[0])
    return build(factor), factor


def methods(suite: Suite, config: Config):
    """name -> (what it sees, () -> (params, note))."""
    base, models, every = suite.base, suite.models, range(len(suite.models))
    inputs = [suite.adapt[t][0] for t in every]
    labelled = tuple(suite.local(suite.adapt, t) for t in every)
    extras: dict[str, list] = {}

    def statistic(kind):
        if kind not in extras:
            make = {
                "fisher": lambda t: statistics.normalised(
                    statistics.fisher(suite.apply(t), models[t], [(inputs[t], None)], kind="true")
                ),
                "gram": lambda t: statistics.gram(suite.apply(t), models[t], [inputs[t]]),
            }[kind]
            extras[kind] = [statistics.extras(make(t)) for t in every]
        return extras[kind]

    def free(name, key=None):
        def go():
            build = lambda f: jm.merge(jm.get(name)(factor=f), base, models, key=key)
            params, factor = tuned(suite, build, config.factors, every)
            return params, f"factor {factor:.1f}"

        return go

    def solve(make, steps, batch):
        def go():
            solver = make()
            params, history = solvers.solve(solver, [batch] * steps)
            return params, f"loss {history[0]['loss']:.3f} to {history[-1]['loss']:.3f}"

        return go

    def learned_masks():
        masks = []
        for t in every:
            loss = suite.loss([t], solvers.cross_entropy)
            solver = solvers.localize(
                loss, base, models[t], density=0.1, penalty=0.1, optimizer=optax.adam(0.1)
            )
            state = solver.init()
            for _ in range(20):
                state, _ = solver.step(state, (labelled[t],))
            masks.append({"mask": solvers.mask(state, 0.1)})
        build = lambda f: jm.merge(jm.stitch(f), base, models, extras=masks)
        params, factor = tuned(suite, build, config.factors, every)
        return params, f"factor {factor:.1f}"

    entropy = suite.loss(every, solvers.entropy)
    supervised = suite.loss(every, solvers.cross_entropy)
    arithmetic = lambda: jm.merge(jm.task_arithmetic(0.3), base, models)
    adam = optax.adam(1e-2)
    ada = lambda **how: solvers.adamerging(entropy, base, models, optimizer=adam, **how)
    return {
        "average": ("nothing", lambda: (jm.merge(jm.mean(), base, models), "")),
        "task arithmetic": ("tune", free("task_arithmetic")),
        "MagMax": ("tune", free("magmax")),
        "TIES": ("tune", free("ties")),
        "Localize-and-Stitch, dataless": ("tune", free("localize_and_stitch")),
        "Localize-and-Stitch, learned": ("labels", learned_masks),
        "Fisher": (
            "inputs",
            lambda: (
                jm.merge(jm.fisher_merging(), base, models, extras=statistic("fisher")),
                "true Fisher, normalised",
            ),
        ),
        "RegMean": (
            "inputs",
            lambda: (jm.merge(jm.regmean(0.9), base, models, extras=statistic("gram")), ""),
        ),
        "RegMean++": (
            "inputs",
            lambda: (
                solvers.regmean_plus(
                    suite.learner.features, base, models, [[x] for x in inputs], off_diagonal=0.9
                ),
                "",
            ),
        ),
        "AdaMerging, task-wise": (
            "inputs",
            solve(lambda: ada(granularity="task"), 60, tuple(inputs)),
        ),
        "AdaMerging, layer-wise": (
            "inputs",
            solve(lambda: ada(), 60, tuple(inputs)),
        ),
        "AdaMerging++, layer-wise": (
            "inputs",
            solve(lambda: ada(disentangle=0.2), 60, tuple(inputs)),
        ),
        "FW-Merging, hard": (
            "labels",
            solve(
                lambda: solvers.frank_wolfe(
                    supervised, models, start=arithmetic(), step_size=0.1, factor=0.3,
                    oracle="cosine",
                ),
                10, labelled,
            ),
        ),
        "FW-Merging, soft": (
            "labels",
            solve(
                lambda: solvers.soft_frank_wolfe(supervised, models, start=arithmetic()),
                10, labelled,
            ),
        ),
    }  # fmt: skip


def curves(suite: Suite, config: Config):
    """Accuracy against the number of irrelevant, and of relevant, models in the pool."""
    count = len(suite.models)

    def run(tasks, pool):
        data = tuple(suite.local(suite.adapt, t) for t in tasks)
        loss = suite.loss(tasks, solvers.cross_entropy)
        solver = solvers.soft_frank_wolfe(loss, pool, vertices=min(3, len(pool)))
        soft, _ = solvers.solve(solver, [data] * 8)
        build = lambda f: jm.merge(jm.task_arithmetic(f), suite.base, pool)
        plain, _ = tuned(suite, build, config.factors, tasks)
        mean = lambda params: float(np.mean(suite.evaluate(params)[0][list(tasks)]))
        return {"pool": len(pool), "FW-Merging, soft": mean(soft), "task arithmetic": mean(plain)}

    first = (0, 1)
    return {
        "irrelevant": [run(first, suite.models[: 2 + k]) for k in range(count - 1)],
        "relevant": [run(tuple(range(count)), suite.models[: 1 + k]) for k in range(count)],
    }


def main(config: Config, data: Path, out: Path) -> None:
    """Run all methods, write the result, print the table."""
    began = time.perf_counter()
    found = Suite(config, data)
    single = np.array([found.evaluate(m)[0][t] for t, m in enumerate(found.models)])
    zero, held = found.evaluate(found.base)
    rows = [{"method": "zero-shot", "sees": "nothing", "tasks": zero.tolist(), "held_out": held}]
    trained = time.perf_counter() - began
    for name, (sees, go) in methods(found, config).items():
        start = time.perf_counter()
        params, note = go()
        jax.block_until_ready(params)
        seconds = time.perf_counter() - start
        aware, kept = found.evaluate(params)
        rows.append({
            "method": name, "sees": sees, "tasks": aware.tolist(), "held_out": kept,
            "seconds": seconds, "peak_memory": peak_memory(), "note": note,
        })  # fmt: skip
        print(f"{name:32s} {100 * aware.mean():5.1f} %  {seconds:6.1f} s  {note}", flush=True)
    for row in rows:
        accuracy = np.array(row["tasks"])
        row["accuracy"] = float(accuracy.mean())
        row["normalised"] = float((accuracy / single).mean())
        row["retained"] = row["held_out"] / held
    result = {
        "config": dataclasses.asdict(config), "individual": single.tolist(), "rows": rows,
        "curves": curves(found, config), "training_seconds": trained,
        "seconds": time.perf_counter() - began, "machine": machine(), "versions": versions(),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"individual {100 * single.mean():.1f} %; written to {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/data_driven.json"))
    arguments = parser.parse_args()
    main(get_config(), arguments.data, arguments.out)
