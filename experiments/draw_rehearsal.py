"""Draws the accuracies of `rehearsal.py`'s result files: docs/images/rehearsal.png and the like.

    python experiments/draw_rehearsal.py

`python docs/hooks.py` draws them too.  A picture for each stream, in it a row for each method,
sorted by the mean of its last model: the last model large, merges of the models of its tasks small,
a line from the lowest seed to the highest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.continual.records import LAST
from jaxmerge.report.canvas import BODY, SMALL, WIDTH, axes, canvas, drawing, png, text_width
from jaxmerge.report.style import LIGHT, MARKERS

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "experiments" / "results", ROOT / "docs" / "images"
STREAMS = {  # stream -> result file, what is learnt, from where
    "mnist": (
        "rehearsal", "MNIST, five tasks of two classes, {images:,} images once",
        "from random weights",
    ),
    "fashion": (
        "rehearsal_fashion", "Fashion-MNIST, five tasks of two classes, {images:,} images once",
        "from random weights",
    ),
    "gtsrb": (
        "rehearsal_gtsrb", "GTSRB, five tasks of nine or eight signs, {images:,} images once",
        "from random weights",
    ),
    "caltech101": (
        "rehearsal_caltech101",
        "Caltech-101, five tasks of 20 or 21 classes, {images:,} photographs once",
        "from random weights",
    ),
    "clinc150": (
        "rehearsal_clinc150", "CLINC150, ten tasks of 15 intents, {images:,} sentences once",
        "from one model",
    ),
    "cifar10": (
        "rehearsal_cifar10", "CIFAR-10, five tasks of two classes, {images:,} images once",
        "from random weights",
    ),
}  # fmt: skip
ROW = 0.36  # inches


def points(report: dict[str, Any]) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Methods from the best last model to the worst: percent of every deployment, a seed each."""
    percent = lambda row: {
        k: 100 * np.array(v) for k, v in row["accuracy"].items() if np.isfinite(v).all()
    }
    rows = [(row["method"], percent(row)) for row in report["rows"]]
    return sorted(rows, key=lambda row: -row[1][LAST].mean())


def picture(report: dict[str, Any]) -> Any:
    """The figure."""
    rows = points(report)
    deployed = list(dict.fromkeys(k for _, figures in rows for k in figures))
    left = 0.15 + max(text_width(label, SMALL) for label, _ in rows)
    height = ROW * len(rows)
    seeds = len(report["seeds"])
    _, learnt, start = STREAMS[report.get("stream", "mnist")]
    with drawing(LIGHT):
        figure = canvas(
            LIGHT, height + 0.6, "Accuracy after the last task, percent",
            f"{learnt.format(images=report['images'])}, {start}; a mark is the "
            f"mean of {seeds} seeds, its line lowest to highest",
        )  # fmt: skip
        ax = axes(figure, left, 0.5, WIDTH - left - 0.2, height)
        ax.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)))
        ax.set_yticklabels([label for label, _ in rows], color=LIGHT.ink)
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        for row in range(1, len(rows)):
            ax.axhline(row - 0.5, color=LIGHT.grid, linewidth=0.4)
        for slot, name in enumerate(deployed):  # one under the other
            colour, mark = LIGHT.series[slot], MARKERS[slot]
            at = (slot - (len(deployed) - 1) / 2) * 0.8 / len(deployed)
            here = [(i + at, f[name]) for i, (_, f) in enumerate(rows) if name in f]
            y, means = [y for y, _ in here], [v.mean() for _, v in here]
            ax.hlines(y, [v.min() for _, v in here], [v.max() for _, v in here], colour, lw=1.2)
            size = 36 if name == LAST else 16
            ax.scatter(means, y, size, colour, marker=mark, label=name, zorder=3, linewidths=0)
        figure.legend(
            loc="lower left", bbox_to_anchor=(0.02, 0), ncols=len(deployed), frameon=False,
            fontsize=BODY - 1, columnspacing=1, handletextpad=0.2,
        )  # fmt: skip
    return figure


def write(folder: Path = IMAGES) -> None:
    """The pictures of the stored result files."""
    for name, *_ in STREAMS.values():
        file = RESULTS / f"{name}.json"
        if file.exists():
            report = json.loads(file.read_text(encoding="utf-8"))
            (folder / f"{name}.png").write_bytes(png(picture(report)))


if __name__ == "__main__":
    write()
