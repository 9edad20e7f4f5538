"""Draws the any-time accuracies of `online_streams.py`; writes docs/images/online_streams.png.

    python experiments/draw_online_streams.py

`python docs/hooks.py` draws them too.  A panel for each stream, where labels have levels one for
each: the accuracy of the last model over the classes met so far, mean of the seeds, along the
examples of the stream; a curve begins where all seeds have been scored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.report.canvas import BODY, SMALL, WIDTH, axes, canvas, drawing, png
from jaxmerge.report.style import LIGHT, MARKERS

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "experiments" / "results" / "online_streams.json"
IMAGE = ROOT / "docs" / "images" / "online_streams.png"
SHOWN = ("fine-tuning", "ER", "DER++", "PL-FMS")
COLUMNS, HIGH, GAP, LEFT, BOTTOM = 2, 1.05, 0.42, 0.42, 0.3  # inches but the first


def panels(report: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Stream and level -> method -> percent at regular places of the stream; NaN: none met yet."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for row in report["rows"]:
        for level, figures in row["levels"].items():
            name = f"{row['stream']}, {level}" if level else row["stream"]
            curve = 100 * np.array(figures["curve"], float)
            if row["method"] in SHOWN:
                found.setdefault(name, {})[row["method"]] = curve
    return found


def picture(report: dict[str, Any]) -> Any:
    """The figure."""
    every = panels(report)
    lines = -(-(len(every) + 1) // COLUMNS)  # a place is left for the legend
    height = BOTTOM + lines * (HIGH + GAP)
    wide = (WIDTH - LEFT - 0.1) / COLUMNS - 0.2
    with drawing(LIGHT):
        figure = canvas(
            LIGHT, height, "Accuracy while signs arrive, percent",
            f"GTSRB in seven streams: the last model over the classes met so far, on each level "
            f"of labels; mean of {len(report['seeds'])} seeds",
        )  # fmt: skip
        for i, (name, curves) in enumerate(every.items()):
            column, line = i % COLUMNS, i // COLUMNS
            bottom = BOTTOM + (lines - 1 - line) * (HIGH + GAP)
            ax = axes(figure, LEFT + column * (wide + 0.3), bottom, wide, HIGH)
            ax.set(xlim=(0, 1), ylim=(0, 100), yticks=(0, 50, 100), xticks=(0, 1))
            ax.set_xticklabels(["first", "last example"] if line >= lines - 2 else ["", ""])
            for label, side in zip(ax.get_xticklabels(), ("left", "right"), strict=True):
                label.set_horizontalalignment(side)
            ax.set_title(name, loc="left", size=BODY, color=LIGHT.ink, pad=3)
            ax.grid(axis="y")
            for slot, method in enumerate(SHOWN):
                if method in curves:
                    y = curves[method]
                    ax.plot(np.linspace(0, 1, len(y)), y, color=LIGHT.series[slot], label=method,
                            marker=MARKERS[slot], markersize=3.5, markevery=(2 * slot, 8),
                            linewidth=1.3)  # fmt: skip
        marks, words = figure.axes[0].get_legend_handles_labels()
        right = LEFT + (len(every) % COLUMNS) * (wide + 0.3)
        figure.legend(
            marks, words, loc="lower left", frameon=False, fontsize=SMALL,
            bbox_to_anchor=(right / WIDTH, BOTTOM / figure.get_figheight()),
        )  # fmt: skip
    return figure


def write(path: Path = IMAGE) -> None:
    """The picture of the stored result file."""
    if RESULT.exists():
        path.write_bytes(png(picture(json.loads(RESULT.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    write()
