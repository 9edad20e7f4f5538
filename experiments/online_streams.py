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
last model, scored after every 260 examples or so of a task, over the classes met so far; where
labels have levels, over those of a level from its first mark on.  Deployments after the last task
are scored over the classes met; the decay of EMA and the factor of MagMax are chosen for every
method and stream on the validation images, with another seed, by the mean of the levels.

A row that is finished is in the result file, and is not run again.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from continual_table import TUNING_SEED, fill, options
from rehearsal import MERGES, methods
from rehearsal_page import PAGE, RESULTS, cell, gain, grid, points
from rehearsal_streams import SIGNS, STREAMS, Case

from jaxmerge.continual.anytime import anytime
from jaxmerge.continual.drivers import program
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import LAST
from jaxmerge.continual.seeds import alike
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
MERGED = ("EMA", "MagMax")
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


def row(name: str, label: str, case: Case, rate: float, seeds: list[int]) -> dict:
    """Figures of a method on a stream: level -> A_AUC and accuracies, a figure a seed; a curve."""
    make, levels = PLANS[name]
    optimiser, chosen, _ = methods(case, rate)[label]
    metric = "level" if levels else "met"
    began, names = time.process_time(), make(case.data["train"][1], seeds[0]).names
    setup = Setup(case.network(names), problem(metric, case), optimiser, chosen)
    curves = [curve(setup, made(name, case, s), s, metric, case.every) for s in seeds]
    final, best, scores = merged(setup, name, case, metric, seeds)
    figures = {}
    for at, level in enumerate(levels or ("",)):
        areas, lines = zip(*(found[at] for found in curves), strict=True)
        figures[level] = {
            "A_AUC": list(areas), "accuracy": {k: [a[at] for a in v] for k, v in final.items()},
            "curve": [None if np.isnan(v) else round(float(v), 4) for v in np.mean(lines, 0)],
        }  # fmt: skip
    return {"stream": name, "method": label, "setting": f"{optimiser!r} + {chosen!r}",
            "levels": figures, "merges": best, "validation": scores,
            "processor_seconds": time.process_time() - began}  # fmt: skip


def made(name: str, case: Case, seed: int, part: str = "test") -> Stream:
    """A stream of a seed."""
    plan = PLANS[name][0](case.data["train"][1], seed)
    return planned(plan, case.data["train"], case.data[part])


