"""Figures of ours beside those that were published: how far apart, and by which protocol.

`published.json` holds what was published, with its source, and which row of ours is beside it;
`reproduction.py` writes the tables into the documentation.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from spread import deviation

ROOT = Path(__file__).parent
RESULTS = ROOT / "results"
SCENARIOS = {
    "class": "class-incremental",
    "domain": "domain-incremental",
    "task": "task-incremental",
}
HEADLINE = ("gpm", "trgp", "cuber", "agem", "er", "ewc", "joint")  # protocols of GPM's table
FAR = 0.3  # points from a published figure: from there on a row is listed, with its reason


def read(name: str) -> dict | None:
    """A result file, or None where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def published() -> list[dict]:
    """Published figures: where they stand, and which row of ours is beside them."""
    return json.loads((ROOT / "published.json").read_text(encoding="utf-8"))


def percent(row: dict) -> str:
    """Mean and standard deviation over seeds."""
    return spread(row["accuracy"], 1)


def spread(figures: list[float], digits: int) -> str:
    """Mean in percent and, of several, the sample standard deviation."""
    mean = f"{100 * np.mean(figures):.{digits}f}"
    return mean + f" +- {100 * deviation(figures):.{digits}f}" * (len(figures) > 1)


class Distance(NamedTuple):
    """How far a figure of ours is from the published one.

    Attributes:
        what: "accuracy" or "backward transfer".
        published, ours: mean and standard deviation, in percent.
        points: ours minus published.
        deviations: that in standard deviations of both together; None where there are none.
    """

    what: str
    published: str
    ours: str
    points: float
    deviations: float | None


def far(p: dict) -> list[Distance]:
    """The figures of a published row that ours are more than `FAR` points away from."""
    hit, found = row_of(*p["ours"]) if p["ours"] else None, []
    for what, key in (("accuracy", "published"), ("backward transfer", "backward")):
        figure = re.fullmatch(r"(-?[\d.]+)(?: \+- ([\d.]+))?", p.get(key) or "")
        if hit and figure and what in hit:
            both = np.hypot(float(figure[2] or 0), 100 * deviation(hit[what]))
            points = 100 * np.mean(hit[what]) - float(figure[1])
            of = Distance(
                what, figure[0], spread(hit[what], 2), points, points / both if both else None
            )
            found += [of] if abs(points) > FAR else []
    return found


def distances() -> list[str]:
    """Every figure that is far from the published one, with what is known of the reason."""

    def reason(p: dict, d: Distance) -> str:
        near = d.deviations is not None and abs(d.deviations) <= 1
        return p.get("apart") or ("within what seeds differ by" if near else "not known")

    rows = [
        [p["method"], p["protocol"], d.what, d.published, d.ours, f"{d.points:+.1f}",
         f"{d.deviations:+.1f}" if d.deviations is not None else "–",
         reason(p, d)]
        for p in published()
        for d in far(p)
    ]  # fmt: skip
    head = ["Method", "Protocol", "Figure", "Published", "Ours", "Points apart"]
    return grid([*head, "In standard deviations", "Reason"], rows)


def headline() -> list[str]:
    """Permuted MNIST by the protocol of GPM's authors, beside what they and others published."""
    rows = []
    known = {
        p["ours"][1]: p for p in published() if p["ours"] and p["ours"][0] == "published_mnist"
    }
    for protocol in HEADLINE:
        p = known[protocol]
        own = row_of(*p["ours"])
        ours = ["–"] * 7
        if own:
            transfer = own.get("backward transfer")
            seeds = len(own["accuracy"])
            ours = [
                spread(own["accuracy"], 2), spread(transfer, 2) if transfer else "–", str(seeds),
                f"{own['processor_seconds'] / (seeds + len(own['tried'])):.0f}",
                f"{own['memory']:.1f}", f"`{own['setting']}`", str(max(1, len(own["tried"]))),
            ]  # fmt: skip
        rows.append([p["method"], p["published"], ours[0], p.get("backward", "–"), *ours[1:]])
    head = ["Method", "Published accuracy", "Ours", "Published BWT", "Ours", "Seeds"]
    more = ["Processor s a seed", "Remembered, sizes of the model", "Setting", "Of so many"]
    return grid([*head, *more], rows)


def on_a_gpu() -> str:
    """What was timed on a GPU, and of what the ratio to torch is known."""
    few, many = read("continual_steps_gpu"), read("continual_steps_gpu_64")
    gpm = read("continual_gpm_cpu")
    if not (few and many and gpm):
        return ""
    device = many["machine"]["device"]
    return (
        f"Seeds as one `vmap`: on an {device} {few['seeds']} seeds of this network under SGD cost "
        f"{few['cost of all, wall']:.2f} and {many['seeds']} seeds {many['cost of all, wall']:.2f} "
        "of the time of one (`results/continual_steps_gpu.json`, `continual_steps_gpu_64.json`); "
        "GPM itself was not timed on a GPU. A plain torch loop with GPM's projectors takes "
        f"{gpm['times as fast as torch']:.1f} times as long on a core: one extrapolation from a "
        "thousand steps of a first and of a later task, for GPM alone "
        "(`continual_gpm_cpu.json`, a measurement apart from this table: by it a seed of ours "
        f"takes {gpm['one seed, processor seconds']:.0f} processor seconds)."
    )


def benchmark() -> list[str]:
    """Split MNIST by its benchmark's protocol, ours and in brackets what was published."""
    known = {tuple(p["ours"][1:]): p["published"] for p in published() if p["ours"]}
    scenarios = ("task", "domain", "class")
    methods = dict.fromkeys(m for s, m in known if s in scenarios)

    def cell(scenario, method):
        row = row_of("published_mnist", scenario, method)
        return f"{percent(row) if row else '–'} ({known.get((scenario, method), '–')})"

    rows = [[m, *(cell(s, m) for s in scenarios)] for m in methods]
    return grid(["Method", *(SCENARIOS[s] for s in scenarios)], rows)


def grid(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return [line(head), "|" + " :-- |" * len(head), *map(line, rows), ""]


def row_of(name: str, scenario: str, method: str) -> dict | None:
    """A row of a result file."""
    rows = (read(name) or {"rows": []})["rows"]
    return next((r for r in rows if (r["scenario"], r["method"]) == (scenario, method)), None)
