"""CTP on two towers and pairs of images and captions: does it keep what plain contrast forgets?

    python experiments/ctp_towers.py            # about four minutes of a core
    python experiments/ctp_towers.py page       # writes the table into docs/rehearsal.md

Both towers of `mini-2k` learn pairs of an image and its class in a template of scikit-learn's
digits, five tasks of two digits, by CLIP's contrast within a batch; `ctp` adds its teacher, queue
and preserved likenesses, or its teacher and queue alone (``topology=0``).  Accuracy is over all ten
digits: an image counts where the nearest of ten class vectors, each the mean of the templates under
the text tower as it is then, is its own.

Captions of a class are alike, so a batch of two classes contrasts many that are: on people's
captions all of this may be otherwise.  Three epochs of AdamW in batches of 16; the rate (by joint
training, which favours no method) and the merges' factors (by fine-tuning) are chosen on the
validation images of another seed; CTP's numbers are the paper's, but for a queue of 64 pairs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from continual_table import TUNING_SEED, fill, options
from spread import percent

import jaxmerge as jm
from jaxmerge.continual.contrast import unit
from jaxmerge.continual.drivers import joint, program
from jaxmerge.continual.methods import ctp
from jaxmerge.continual.optimisers import cosine
from jaxmerge.continual.problems import pairs
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import split
from jaxmerge.core.types import Leaves
from jaxmerge.data.digits import digits
from jaxmerge.data.streams.scenario import class_order
from jaxmerge.models.clip.learner import captioned, clip_towers, opened
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training import checkpoint

PAGE = Path(__file__).parents[1] / "docs" / "rehearsal.md"
RESULT = Path(__file__).parent / "results" / "ctp_towers.json"
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
FACTORS = (0.06, 0.09, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4)
METHODS = {
    "fine-tuning": (), "CTP, no topology": (ctp(queue=64, topology=0.0),), "CTP": (ctp(queue=64),),
}  # fmt: skip
WITH_FACTOR = {"average": jm.average, "MagMax": jm.magmax}
MERGES = (*WITH_FACTOR, "three-way average")


class Pairs:
    """The data, the towers and their score."""

    def __init__(self):
        self.source, own = digits(), opened("mini-2k")
        self.towers = clip_towers("mini-2k")
        self.model = self.towers.build()
        self.base = {n: np.asarray(p) for n, p in self.model.init(jax.random.key(0)).items()}
        self.part = {s: captioned(own, self.source, s) for s in ("train", "val", "test")}
        texts = [t.replace("{}", c) for c in self.source.classes for t in self.source.templates]
        self.prompts = jnp.asarray(own.tokenizer(texts).astype(np.int32))
        self.classify = jax.jit(self._classify)

    def _classify(self, params: Leaves, images):
        out = self.model.apply(params, {"image": images, "text": self.prompts}, 0).aux
        texts = unit(out["text"]).reshape(len(self.source.classes), -1, out["text"].shape[1])
        return jnp.argmax(unit(out["image"]) @ unit(texts.mean(1)).T, -1)

    def score(self, params: Leaves, part: str) -> float:
        """Accuracy over all digits."""
        inputs, labels = self.part[part]
        return float(np.mean(np.asarray(self.classify(params, inputs["image"])) == labels))

    def stream(self, seed: int):
        """Five tasks of two digits."""
        order = np.reshape(class_order(10, seed), (5, 2)).tolist()
        return split(self.part["train"], self.part["test"], order, batch=16, epochs=3, seed=seed)

    def models(self, seed: int, rate: float, methods: tuple) -> list[Leaves]:
        """The towers after every task."""
        setup = Setup(self.towers, pairs(metrics=("same_class",)), cosine(rate), methods)
        key = jax.random.key(seed)
        every = program(setup, self.stream(seed), key, score_every=0, models=True).models
        return [{n: np.asarray(p[t]) for n, p in every.items()} for t in range(5)]

    def together(self, seed: int, rate: float) -> Leaves:
        """The towers after all digits at once."""
        key = jax.random.key(seed)
        setup = Setup(self.towers, pairs(metrics=("same_class",)), cosine(rate))
        return program(setup, joint(self.stream(seed), key), key, score_every=0).state.params


def chosen(task: Pairs) -> dict:
    """The rate by joint training, then a factor a merge by fine-tuning; and all that was tried."""
    rates = {r: task.score(task.together(TUNING_SEED, r), "val") for r in RATES}
    rate = max(rates, key=lambda r: rates[r])
    models = task.models(TUNING_SEED, rate, ())
    tried = {
        k: {f: task.score(jm.merge(m(factor=f), task.base, models), "val") for f in FACTORS}
        for k, m in WITH_FACTOR.items()
    }
    factors = {k: max(v, key=lambda f, v=v: v[f]) for k, v in tried.items()}
    return {"rate": rate, "factors": factors, "tried": {"rate": rates, **tried}}


def figures(task: Pairs, seed: int, settings: dict) -> dict[str, float]:
    """Accuracy of every row of one seed."""
    rows = {"zero-shot": task.score(task.base, "test")}
    for label, methods in METHODS.items():
        models = task.models(seed, settings["rate"], methods)
        rows[label] = task.score(models[-1], "test")
        merges = {k: m(factor=settings["factors"][k]) for k, m in WITH_FACTOR.items()}
        for k in MERGES:
            merged = jm.merge(merges.get(k) or jm.three_way_ema(), task.base, models)
            rows[f"{label}, {k}"] = task.score(merged, "test")
    rows["joint"] = task.score(task.together(seed, settings["rate"]), "test")
    return rows


def write_page() -> None:
    """The table of the page."""
    report = json.loads(RESULT.read_text())
    found, settings = report["accuracy"], report["settings"]
    cell = lambda k: percent(found[k])
    head = ["Training", "last model", *(f"{k}{_factor(settings, k)}" for k in MERGES)]
    lines = ["| " + " | ".join(head) + " |", "| :-- |" + " --: |" * (len(head) - 1)]
    for label in METHODS:
        cells = [label, cell(label), *(cell(f"{label}, {k}") for k in MERGES)]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        f"`{report['command']}`: ten handwritten digits, five tasks of two, AdamW "
        f"{settings['rate']:g}, {len(found['joint'])} seeds, {report['processor_seconds']:.0f} "
        f"processor seconds; zero-shot {100 * np.mean(found['zero-shot']):.1f} %, joint training "
        f"{cell('joint')} %:"
    )
    fill(PAGE, {"ctp": "\n\n".join([note, "\n".join(lines)])})


def _factor(settings: dict, merge: str) -> str:
    return f", factor {settings['factors'][merge]:g}" if merge in settings["factors"] else ""


def main() -> None:
    if sys.argv[1:2] == ["page"]:
        return write_page()
    given = options(seeds=3, out=str(RESULT))
    task = Pairs()
    settings = chosen(task)
    print(settings, flush=True)
    rows = []
    for seed in range(given["seeds"]):
        rows.append(figures(task, seed, settings))
        print(seed, {k: round(100 * x, 1) for k, x in rows[-1].items()}, flush=True)
    report = {
        "schema": "jaxmerge.ctp_towers/1", "command": "python experiments/ctp_towers.py",
        "settings": settings, "accuracy": {k: [r[k] for r in rows] for k in rows[0]},
        "processor_seconds": time.process_time(), "versions": versions(), "machine": machine(),
    }  # fmt: skip
    checkpoint.replace(Path(given["out"]), json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