def curve(setup: Setup, stream: Stream, seed: int, metric: str, every: int) -> list:
    """Of every level (one, where labels have none): A_AUC of the model, and its accuracy at
    regular places of the stream."""
    parts = max(2, stream.rows.shape[1] // every)
    R = program(setup, stream, jax.random.key(seed), anytime=parts).R[LAST][metric]
    if not np.isfinite(R).all():  # it diverged
        return [(np.nan, np.full(MARKS, np.nan))] * len(levels_of(stream))
    found = []
    for level in levels_of(stream):
        line = anytime(stream, R, level)
        places = line.examples / np.sum(stream.weight)
        share = np.linspace(0, 1, MARKS)
        found.append((line.A_AUC, np.interp(share, places, line.accuracy, left=np.nan)))
    return found


def merged(
    setup: Setup, name: str, case: Case, metric: str, seeds: list[int]
) -> tuple[dict, dict, dict]:
    """Deployment -> test accuracies of seeds and levels after the last task; merge -> its setting;
    merge -> setting -> accuracy on the validation images of another seed, mean of the levels."""
    every = {f"{k} {v:g}": MERGES[k][0](v) for k in MERGED for v in MERGES[k][1]}
    setup = dataclasses.replace(setup, merges=every)
    figures = []
    streams = alike([made(name, case, s) for s in seeds])  # most of them are compiled once
    streams = [made(name, case, TUNING_SEED, "validation"), *streams]
    for seed, stream in zip((TUNING_SEED, *seeds), streams, strict=True):
        R = program(setup, stream, jax.random.key(seed), score_every=stream.tasks).R
        figures.append({k: at_the_end(stream, np.asarray(f[metric][-1])) for k, f in R.items()})
    validation, *figures = figures
    scores = {
        k: {v: float(np.mean(validation[f"{k} {v:g}"])) for v in MERGES[k][1]} for k in MERGED
    }
    best = {k: max(s, key=lambda v, s=s: (np.nan_to_num(s[v]), v == 1)) for k, s in scores.items()}
    deployed = {LAST: LAST} | {k: f"{k} {v:g}" for k, v in best.items()}
    return {k: [f[n] for f in figures] for k, n in deployed.items()}, best, scores


def at_the_end(stream: Stream, figures: np.ndarray) -> list[float]:
    """Of every level the accuracy over the classes met, of figures [groups] after the last task."""
    if not np.isfinite(figures).all():
        return [np.nan] * len(levels_of(stream))
    R = np.broadcast_to(figures, (stream.tasks, 1, len(figures)))
    return [float(anytime(stream, R, level).accuracy[-1]) for level in levels_of(stream)]


def levels_of(stream: Stream) -> list[int | None]:
    """The levels of its labels, or None alone."""
    info: Any = stream.info
    return np.unique(info["level"]).tolist() if "level" in info else [None]


def problem(metric: str, case: Case) -> Spec:
    """The columns that compete: those of the tasks so far, or of the label's own level."""
    columns = "level" if metric == "level" else "seen"
    return classification(columns=columns, metrics=(metric,), view=case.view)


def table(report: dict) -> str:
    """The tables of the page."""
    by = {(r["stream"], r["method"]): r for r in report["rows"]}
    labels = [m for m in METHODS if any(m == method for _, method in by)]
    lines = [(s, level) for s, (_, levels) in PLANS.items() for level in levels or ("",)]

    def cells(of: Callable[[dict], str]) -> list[list[str]]:
        named = lambda s, level: f"{s}, {level}" if level else s
        found = lambda s, level, m: of(by[s, m]["levels"][level]) if (s, m) in by else "–"
        return [[named(*x), *(found(*x, m) for m in labels)] for x in lines]

    def deployed(figures: dict) -> str:
        accuracy = figures["accuracy"]
        gains = [points(gain(accuracy, k)) for k in MERGED]
        return f"{cell(accuracy[LAST])} ({' / '.join(gains)})"

    def chosen(s: str, m: str) -> str:
        return " / ".join(f"{by[s, m]['merges'][k]:g}" for k in MERGED) if (s, m) in by else "–"

    seconds = sum(r["processor_seconds"] for r in report["rows"])
    areas = grid(["A_AUC", *labels], cells(lambda f: cell(f["A_AUC"])))
    last = grid(["After the last task", *labels], cells(deployed))
    settings = grid(
        ["EMA / MagMax", *labels], [[s, *(chosen(s, m) for m in labels)] for s in PLANS]
    )
    return (
        f"`{report['command']}`, CPU cores shared with other work, {seconds:.0f} processor "
        f"seconds, {len(report['seeds'])} seeds:\n\n{areas}\n\nThe last model, and how many points "
        "EMA / MagMax of the models of the tasks are above it, in bold where in every seed:\n\n"
        f"{last}\n\nThe decay of EMA and the factor of MagMax, chosen on validation images of "
        f"another seed:\n\n{settings}"
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
    case = STREAMS["gtsrb"][0](given["data"], IMAGES, path.with_suffix(".vectors.npz"))
    rows = report.get("rows", [])
    done = {(r["stream"], r["method"]) for r in rows}
    for name, label in ((s, m) for s in PLANS for m in METHODS if (s, m) not in done):
        rows.append(new := row(name, label, case, rate, seeds))
        report = {
            "schema": "jaxmerge.online_streams/1", "rows": rows, "seeds": seeds,
            "command": "python experiments/online_streams.py data=DATA/gtsrb",
            "machine": machine(), "versions": versions(),
        }  # fmt: skip
        checkpoint.replace(path, json.dumps(report, indent=1) + "\n")
        areas = {k: cell(v["A_AUC"]) for k, v in new["levels"].items()}
        print(name, label, areas, f"{new['processor_seconds']:.0f} s", flush=True)
        jax.clear_caches()  # the system limits how many pieces of memory a process maps


if __name__ == "__main__":
    main()
