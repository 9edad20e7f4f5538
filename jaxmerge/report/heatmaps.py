"""Matrices as annotated heat maps: accuracies by task, cosines, sign agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxmerge.report.canvas import BODY, SMALL, WIDTH, axes, canvas, drawing, shorten, text_width
from jaxmerge.report.style import LIGHT, Theme, on, ramp

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Sequence[float | None]


def heatmaps(
    panels: Mapping[str, Sequence[Numbers]],
    title: str,
    remark: str = "",
    theme: Theme = LIGHT,
    ticks: Sequence[str] = (),
    xlabel: str = "",
    ylabel: str = "",
    low: float = 0.0,
    high: float = 1.0,
    percent: bool = True,
    diverging: bool = False,
    stairs: bool = False,
    columns: Sequence[str] = (),
) -> Figure:
    """Matrices as annotated heat maps, two beside each other.

    Args:
        panels: heading -> [rows][columns]; None is left empty.
        title: what to see.
        remark: a line below the title.
        theme: the colours.
        ticks: names of rows and columns; 1 to T if empty.
        columns: names of the columns, where they are others than the rows.
        xlabel: what a column is.
        ylabel: what a row is.
        low: the value of the first colour.
        high: the value of the last colour.
        percent: show 0.81 as 81, else as .81.
        diverging: the middle of [low, high] is the neutral colour.
        stairs: draw the line between tasks learnt (below) and tasks to come (above).
    """
    beside = min(2, len(panels))
    rows = math.ceil(len(panels) / beside)
    left, gap = 0.52, 0.4
    side = (WIDTH - left - 0.14 - gap * (beside - 1)) / beside if beside > 1 else 3.1
    block = side + 0.52  # names of columns below, a heading above
    with drawing(theme):
        figure = canvas(theme, rows * block + 0.5, title, remark)
        for k, (heading, matrix) in enumerate(panels.items()):
            row, column = divmod(k, beside)
            x = left + column * (side + gap)
            y = 0.46 + (rows - 1 - row) * block
            ax = axes(figure, x, y, side, side)
            _cells(ax, matrix, theme, (low, high), percent, diverging, side)
            _names(ax, len(matrix), ticks, side, columns)
            if stairs:
                _stairs(ax, len(matrix), theme)
            ax.set_title(shorten(heading, side, BODY), loc="left", size=BODY, pad=5)
            if row == rows - 1:
                ax.set_xlabel(xlabel, loc="left")
            if column == 0:
                ax.set_ylabel(ylabel, loc="top")
    return figure


def _cells(
    ax: Axes, matrix: Sequence[Numbers], theme: Theme, limits: tuple[float, float],
    percent: bool, diverging: bool, side: float,
) -> None:  # fmt: skip
    import numpy as np
    from matplotlib.colors import Normalize, to_hex

    colours, norm, n = ramp(theme, diverging), Normalize(*limits, clip=True), len(matrix)
    wide = len(matrix[0]) if n else 0
    size = min(BODY, 72 * side / max(n, wide, 1) / (1.9 if percent else 2.3))
    filled = np.array([[np.nan if v is None else v for v in row] for row in matrix], float)
    if n:
        ax.pcolormesh(
            np.ma.masked_invalid(filled), cmap=colours, norm=norm, edgecolors=theme.surface,
            linewidth=1 if size >= 6 else 0,
        )  # fmt: skip
    for t, row in enumerate(matrix):
        for i, value in enumerate(row):
            if value is not None and size >= 6:
                text = f"{100 * value:.0f}" if percent else _short(value)
                ax.text(
                    i + 0.5, t + 0.52, text, size=size, ha="center", va="center_baseline",
                    color=on(to_hex(colours(float(norm(value))))),
                )  # fmt: skip
    ax.set_xlim(0, max(wide, 1))
    ax.set_ylim(max(n, 1), 0)
    ax.spines[:].set_visible(False)


def _short(value: float) -> str:
    """Two digits and no leading zero: .85, −.02, 1."""
    text = f"{value:.2f}"
    if text in ("1.00", "-1.00"):
        text = text[:-3]
    return ("0" if text == "-0.00" else text).replace("0.", ".", 1).replace("-", "−")


def _names(
    ax: Axes, n: int, ticks: Sequence[str], side: float, columns: Sequence[str] = ()
) -> None:
    down = list(ticks) or [str(i + 1) for i in range(n)]
    across = list(columns) or down
    wide = max(0.16, max((text_width(name, SMALL) for name in across), default=0.0) + 0.07)
    for names, put, room in ((across, ax.set_xticks, wide), (down, ax.set_yticks, 0.16)):
        step = max(1, math.ceil(len(names) * room / side))  # names that do not touch
        shown = range(0, len(names), step)
        put([i + 0.5 for i in shown], [names[i] for i in shown])
    ax.tick_params(pad=3)


def _stairs(ax: Axes, n: int, theme: Theme) -> None:
    x, y = [], []
    for i in range(n):
        x += [i + 1, i + 1]
        y += [i, i + 1]
    ax.plot(x[:-1], y[:-1], color=theme.ink, linewidth=1.4, solid_joinstyle="miter")
