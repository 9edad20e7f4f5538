"""Projection or merging? Methods that learn in subspaces beside merges, on one stream, with costs.

    python experiments/projection.py                       # a few minutes of one core
    python experiments/projection.py methods=GPM,MagMax
    python experiments/projection.py stream=banking77 data=DATA/banking77    # an hour of two cores
    python experiments/projection.py stream=clinc150 data=DATA/clinc150      # an hour of one

* ``digits``: stream and training of ``jaxmerge quickstart``: five tasks of two handwritten digits,
  the image tower of `mini-2k` under a frozen text head.
* ``banking77``: seven tasks of eleven intents, all-MiniLM-L6-v2 under the frozen head of the
  intents' names; ten sentences an intent for training, three for validation, five of the test
  split.
* ``clinc150``: likewise, five tasks of thirty intents; five sentences an intent for training, three
  of the test split.

AdamW under a cosine, three epochs of batches of 32, three seeds with class orders of their own.
The figure is the accuracy over all classes after the last task (no task is given), the backward
transfer that of the tasks.

GPM leaves biases, norms and embeddings free: with those stopped after the first task, as its
authors have it, it had 54.8 (threshold 0.9) and 47.8 % (0.97) of the digits' validation images,
free 75.9 and 71.9.

Settings are chosen on the validation examples of another seed (`continual_table.py`), those of
CLINC150 on Banking77's: nothing is chosen on it.  The costs are of one seed, with compilation, and
what is remembered beside the model between tasks.

The tables are in docs/subspaces.md (``python experiments/projection.py page``).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import NamedTuple

import jax
import numpy as np
from continual_table import (
    Cell,
    data_set,
    described,
    known,
    options,
    table,
)
from projection_page import FILES, RESULTS, page

import jaxmerge as jm
from jaxmerge.cli.quickstart import Quickstart, weights_folder
from jaxmerge.continual.drivers import joint
from jaxmerge.continual.methods import coso, er, ewc, gpm, osft
from jaxmerge.continual.optimisers import by_name, cosine, sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import split
from jaxmerge.data.digits import digits
from jaxmerge.data.sources import Source
from jaxmerge.data.splits import few
from jaxmerge.data.streams.scenario import class_incremental, class_order
from jaxmerge.data.text import banking77, clinc150
from jaxmerge.models import bert, clip
from jaxmerge.training.learner import Learner, from_bert, from_clip

HOW = Quickstart()


class Task(NamedTuple):
    """What is learnt.

    Attributes:
        learner: a pretrained tower under a frozen head.
        source: its data.
        tasks: the classes are dealt out over so many.
        kernels: regular expression of those of the tower's blocks.
        rate: of AdamW.
        of_gpm: settings of GPM, beside its threshold.
        replayed: examples that replay stores.
        protocol: all that in words.
        chosen: result file of another stream, whose settings are taken; None: they are chosen here.
    """

    learner: Learner
    source: Source
    tasks: int
    kernels: str
    rate: float
    of_gpm: dict[str, int]
    replayed: int
    protocol: str
    chosen: str | None = None


def handwritten(data: str) -> Task:
    """The stream of the quickstart."""
    source = digits()
    learner = from_clip(clip.load(weights_folder(HOW.model)), class_incremental(source, 5))
    protocol = (
        "handwritten digits, 5 tasks of two, 3 epochs, batch 32, `mini-2k` under a frozen text "
        "head, AdamW 3e-4; 360 test images"
    )
    return Task(learner, source, 5, "^vision/block.*kernel", HOW.lr, {}, 40, protocol)


def banking(data: str) -> Task:
    """A part of Banking77."""
    counts = {"train": 10, "val": 3, "test": 5}
    source = few(data_set(banking77, data), counts)
    return intents(source, 7, "Banking77, 7 tasks of eleven intents, 10 sentences an intent")


def clinc(data: str) -> Task:
    """A part of CLINC150."""
    source = few(data_set(clinc150, data), {"train": 5, "val": 1, "test": 3})
    words = "CLINC150, 5 tasks of thirty intents, 5 sentences an intent"
    return intents(source, 5, words)._replace(chosen="projection_text")


def intents(source: Source, tasks: int, words: str) -> Task:
    """Sentences under the frozen head of their intents' names."""
    encoder = bert.load("sentence-transformers/all-MiniLM-L6-v2")
    learner = from_bert(encoder, class_incremental(source, tasks), length=24)
    protocol = (
        f"{words}, 3 epochs, batch 32, MiniLM under a frozen text head, AdamW 1e-4; "
        f"{len(source.splits['test'])} test sentences"
    )
    more = 1e-4, {"examples": 32}, len(source.classes), protocol
    return Task(learner, source, tasks, "^text/block.*kernel", *more)


