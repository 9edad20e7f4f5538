"""Two teachers in one tower: by distillation, or by merging their weights?

    python experiments/distil_towers.py            # about three minutes of a core
    python experiments/distil_towers.py page       # writes the table into docs/rehearsal.md

The image tower of `mini-2k` is fine-tuned twice, on five of scikit-learn's ten digits each, under
the frozen text head of their names.  Then the two are one: by merges of their weights, or by a
tower that imitates both (`jaxmerge.continual.distillation`, a form of ours after SAM-CLIP) on the
images that each was trained on, heads first, then all.  Accuracy is over all ten digits; the head
of the teacher that knows a digit scores it.

Training is that of ``jaxmerge quickstart`` (AdamW 3e-4, 3 epochs); the student's two stages have as
many epochs each, under Adam.  Factors of merges and the student's rates are chosen on the
validation images of another seed.  Three seeds: class order, order of images.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from continual_table import TUNING_SEED, fill, options
from spread import percent

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
FACTORS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)
MERGES = {"average": jm.average, "MagMax": jm.magmax, "TIES": jm.ties}
RATES = tuple(itertools.product((1e-3, 1e-2), (3e-5, 1e-4, 3e-4)))  # of the heads, of the tower


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

    def score(self, towers: list[Leaves], halves: list, test: tuple) -> float:
        """Accuracy where each of two towers scores its own digits."""
        seen = [np.asarray(self.features(p, test[0])) for p in towers]
        return self.accuracy(seen, halves, test[1])

    def accuracy(self, heads: list[np.ndarray], halves: list, labels: np.ndarray) -> float:
        """Of features [N, D] of each teacher's head, which score that teacher's digits."""
        unit = [f / np.linalg.norm(f, axis=-1, keepdims=True) for f in heads]
        scores = np.full((len(labels), self.learner.head.shape[1]), -np.inf)
        for f, own in zip(unit, halves, strict=True):
            scores[:, own] = f @ np.asarray(self.learner.head)[:, own]
        return float(np.mean(scores.argmax(-1) == labels))


def fine_tuned(task: Digits, seed: int, test: tuple) -> tuple[list[Leaves], float]:
    """Both teachers, and the accuracy of joint training."""
    stream = split(task.part("train"), test, halves(seed), batch=HOW.batch, epochs=HOW.epochs,
                   seed=seed)  # fmt: skip
    key = jax.random.key(seed)
    setup = Setup(task.model, classification("own"), ADAMW, start="base")
    both = program(setup, stream, key, score_every=0, models=True).models
    setup = Setup(task.model, classification("all"), ADAMW)
    together = program(setup, joint(stream, key), key).R[LAST]["accuracy"][-1]
    teachers = [{n: np.asarray(p[k]) for n, p in both.items()} for k in range(2)]
    return teachers, float(np.mean(together))


def halves(seed: int) -> list[list[int]]:
    """The digits of each teacher."""
    return np.reshape(class_order(10, seed), (2, 5)).tolist()


def imitated(task: Digits, seed: int, teachers: list[Leaves], rates: Iterable) -> Iterator[Leaves]:
    """A student for every pair of rates: its weights, in turn."""
    images, labels = task.part("train")
    own = [images[np.isin(labels, half)] for half in halves(seed)]
    examples = [(x, np.asarray(task.features(p, x))) for x, p in zip(own, teachers, strict=True)]
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
    seed, test = TUNING_SEED, task.part("val")
    teachers, _ = fine_tuned(task, seed, test)
    one = lambda m, x: jm.merge(m(factor=x), task.learner.params, teachers)
    found = {
        k: {x: task.score([one(m, x)] * 2, halves(seed), test) for x in FACTORS}
        for k, m in MERGES.items()
    }
    students = imitated(task, seed, teachers, RATES)
    found["distilled"] = {
        r: of_student(task, p, seed, test) for r, p in zip(RATES, students, strict=True)
    }
    return {
        "chosen": {k: max(v, key=lambda x, v=v: v[x]) for k, v in found.items()},
        "tried": {k: {str(x): a for x, a in v.items()} for k, v in found.items()},
    }


def figures(task: Digits, seed: int, settings: dict[str, Any]) -> dict[str, float]:
    """Accuracies of one seed on the test images."""
    test, own, base = task.part("test"), halves(seed), task.learner.params
    teachers, together = fine_tuned(task, seed, test)
    (student,) = imitated(task, seed, teachers, [settings["distilled"]])
    merges = {k: jm.merge(m(factor=settings[k]), base, teachers) for k, m in MERGES.items()}
    return {
        "zero-shot": task.score([base] * 2, own, test),
        "one teacher": float(np.mean([task.score([p] * 2, own, test) for p in teachers])),
        "two towers, each for its digits": task.score(teachers, own, test),
        "distilled": of_student(task, student, seed, test),
        **{k: task.score([p] * 2, own, test) for k, p in merges.items()},
        "joint": together,
    }


def write_page() -> None:
    """The table of the page."""
    report = json.loads(RESULT.read_text())
    settings = report["settings"]["chosen"]
    said = {k: f"factor {x}" for k, x in settings.items()}
    said["distilled"] = "Adam {} (heads), {} (tower)".format(*settings["distilled"])
    lines = ["| Tower | Accuracy % | Setting |", "| :-- | --: | :-- |"]
    for k, row in sorted(report["accuracy"].items(), key=lambda kv: np.mean(kv[1])):
        lines.append(f"| {k} | {percent(row)} | {said.get(k, '–')} |")
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
    rows = [figures(task, seed, settings["chosen"]) for seed in range(given["seeds"])]
    report = {
        "schema": "jaxmerge.distil_towers/1", "command": "python experiments/distil_towers.py",
        "settings": settings, "accuracy": {k: [r[k] for r in rows] for k in rows[0]},
        "processor_seconds": time.process_time(), "versions": versions(), "machine": machine(),
    }  # fmt: skip
    checkpoint.replace(Path(given["out"]), json.dumps(report, indent=1) + "\n")
    for k, x in report["accuracy"].items():
        print(f"{k:28} {percent(x)}")


if __name__ == "__main__":
    main()
