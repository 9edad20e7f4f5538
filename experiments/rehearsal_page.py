"""The tables of `rehearsal.py` on docs/rehearsal.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from continual_table import fill
from rehearsal_streams import STREAMS
from spread import deviation, percent

from jaxmerge.continual.records import LAST

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "experiments" / "results", ROOT / "docs" / "rehearsal.md"
MERGED = ("mean", "EMA", "MagMax", "OPCM")
TITLES = {
    "mnist": "MNIST", "fashion": "Fashion-MNIST", "gtsrb": "GTSRB", "caltech101": "Caltech-101",
    "clinc150": "CLINC150", "cifar10": "CIFAR-10",
}  # fmt: skip


def cell(values: list[float]) -> str:
    """Mean and standard deviation in percent."""
    if not values or not np.isfinite(values).all():
        return "–"
    return percent(values)


def table(report: dict) -> str:
    """The tables of the page."""
    every, rows = (LAST, *MERGED), report["rows"]
    figures = lambda found: [cell(found.get(k, [])) for k in every]
    lines = grid(
        ["Method", "A_AUC, i-Blurry", *every],
        [[r["method"], cell(r["A_AUC"]), *figures(r["accuracy"])] for r in rows],
    )
    seconds = sum(r["processor_seconds"] for r in report["rows"])
    return (
        f"`{report['command']}`, CPU cores shared with other work, "
        f"{seconds:.0f} processor seconds, {len(report['seeds'])} seeds:\n\n"
        + lines
        + claims(rows)
        + expanded([r for r in rows if "expansion" in r])
        + settings([r for r in rows if "validation" in r])
        + chosen_rate(report.get("tried", {}))
    )


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; the first column is text."""
    lines = ["| " + " | ".join(head) + " |", "| :-- |" + " --: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in rows])


def chosen_rate(tried: dict[str, float]) -> str:
    """How the rate of plain SGD was chosen, if it was."""
    if len(tried) < 2:
        return ""
    words = ", ".join(f"{r}: {100 * a:.1f}" for r, a in tried.items())
    return (
        f"\n\nRate of plain SGD, chosen with ER on validation examples of another seed (accuracy): "
        f"{words}."
    )


def expanded(rows: list[dict]) -> str:
    """The table of the stream whose labels grow finer."""
    if not rows:
        return ""
    every = (LAST, *MERGED)
    both = lambda found, k: " / ".join(cell(found[w].get(k, [])) for w in ("groups", "classes"))
    lines = grid(
        ["Groups / classes", *every],
        [[r["method"], *(both(r["expansion"], k) for k in every)] for r in rows],
    )
    return (
        "\n\nLabels that grow finer, groups first and then classes; accuracy after the last task "
        f"among the labels of a level:\n\n{lines}"
    )


def settings(rows: list[dict]) -> str:
    """What was chosen for the merges of every method."""
    free = [k for k in MERGED if any(len(r["validation"][k]) > 1 for r in rows)]
    if not free:
        return ""

    def named(row: dict, merge: str) -> str:
        tried, value = list(map(float, row["validation"][merge])), row["merges"][merge]
        return f"**{value:g}**" if value in (min(tried), max(tried)) else f"{value:g}"

    lines = grid(["Method", *free], [[r["method"], *(named(r, k) for k in free)] for r in rows])
    return (
        "\n\nFactors of mean and MagMax and the decay of EMA, chosen on validation examples of "
        f"another seed; bold is an end of what was tried:\n\n{lines}"
    )


CLAIMS = {
    "equal shares of classes in the buffer": ("ER, equal shares", "ER"),
    "herding in place of the reservoir": ("ER, herding", "ER"),
    "features in bytes in place of examples": ("ER, features in bytes", "ER"),
    "the same under a frozen trunk": ("ER, frozen trunk, bytes", "ER, frozen trunk"),
    "stored logits in place of labels": ("DER", "ER"),
    "labels beside stored logits": ("DER++", "DER"),
    "the rate that follows the loss": ("CLIB", "CLIB, constant rate"),
    "examples of the stream beside the memory": ("PL-FMS", "CLIB"),
    "alignment of the classifier": ("SLCA", "slow trunk"),
    "what SLCA++ changes": ("SLCA++", "SLCA"),
    "prototypical feedback": ("OnPro", "OnPro, no feedback"),
    "distillation of relations": ("PRD", "PRD, no distillation"),
    "distillation from the last model": ("LwF", "fine-tuning"),
    "the start as a second teacher": ("two teachers", "LwF"),
    "class names in a frozen head": ("ER + LingoCL", "ER + LingoCL, random rows"),
    "a frozen head of names in place of a trained one": ("ER + LingoCL", "ER"),
}


def change(one: list[float], other: list[float]) -> str:
    """Mean and spread over seeds of a difference in points, and how often it is positive."""
    apart = 100 * (np.array(one) - np.array(other))
    return (
        f"{apart.mean():+.1f} ± {deviation(apart):.1f} ({(apart > 0).sum()} of {len(apart)} seeds)"
    )


def claims(every: list[dict]) -> str:
    """What parts of methods change: points of accuracy."""
    rows = {r["method"]: r["accuracy"] for r in every}
    lines = [
        f"* {what}: {change(rows[a][LAST], rows[b][LAST])}"
        for what, (a, b) in CLAIMS.items()
        if a in rows and b in rows
    ]
    head = "Points of accuracy after the last task that a part of a method changes:"
    return f"\n\n{head}\n\n" + "\n".join(lines) if lines else ""


REPLAYED = (
    "ER", "ER, equal shares", "ER, herding", "ER, frozen trunk", "ER, frozen trunk, bytes", "DER",
    "DER++", "CLIB", "CLIB, constant rate", "PL-FMS", "OnPro", "OnPro, no feedback",
    "ER + LingoCL", "ER + LingoCL, random rows",
)  # fmt: skip


def gain(figures: dict[str, list[float]], merge: str) -> np.ndarray:
    """Points of accuracy of a merge above the last model, a figure a seed; none: NaN."""
    found = figures.get(merge, [])
    if not found or not np.isfinite(found).all():
        return np.full(1, np.nan)
    return 100 * (np.array(found) - np.array(figures[LAST]))


def merging(streams: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """EMA and MagMax against the last model, method by stream, and how often each merge helps.

    Args:
        streams: stream -> method -> deployment -> accuracies.
    """
    labels = list(dict.fromkeys(m for rows in streams.values() for m in rows))
    lines = []
    for label in labels:
        gains = [[gain(rows.get(label, {}), k) for k in ("EMA", "MagMax")]
                 for rows in streams.values()]  # fmt: skip
        if np.isfinite([g.mean() for pair in gains for g in pair]).any():
            lines.append([label, *(" / ".join(map(points, pair)) for pair in gains)])
    streams_head = ["EMA / MagMax above the last model", *(TITLES[name] for name in streams)]
    kept = [rows[m] for rows in streams.values() for m in REPLAYED if len(rows.get(m, ())) > 1]
    counts = []
    for merge in MERGED:
        each = [gain(f, merge) for f in kept]
        up, down = (sum(bool((s * g > 0).all()) for g in each) for s in (1, -1))
        counts.append([merge, str(up), str(down), str(len(kept) - up - down)])
    counts_head = [
        "Against the last model",
        *(f"{x} in every seed" for x in ("better", "worse")),
        "neither",
    ]
    return (
        f"{grid(streams_head, lines)}\n\nAll merges in the {len(kept)} cells in which examples are "
        f"replayed:\n\n{grid(counts_head, counts)}"
    )


def points(gains: np.ndarray) -> str:
    """The mean of differences, in bold where all of them are positive."""
    if not np.isfinite(gains).all():
        return "–"
    return f"**{gains.mean():+.1f}**" if (gains > 0).all() else f"{gains.mean():+.1f}"


def page() -> None:
    """Write the tables of all streams that were run into docs/rehearsal.md."""
    files = {name: RESULTS / f"{file}.json" for name, (_, file, _) in STREAMS.items()}
    stored = {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.exists()}
    mark = lambda name: "rehearsal" if name == "mnist" else f"rehearsal {name}"
    rows = {n: report["rows"] for n, report in stored.items()}
    clean = {n: {r["method"]: r["accuracy"] for r in every} for n, every in rows.items()}
    found = {mark(name): table(report) for name, report in stored.items()}
    found["rehearsal merging"] = merging(clean)
    for level in ("groups", "classes"):
        finer = {
            n: {r["method"]: r["expansion"][level] for r in every if "expansion" in r}
            for n, every in rows.items()
        }
        found[f"rehearsal merging {level}"] = merging({n: x for n, x in finer.items() if x})
    fill(PAGE, found)
