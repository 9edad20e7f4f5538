"""One data set as seven streams: do rehearsal and merging help where tasks are not clean?

    python experiments/online_streams.py data=DATA/gtsrb
    python experiments/online_streams.py page             # writes it into docs/rehearsal.md

The 6,000 traffic signs of `rehearsal.py` (GTSRB at 16 x 16, the perceptron 768-400-400 from random
weights, batches of 10, 430 images in the buffer, its methods with their settings) arrive as

* clean tasks, i-Blurry and Si-Blurry (50 % of the classes disjoint, 10 % of the others' examples
  blurry): five tasks;
* recurring: ten tasks of nine classes drawn anew, so that classes come back and a few never come;
* HLE single and dual: the five groups of shape and colour first, then their signs, six tasks;
* HLE multi: three colours, then the five groups, then the signs.

One pass, three seeds (weights, draws of the stream).  A_AUC is the area under the accuracy of the
last model, scored after every so many examples, over the classes met so far; where labels have
levels, over those of a level from its first mark on.  Deployments after the last task are scored
over the classes met; the decay of EMA and the factor of MagMax are those that `rehearsal.py` chose
for the method, with clean tasks, on validation examples of another seed.

A row that is finished is in the result file, and is not run again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from continual_table import fill, options
from rehearsal import MERGES, methods
from rehearsal_page import PAGE, RESULTS, gain, grid, points
from rehearsal_streams import SIGNS, STREAMS, Case
from spread import percent

from jaxmerge.continual.anytime import anytime
from jaxmerge.continual.drivers import program
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST
from jaxmerge.continual.stream_records import Setup, Stream
from jaxmerge.continual.streams import planned
from jaxmerge.core.specs import Spec
from jaxmerge.data.streams.blurry import i_blurry, si_blurry
from jaxmerge.data.streams.hierarchy import expansion
from jaxmerge.data.streams.plans import Plan, online
from jaxmerge.data.streams.recurring import recurring
from jaxmerge.data.streams.trees import GTSRB, hierarchy
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training import checkpoint

OUT = RESULTS / "online_streams.json"
IMAGES, MARKS = 6000, 40
METHODS = ("fine-tuning", "ER", "ER, equal shares", "DER++", "CLIB", "PL-FMS")
COLOURS = {
    "red and white": ("prohibitory", "danger"),
    "blue": ("mandatory",),
    "others": ("derestriction", "of its own form"),
}
TWO = hierarchy(SIGNS, GTSRB)
THREE = hierarchy(SIGNS, GTSRB, COLOURS)
PLANS: dict[str, tuple[Callable[[np.ndarray, int], Plan], tuple[str, ...]]] = {
    "clean tasks": (lambda y, s: online(y, 5, s, names=SIGNS), ()),
    "i-Blurry": (lambda y, s: i_blurry(y, 5, 50, 10, s, names=SIGNS), ()),
    "Si-Blurry": (lambda y, s: si_blurry(y, 5, 50, 10, s, names=SIGNS), ()),
    "recurring": (lambda y, s: recurring(y, 10, 9, s, names=SIGNS), ()),
    "HLE single": (lambda y, s: expansion(y, TWO, "single", 6, s), ("groups", "signs")),
    "HLE dual": (lambda y, s: expansion(y, TWO, "dual", 6, s), ("groups", "signs")),
    "HLE multi": (
        lambda y, s: expansion(y, THREE, "multi", seed=s),
        ("colours", "groups", "signs"),
    ),
}  # stream -> labels, seed -> plan; its levels, the coarsest first


def learnt(setup: Setup, stream: Stream, key: Any, metric: str, every: int, levels: int) -> list:
    """Of every level (one, where labels have none): A_AUC and curve of the last model, and the
    accuracy of all deployments at the end, over the classes met."""
    R = program(setup, stream, key, anytime=stream.rows.shape[1] // every).R
    found = []
    for level in range(levels) if levels else (None,):
        curve = anytime(stream, R[LAST][metric], level)
        last = {k: anytime(stream, f[metric][:, -1:], level).accuracy[-1] for k, f in R.items()}
        share = np.interp(np.linspace(0, 1, MARKS), curve.examples / total(stream), curve.accuracy,
                          left=np.nan)  # fmt: skip
        found.append((curve.A_AUC, share, {k: float(a) for k, a in last.items()}))
    return found


def total(stream: Stream) -> float:
    """Examples of the stream."""
    return float(np.sum(stream.weight))


def row(name: str, label: str, case: Case, rate: float, best: dict, seeds: list[int]) -> dict:
    """Figures of a method on a stream: level -> A_AUC and accuracies, a figure a seed; a curve."""
    make, levels = PLANS[name]
    optimiser, chosen, _ = methods(case, rate)[label]
    began, (x, y), every = time.process_time(), case.data["train"], []
    for seed in seeds:
        plan = make(y, seed)
        metric = "level" if levels else "met"
        setup = Setup(
            case.network(plan.names), problem(metric, case), optimiser, chosen,
            merges={k: MERGES[k][0](best[k]) for k in ("EMA", "MagMax")},
        )  # fmt: skip
        stream = planned(plan, (x, y), case.data["test"])
        every.append(learnt(setup, stream, jax.random.key(seed), metric, case.every, len(levels)))
    figures = {}
    for at, level in enumerate(levels or ("",)):
        areas, curves, last = zip(*(found[at] for found in every), strict=True)
        figures[level] = {
            "A_AUC": list(areas), "accuracy": {k: [a[k] for a in last] for k in last[0]},
            "curve": [None if np.isnan(v) else round(float(v), 4) for v in np.mean(curves, 0)],
        }  # fmt: skip
    return {"stream": name, "method": label, "setting": f"{optimiser!r} + {chosen!r}",
            "levels": figures, "processor_seconds": time.process_time() - began}  # fmt: skip


def problem(metric: str, case: Case) -> Spec:
    """The columns that compete: those of the tasks so far, or of the label's own level."""
    columns = "level" if metric == "level" else "seen"
    return classification(columns=columns, metrics=(metric,), view=case.view)