STREAMS = {"digits": handwritten, "banking77": banking, "clinc150": clinc}  # of `FILES`


def setups(task: Task, model) -> dict[str, tuple[str, list[Setup]]]:
    """label -> what is deployed, settings to choose from."""
    problem = classification("own", ("accuracy", "aware"))
    adamw = cosine(task.rate, HOW.warmup, HOW.weight_decay, HOW.clip)

    def made(*methods, optimiser=adamw, start="last", **merges):
        return Setup(model, problem, optimiser, methods, merges, start)

    own_adam = by_name(((task.kernels, sgd(1.0)), (".*", cosine(task.rate, HOW.warmup))))
    projected = lambda e: gpm(e, project=task.kernels, free=".", **task.of_gpm)
    factors = (0.35, 0.5)
    return {
        "fine-tuning": (LAST, [made()]),
        "MagMax": ("MagMax", [made(MagMax=jm.magmax(f)) for f in factors]),
        "OPCM": ("OPCM", [made(OPCM=jm.opcm(), start="base")]),
        "GPM": (LAST, [made(projected(e)) for e in (0.9, 0.97)]),
        "GPM + MagMax": ("MagMax", [made(projected(0.9), MagMax=jm.magmax(f)) for f in factors]),
        "OSFT": (LAST, [made(osft(r, task.kernels)) for r in (0.25, 0.5)]),
        "CoSO": (
            LAST,
            [made(coso(15, 50, 5, rate=r, target=task.kernels), optimiser=own_adam)
             for r in (1e-4, 1e-3)],
        ),
        "EWC": (LAST, [made(ewc(s, examples=64)) for s in (1e4, 1e6, 1e7, 1e8)]),
        "replay": (LAST, [made(er(task.replayed))]),
        "joint": (LAST, [made()]),
    }  # fmt: skip


def settled(task: Task, label: str, settings: list[Setup]) -> list[Setup]:
    """The settings to choose from: where another stream decides, the one that was chosen there."""
    if task.chosen is None or len(settings) == 1:
        return settings
    stored = json.loads((RESULTS / f"{task.chosen}.json").read_text(encoding="utf-8"))
    there = {r["method"]: r["setting"] for r in stored["rows"]}[label]
    return [s for s in settings if described(s) == there]


def cells(task: Task) -> list[Cell]:
    """The rows."""
    learner, source = task.learner, task.source
    model = learner.model(params=True)
    part = lambda name: (
        learner.prepare(source.inputs[source.splits[name]]),
        source.labels[source.splits[name]],
    )
    train, val, test = part("train"), part("val"), part("test")

    def stream(seed, validation):
        classes = len(source.classes)
        order = np.reshape(class_order(classes, seed), (task.tasks, -1)).tolist()
        groups = val if validation else test
        return split(train, groups, order, batch=HOW.batch, epochs=HOW.epochs, seed=seed)

    def cell(label, deployed, settings):
        settings = settled(task, label, settings)
        if label != "joint":
            how = stream, "accuracy", task.protocol, True, deployed
            return Cell("class", label, tuple(settings), *how)
        every = classification("all", ("accuracy", "aware"))
        settings = tuple(dataclasses.replace(s, problem=every) for s in settings)
        mixed = lambda seed, validation: joint(stream(seed, validation), jax.random.key(seed))
        return Cell("class", label, settings, mixed, "accuracy", task.protocol)

    return [cell(label, *how) for label, how in setups(task, model).items()]


def main() -> None:
    if sys.argv[1:] == ["page"]:
        return page()
    chosen = options(stream="digits", data=".", methods=[], seeds=3, out="")
    known("stream", [chosen["stream"]], STREAMS)
    task = STREAMS[chosen["stream"]](chosen["data"])
    out = chosen["out"] or str(RESULTS / f"{FILES[chosen['stream']]}.json")
    more = "" if chosen["stream"] == "digits" else f"stream={chosen['stream']}"
    seeds = list(range(chosen["seeds"]))
    return table("projection", cells(task), seeds, out, more, methods=chosen["methods"])


if __name__ == "__main__":
    main()
