"""Draws the accuracies of `rehearsal.py`'s result file; writes docs/images/rehearsal.png.

    python experiments/draw_rehearsal.py

`python docs/hooks.py` draws it too.  A row for each method, sorted by the mean of its last model:
the last model large, merges of the models of its tasks small, a line from the lowest seed to the
highest.
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
RESULTS = ROOT / "experiments" / "results" / "rehearsal.json"
IMAGE = ROOT / "docs" / "images" / "rehearsal.png"
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
    with drawing(LIGHT):
        figure = canvas(
            LIGHT, height + 0.6, "Accuracy after the last task, percent",
            f"MNIST, five tasks of two classes, {report['images']:,} images once, weights random "
            f"at the start; a mark is the mean of {seeds} seeds, its line their spread",
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


def write(path: Path = IMAGE) -> None:
    """The picture of the stored result file."""
    path.write_bytes(png(picture(json.loads(RESULTS.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    write()
