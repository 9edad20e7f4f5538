"""Two teachers in one tower: by distillation, or by merging their weights?

    python experiments/distil_towers.py            # about three minutes of a core
    python experiments/distil_towers.py page       # writes the table into docs/rehearsal.md

The image tower of `mini-2k` is fine-tuned twice, on five of scikit-learn's ten digits each, under
the frozen text head of their names.  Then the two are one: by merges of their weights, or by a
tower that imitates both (`jaxmerge.continual.distillation`, a form of ours after SAM-CLIP) on the
images that each was trained on, heads first, then all.  Accuracy is over all ten digits; the head
of the teacher that knows a digit scores it.

Training is that of ``jaxmerge quickstart`` (AdamW 3e-4, 3 epochs); the student's two stages have as
many epochs each, under Adam.  Factors of merges and the rate of the student's tower are chosen on
the validation images of another seed (there heads at 1e-2 were up to two points worse than at
1e-3).  Three seeds: class order, order of images.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from continual_table import TUNING_SEED, fill, options

import jaxmerge as jm
from jaxmerge.cli.quickstart import Quickstart, weights_folder
from jaxmerge.continual.distillation import heads_above, imitation, taught
from jaxmerge.continual.drivers import joint, program
from jaxmerge.continual.methods import train_only
from jaxmerge.continual.optimisers import adam, by_name, cosine
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import split
from jaxmerge.core.types import Leaves
from jaxmerge.data.digits import digits
from jaxmerge.data.streams.scenario import class_incremental, class_order
from jaxmerge.models import clip
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training import checkpoint
from jaxmerge.training.learner import from_clip
from jaxmerge.training.model_learner import from_weights

HOW = Quickstart()
PAGE = Path(__file__).parents[1] / "docs" / "rehearsal.md"
RESULT = Path(__file__).parent / "results" / "distil_towers.json"
ADAMW = cosine(HOW.lr, HOW.warmup, HOW.weight_decay, HOW.clip)
FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4)
MERGES = {"average": jm.average, "MagMax": jm.magmax, "TIES": jm.ties}
RATES = (1e-3, 3e-5), (1e-3, 1e-4), (1e-3, 3e-4)  # of the heads, of the tower


class Digits:
    """The data, the tower, and what is read of a seed."""

    def __init__(self):
        self.source = digits()
        scenario = class_incremental(self.source, 2)
        self.learner = from_clip(clip.load(weights_folder(HOW.model)), scenario)
        self.model = self.learner.model(params=True)
        self.features = jax.jit(self.learner.features)

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Images as the tower reads them, and labels: "train", "val" or "test"."""
        rows = self.source.splits[name]
        return self.learner.prepare(self.source.inputs[rows]), self.source.labels[rows]

    def accuracy(self, heads: list[np.ndarray], halves: list, labels: np.ndarray) -> float:
        """Of features [N, D] of each teacher's head, which score that teacher's digits."""
        unit = [f / np.linalg.norm(f, axis=-1, keepdims=True) for f in heads]
        scores = np.full((len(labels), self.learner.head.shape[1]), -np.inf)
        for f, own in zip(unit, halves, strict=True):
            scores[:, own] = f @ np.asarray(self.learner.head)[:, own]
        return float(np.mean(scores.argmax(-1) == labels))


def merged(task: Digits, seed: int, test: tuple, factors: dict[str, float]) -> tuple[Any, dict]:
    """Both teachers' weights, [2, ...], and accuracies: of their merges, of joint training.

    Args:
        factors: of each merge; without one, a merge is scored with every factor.
    """
    stream = split(task.part("train"), test, halves(seed), batch=HOW.batch, epochs=HOW.epochs,
                   seed=seed)  # fmt: skip
    merges = {(k, x): m(factor=x) for k, m in MERGES.items() for x in FACTORS}
    merges = {f"{k} {x}": m for (k, x), m in merges.items() if factors.get(k, x) == x}
    key = jax.random.key(seed)
    last = lambda result, name: float(np.mean(np.asarray(result.R[name]["accuracy"])[-1]))
    setup = Setup(task.model, classification("own"), ADAMW, (), merges, "base")
    result = program(setup, stream, key, models=True)
    found = {k: last(result, k) for k in merges}
    setup = Setup(task.model, classification("all"), ADAMW)
    found["joint"] = last(program(setup, joint(stream, key), key), LAST)
    return result.models, found


def halves(seed: int) -> list[list[int]]:
    """The digits of each teacher."""
    return np.reshape(class_order(10, seed), (2, 5)).tolist()


