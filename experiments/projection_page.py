"""The tables of `projection.py` on docs/subspaces.md, and of its methods on short streams."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from continual_table import counted, fill, noted, rows_of, usual
from spread import percent

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parents[1] / "docs/subspaces.md"
METHODS = (
    "fine-tuning", "MagMax", "OPCM", "GPM", "GPM + MagMax", "OSFT", "CoSO", "EWC", "replay", "joint"
)  # fmt: skip
FILES = {  # stream -> result file
    "digits": "projection", "banking77": "projection_text", "clinc150": "projection_clinc150",
}  # fmt: skip
SHORT = (  # columns of the short streams
    "GPM", "TRGP", "CUBER", "OSFT", "CoSO", "MagMax", "fine-tuning", "ER 500",
)  # fmt: skip
SCENARIOS = {"class": "class-incremental", "domain": "domain-incremental", "task": "task given"}
STREAMS_FROM_RANDOM = {  # result file -> a row of it
    "split_mnist": "split MNIST, {}",
    "split_fashion": "split Fashion-MNIST, {}",
    "permuted_mnist": "permuted MNIST, 2,560 images a task",
    "rotated_mnist": "rotated MNIST, 2,560 images a task",
}


def lines(report: dict) -> str:
    """The table of the page."""
    rows = rows_of(report)
    seeds = usual(rows)
    missing = [m for m in METHODS if m not in {r["method"] for r in rows}]
    command = report["command"]
    if "stream=" not in command:  # digits come with scikit-learn
        command = command.replace(" data=DATA", "")
    note = (
        f"`{command}`: {report['rows'][0]['protocol']}; mean "
        f"and standard deviation of {counted(seeds)}"
        + " where no other number stands" * any(noted(r, seeds) for r in rows)
        + "; costs are of one seed."
        + f" Not run yet: {', '.join(missing)}." * bool(missing)
    )
    head = (
        "| Method | Accuracy % | BWT % | Processor s | Remembered, sizes of the model | Setting |"
    )
    out = [note, "", head, "|:--|--:|--:|--:|--:|:--|"]
    for r in sorted(rows, key=lambda r: -np.mean(r["accuracy"])):
        runs = len(r["accuracy"]) + len(r["tried"])
        transfer = r.get("backward transfer")
        chosen = r["setting"].partition(" + ")[2] or "–"
        out.append(
            f"| {r['method']} | {percent(r['accuracy'])}{noted(r, seeds)} | "
            f"{percent(transfer) if transfer else '–'} | {r['processor_seconds'] / runs:.0f} | "
            f"{r['memory']:.2f} | " + (f"`{chosen}` |" if chosen != "–" else "– |")
        )
    return "\n".join([*out, *ends(rows)])


def ends(rows: list[dict]) -> list[str]:
    """Rows whose setting was the first or the last of those that were tried, in words."""
    there = [(r["method"], list(r["tried"]), r["setting"]) for r in rows if len(r["tried"]) > 1]
    found = [f"{m} (of {len(t)})" for m, t, chosen in there if chosen in (t[0], t[-1])]
    return ["", f"Chosen at an end of what was tried: {', '.join(found)}."] if found else []


def short_streams() -> str:
    """Methods of this page on streams of one pass, from random weights: rows of other tables."""
    lines = ["| % | " + " | ".join(SHORT) + " |", "|:--|" + "--:|" * len(SHORT)]
    seeds, at_end, costs = set(), Counter(), {}
    for name, words in STREAMS_FROM_RANDOM.items():
        rows = rows_of(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        for scenario in [s for s in SCENARIOS if s in {r["scenario"] for r in rows}]:
            there = {r["method"]: r for r in rows if r["scenario"] == scenario}
            own = {m: there.get(m) or there.get(f"{m}, task given") for m in SHORT}
            show = lambda r: percent(r["accuracy"]) + "*" * ("task given" in r["method"])
            cells = [show(r) if r else "–" for r in own.values()]
            lines.append(f"| {words.format(SCENARIOS[scenario])} | " + " | ".join(cells) + " |")
            for m, r in own.items():
                if r:
                    seeds.add(len(r["accuracy"]))
                    tried = list(r["tried"])
                    at_end[m] += len(tried) > 1 and r["setting"] in (tried[0], tried[-1])
            costs = own if name == "rotated_mnist" else costs
    runs = lambda r: len(r["accuracy"]) + len(r["tried"])
    for words, of in {
        "remembered on rotated MNIST, sizes of the model": lambda r: f"{r['memory']:.1f}",
        "processor seconds of one seed there": lambda r: f"{r['processor_seconds'] / runs(r):.0f}",
    }.items():
        cells = [of(r) if r else "–" for r in costs.values()]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    ends = ", ".join(f"{m} {k}" for m, k in at_end.items() if k)
    return "\n".join(
        [
            f"Mean and standard deviation of {counted(max(seeds))}; * with the task given:",
            "", *lines, "",
            f"Rows of a column whose setting stood at an end of what was tried: {ends}.",
        ]
    )  # fmt: skip


def page() -> None:
    """Write the tables into docs/subspaces.md."""
    blocks = {"projection short": short_streams()}
    for name in FILES.values():
        file = RESULTS / f"{name}.json"
        if file.exists():
            report = json.loads(file.read_text(encoding="utf-8"))
            blocks[name.replace("_", " ")] = lines(report)
    fill(PAGE, blocks)
