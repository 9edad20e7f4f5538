"""Projection or merging? Methods that learn in subspaces beside merges, on one stream, with costs.

    python experiments/projection.py                       # a few minutes of one core
    python experiments/projection.py methods=GPM,MagMax

The stream and the training are those of ``jaxmerge quickstart``: five tasks of two handwritten
digits, the image tower of `mini-2k` under a frozen text head, AdamW under a cosine, three epochs of
batches of 32, three seeds with class orders of their own.  The figure is the accuracy over all ten
digits after the last task (no task is given), the backward transfer that of the tasks.

Settings are chosen on the 270 validation images of another seed (`continual_table.py`); the costs
are of one seed, with compilation, and what is remembered beside the model between tasks.

The table is in docs/subspaces.md (``python experiments/projection.py page``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
from continual_table import Cell, options, table

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
from jaxmerge.data.streams.scenario import class_incremental, class_order
from jaxmerge.models import clip
from jaxmerge.training.learner import from_clip

METHODS = (
    "fine-tuning", "MagMax", "OPCM", "GPM", "GPM + MagMax", "OSFT", "CoSO", "EWC", "replay of 40",
    "joint",
)  # fmt: skip
KERNELS = "^vision/block.*kernel"  # of the tower's blocks
HOW = Quickstart()
ADAMW = cosine(HOW.lr, HOW.warmup, HOW.weight_decay, HOW.clip)
RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs/subspaces.md"


def setups(model) -> dict[str, tuple[str, list[Setup]]]:
    """label -> what is deployed, settings to choose from."""
    problem = classification("own", ("accuracy", "aware"))

    def made(*methods, optimiser=ADAMW, start="last", **merges):
        return Setup(model, problem, optimiser, methods, merges, start)

    own_adam = by_name(((KERNELS, sgd(1.0)), (".*", cosine(HOW.lr, HOW.warmup))))
    factors = (0.35, 0.5)
    return {
        "fine-tuning": (LAST, [made()]),
        "MagMax": ("MagMax", [made(MagMax=jm.magmax(f)) for f in factors]),
        "OPCM": ("OPCM", [made(OPCM=jm.opcm(), start="base")]),
        "GPM": (LAST, [made(gpm(e, project=KERNELS, free=".")) for e in (0.9, 0.97)]),
        "GPM + MagMax": (
            "MagMax",
            [made(gpm(0.9, project=KERNELS, free="."), MagMax=jm.magmax(f)) for f in factors],
        ),
        "OSFT": (LAST, [made(osft(r, KERNELS)) for r in (0.25, 0.5)]),
        "CoSO": (
            LAST,
            [made(coso(15, 50, 5, rate=r, target=KERNELS), optimiser=own_adam)
             for r in (1e-4, 1e-3)],
        ),
        "EWC": (LAST, [made(ewc(s, examples=64)) for s in (1.0, 100.0)]),
        "replay of 40": (LAST, [made(er(40))]),
    }  # fmt: skip


def cells() -> list[Cell]:
    """The rows."""
    source = digits()
    learner = from_clip(clip.load(weights_folder(HOW.model)), class_incremental(source, 5))
    model = learner.model(params=True)
    part = lambda name: (
        learner.prepare(source.inputs[source.splits[name]]),
        source.labels[source.splits[name]],
    )
    train, val, test = part("train"), part("val"), part("test")

    def stream(seed, validation):
        order = np.reshape(class_order(10, seed), (5, 2)).tolist()
        groups = val if validation else test
        return split(train, groups, order, batch=HOW.batch, epochs=HOW.epochs, seed=seed)

    mixed = lambda seed, validation: joint(stream(seed, validation), jax.random.key(seed))
    protocol = (
        "handwritten digits, 5 tasks of two, 3 epochs, batch 32, `mini-2k` under a frozen text "
        "head, AdamW 3e-4; 360 test images"
    )
    rows = [
        Cell("class", label, tuple(settings), stream, "accuracy", protocol, True, deployed)
        for label, (deployed, settings) in setups(model).items()
    ]
    every = Setup(model, classification("all", ("accuracy", "aware")), ADAMW)
    return [*rows, Cell("class", "joint", (every,), mixed, "accuracy", protocol)]


def lines(report: dict) -> str:
    """The table of the page."""
    rows = [r for r in report["rows"] if len(r["accuracy"]) == len(report["seeds"])]
    missing = [m for m in METHODS if m not in {r["method"] for r in rows}]
    note = (
        f"`{report['command'].replace(' data=DATA', '')}`: {report['rows'][0]['protocol']}; mean "
        f"and standard deviation of {len(report['seeds'])} seeds; costs are of one seed."
        + f" Not run yet: {', '.join(missing)}."
        * bool(missing)
    )
    head = "| Method | Accuracy % | BWT % | Processor s | Remembered, models | Setting |"
    out = [note, "", head, "|:--|--:|--:|--:|--:|:--|"]
    mean = lambda x: f"{100 * np.mean(x):.1f} ± {100 * np.std(x):.1f}"
    for r in sorted(rows, key=lambda r: -np.mean(r["accuracy"])):
        runs = len(r["accuracy"]) + len(r["tried"])
        transfer = r.get("backward transfer")
        chosen = r["setting"].partition(" + ")[2] or "–"
        out.append(
            f"| {r['method']} | {mean(r['accuracy'])} | {mean(transfer) if transfer else '–'} | "
            f"{r['processor_seconds'] / runs:.0f} | {r['memory']:.2f} | "
            + (f"`{chosen}` |" if chosen != "–" else "– |")
        )
    return "\n".join(out)


def page() -> None:
    """Write the table into docs/subspaces.md."""
    report = json.loads((RESULTS / "projection.json").read_text(encoding="utf-8"))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- projection -->\n")
    after = rest.partition("<!-- /projection -->\n")[2]
    table_of = f"<!-- projection -->\n{lines(report)}\n<!-- /projection -->\n"
    PAGE.write_text(before + table_of + after, encoding="utf-8")


def main() -> None:
    if sys.argv[1:] == ["page"]:
        return page()
    chosen = options(methods=[], seeds=3, out=str(RESULTS / "projection.json"))
    rows = [c for c in cells() if not chosen["methods"] or c.method in chosen["methods"]]
    return table("projection", rows, list(range(chosen["seeds"])), chosen["out"], "")


if __name__ == "__main__":
    main()