def imitated(task: Digits, seed: int, teachers: Leaves, rates: list[tuple[float, float]]):
    """A student for every pair of rates: its weights, in turn."""
    each = [{n: p[k] for n, p in teachers.items()} for k in range(2)]
    images, labels = task.part("train")
    own = [images[np.isin(labels, half)] for half in halves(seed)]
    examples = [(x, np.asarray(task.features(p, x))) for x, p in zip(own, each, strict=True)]
    stream = taught(examples, examples, batch=HOW.batch, epochs=HOW.epochs, seed=seed)
    student = heads_above(task.model, task.learner.head.shape[0])
    key = jax.random.key(seed)
    for of_heads, of_tower in rates:
        first = Setup(student, imitation(), adam(of_heads), (train_only("^heads/"),))
        params = program(first, stream, key, score_every=0).state.params
        rules = by_name((("heads/.*", adam(of_heads)), (".*", adam(of_tower))))
        second = Setup(from_weights(student, params), imitation(), rules)
        yield program(second, stream, key, score_every=0).state.params


def of_student(task: Digits, params: Leaves, seed: int, test: tuple) -> float:
    """Accuracy of a student."""
    images, labels = test
    tower = {n: p for n, p in params.items() if n != "heads/kernel"}
    seen = np.asarray(task.features(tower, images))
    heads = [seen @ np.asarray(h) for h in params["heads/kernel"]]
    return task.accuracy(heads, halves(seed), labels)


def chosen(task: Digits) -> dict[str, Any]:
    """Factors and rates by the validation images of the tuning seed, and all that was tried."""
    test = task.part("val")
    teachers, found = merged(task, TUNING_SEED, test, {})
    students = imitated(task, TUNING_SEED, teachers, RATES)
    tried = [of_student(task, p, TUNING_SEED, test) for p in students]
    best = lambda k: max(FACTORS, key=lambda x: found[f"{k} {x}"])
    return {
        "factors": {k: best(k) for k in MERGES},
        "rates": RATES[int(np.argmax(tried))],
        "tried": found | {f"distilled {a} {b}": t for (a, b), t in zip(RATES, tried, strict=True)},
    }


def figures(task: Digits, seed: int, settings: dict[str, Any]) -> dict[str, float]:
    """Accuracies of one seed on the test images."""
    test = task.part("test")
    teachers, found = merged(task, seed, test, settings["factors"])
    alone = [np.asarray(task.features({n: p[k] for n, p in teachers.items()}, test[0]))
             for k in range(2)]  # fmt: skip
    zero = np.asarray(task.features(task.learner.params, test[0]))
    (student,) = imitated(task, seed, teachers, [tuple(settings["rates"])])
    return {
        "zero-shot": task.accuracy([zero] * 2, halves(seed), test[1]),
        "one teacher": float(np.mean([task.accuracy([f] * 2, halves(seed), test[1])
                                      for f in alone])),
        "both teachers, a head each": task.accuracy(alone, halves(seed), test[1]),
        "distilled": of_student(task, student, seed, test),
        **{k.rpartition(" ")[0] or k: v for k, v in found.items()},
    }  # fmt: skip


def write_page() -> None:
    """The table of the page."""
    report = json.loads(RESULT.read_text())
    settings = report["settings"]
    said = {k: f"factor {x}" for k, x in settings["factors"].items()}
    said["distilled"] = "rates {} (heads), {} (tower)".format(*settings["rates"])
    lines = ["| One tower | Accuracy % | Setting |", "| :-- | --: | :-- |"]
    for k, row in sorted(report["accuracy"].items(), key=lambda kv: np.mean(kv[1])):
        x = 100 * np.array(row)
        lines.append(f"| {k} | {x.mean():.1f} ± {x.std():.1f} | {said.get(k, '–')} |")
    head = (
        f"`{report['command']}`: ten handwritten digits, two teachers of five; mean and standard "
        f"deviation of {len(row)} seeds; {report['processor_seconds']:.0f} processor seconds:"
    )
    fill(PAGE, {"distilled": "\n\n".join([head, "\n".join(lines)])})


def main() -> None:
    if sys.argv[1:2] == ["page"]:
        return write_page()
    given = options(seeds=3, out=str(RESULT))
    task = Digits()
    settings = chosen(task)
    print(settings, flush=True)
    rows = [figures(task, seed, settings) for seed in range(given["seeds"])]
    report = {
        "schema": "jaxmerge.distil_towers/1", "command": "python experiments/distil_towers.py",
        "settings": settings, "accuracy": {k: [r[k] for r in rows] for k in rows[0]},
        "processor_seconds": time.process_time(), "versions": versions(), "machine": machine(),
    }  # fmt: skip
    checkpoint.replace(Path(given["out"]), json.dumps(report, indent=1) + "\n")
    for k, x in report["accuracy"].items():
        print(f"{k:28} {100 * np.mean(x):5.1f} +- {100 * np.std(x):.1f}")


if __name__ == "__main__":
    main()