def table(report: dict) -> str:
    """The tables of the page."""
    by = {(r["stream"], r["method"]): r["levels"] for r in report["rows"]}
    labels = [m for m in METHODS if any(m == method for _, method in by)]
    lines = [(s, level) for s, (_, levels) in PLANS.items() for level in levels or ("",)]

    def cells(of: Callable[[dict], str]) -> list[list[str]]:
        named = lambda s, level: f"{s}, {level}" if level else s
        found = lambda s, level, m: of(by[s, m][level]) if (s, m) in by else "–"
        return [[named(*x), *(found(*x, m) for m in labels)] for x in lines]

    def merged(figures: dict) -> str:
        accuracy = figures["accuracy"]
        gains = [points(gain(accuracy, k)) for k in ("EMA", "MagMax")]
        return f"{percent(accuracy[LAST])} ({' / '.join(gains)})"

    seconds = sum(r["processor_seconds"] for r in report["rows"])
    areas = grid(["A_AUC", *labels], cells(lambda f: percent(f["A_AUC"])))
    last = grid(["After the last task", *labels], cells(merged))
    return (
        f"`{report['command']}`, CPU cores shared with other work, {seconds:.0f} processor "
        f"seconds, {len(report['seeds'])} seeds:\n\n{areas}\n\nThe last model, and how many points "
        "EMA / MagMax of the models of the tasks are above it, in bold where in every seed:\n\n"
        + last
    )


def main() -> None:
    if sys.argv[1:2] == ["page"]:
        return fill(PAGE, {"online streams": table(json.loads(OUT.read_text(encoding="utf-8")))})
    given = options(data="", seeds=3, out=str(OUT))
    path, seeds = Path(given["out"]), list(range(given["seeds"]))
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if report.get("seeds", seeds) != seeds:
        raise SystemExit(f"{path} has seeds={report['seeds']}, asked for {seeds}: give out=.")
    chosen = json.loads((RESULTS / "rehearsal_gtsrb.json").read_text(encoding="utf-8"))
    rate = float(max(chosen["tried"], key=lambda r: chosen["tried"][r]))
    best = {r["method"]: r["merges"] for r in chosen["rows"] if r.get("merges")}
    case = STREAMS["gtsrb"][0](given["data"], IMAGES, path.with_suffix(".vectors.npz"))
    rows = report.get("rows", [])
    done = {(r["stream"], r["method"]) for r in rows}
    for name, label in ((s, m) for s in PLANS for m in METHODS if (s, m) not in done):
        rows.append(new := row(name, label, case, rate, best[label], seeds))
        report = {
            "schema": "jaxmerge.online_streams/1", "rows": rows, "seeds": seeds,
            "command": "python experiments/online_streams.py data=DATA/gtsrb",
            "machine": machine(), "versions": versions(),
        }  # fmt: skip
        checkpoint.replace(path, json.dumps(report, indent=1) + "\n")
        areas = {k: percent(v["A_AUC"]) for k, v in new["levels"].items()}
        print(name, label, areas, f"{new['processor_seconds']:.0f} s", flush=True)
        jax.clear_caches()  # a program for every stream; a process may map only so many


if __name__ == "__main__":
    main()
