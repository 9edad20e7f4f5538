"""Means as dots with whiskers, one method a row, and shares as bars, one task a place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxmerge.report.canvas import (
    BODY,
    SMALL,
    WIDTH,
    axes,
    canvas,
    drawing,
    shorten,
    text_width,
)
from jaxmerge.report.style import LIGHT, LOOKS, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Dot(NamedTuple):
    """One row of an overview: a mean with its spread; `hollow` for independent fine-tunes."""

    label: str
    mean: float
    std: float = 0.0
    slot: int = 0
    hollow: bool = False


def overview(
    groups: Mapping[str, Sequence[Dot]],
    title: str,
    remark: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """All methods below each other: mean as a dot, spread as a whisker, the figure at the right.

    Args:
        groups: heading -> dots, drawn in the order given.
        title: what to see.
        remark: a line below the title.
        theme: the colours.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    dots = [d for group in groups.values() for d in group]
    line = 0.245
    left = min(1.9, max((text_width(d.label, BODY) for d in dots), default=0.5) + 0.22)
    count = sum(len(g) + bool(h) for h, g in groups.items())
    height = max(1, count) * line
    low = min((d.mean - d.std for d in dots), default=0.0)
    high = max((d.mean + d.std for d in dots), default=1.0)
    air = max(0.06 * (high - low), 0.01)
    with drawing(theme):
        figure = canvas(theme, height + 0.44, title, remark)
        ax = axes(figure, left, 0.34, WIDTH - left - 1.12, height)
        ax.set_xlim(max(low - air, min(low, 0.0) - 0.01), min(high + air, max(high, 1.0) + 0.01))
        ax.set_ylim(max(1, count), 0)
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        ax.set_yticks([])
        ax.spines["bottom"].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.4g} %"))
        y = 0
        for heading, group in groups.items():
            if heading:
                _beside(ax, 0.08 / WIDTH, y + 0.62, heading, theme, remark=True)
                y += 1
            for dot in group:
                _dot(ax, dot, y + 0.5, theme, left)
                y += 1
    return figure


def _beside(ax: Axes, x: float, y: float, text: str, theme: Theme, remark: bool = False) -> None:
    """Words at a place given in figure widths and rows; they cover the grid."""
    from matplotlib.transforms import blended_transform_factory

    mixed = blended_transform_factory(ax.figure.transFigure, ax.transData)
    ax.text(
        x, y, text, transform=mixed, va="center_baseline", size=SMALL if remark else BODY,
        color=theme.muted if remark else theme.ink,
        bbox={"facecolor": theme.surface, "linewidth": 0, "pad": 1},
    )  # fmt: skip


def _dot(ax: Axes, dot: Dot, y: float, theme: Theme, left: float) -> None:
    look = LOOKS[dot.slot]
    colour = theme.series[look.colour]
    if dot.std:
        ax.plot([dot.mean - dot.std, dot.mean + dot.std], [y, y], color=colour, linewidth=1.8)
    ax.plot(
        [dot.mean], [y], marker=look.marker, markersize=6.5, markeredgecolor=colour,
        markerfacecolor=theme.surface if dot.hollow else colour, markeredgewidth=1.5,
        clip_on=False,
    )  # fmt: skip
    label = shorten(dot.label, left - 0.22, BODY)
    _beside(ax, 0.18 / WIDTH, y, label, theme)
    spread_text = f" ± {100 * dot.std:.1f}" if dot.std else ""
    _beside(ax, 1 - 1.0 / WIDTH, y, f"{100 * dot.mean:.1f}{spread_text}", theme)


def bars(
    groups: Mapping[str, Sequence[float]],
    title: str,
    remark: str = "",
    theme: Theme = LIGHT,
    xlabel: str = "",
    even: float | None = None,
) -> Figure:
    """Shares by task, one bar for each group beside each other.

    Args:
        groups: name -> [T] shares; the first is filled, the second hollow.
        title: what to see.
        remark: a line below the title.
        theme: the colours.
        xlabel: what a place on the horizontal axis is.
        even: draw a line at this share.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    n = max((len(v) for v in groups.values()), default=1)
    wide = 0.8 / max(1, len(groups))
    with drawing(theme):
        figure = canvas(theme, 2.9, title, remark)
        ax = axes(figure, 0.5, 0.46, WIDTH - 0.6, 2.05)
        for k, (name, values) in enumerate(groups.items()):
            places = [i + 1 + (k - (len(groups) - 1) / 2) * wide for i in range(len(values))]
            ax.bar(
                places, list(values), width=wide * 0.88, linewidth=1.4 if n <= 12 else 0.6,
                edgecolor=theme.series[0], label=name,
                facecolor=theme.series[0] if k == 0 else theme.surface,
                hatch="////" if k and n <= 12 else "",
            )  # fmt: skip
            if n <= 10:
                for x, v in zip(places, values, strict=True):
                    size = SMALL if n * len(groups) <= 12 else 7
                    ax.annotate(
                        f"{100 * v:.0f}", (x, v), (0, 3), textcoords="offset points", size=size,
                        ha="center", bbox={"facecolor": theme.surface, "linewidth": 0, "pad": 0},
                    )  # fmt: skip
        if even is not None:
            ax.axhline(even, color=theme.muted, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
        ax.margins(x=0.02, y=0.12)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.4g} %"))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        step = max(1, math.ceil(n / 20))
        ax.set_xticks(range(1, n + 1, step))
        ax.grid(axis="y")
        ax.set_axisbelow(True)
        ax.set_xlabel(xlabel, loc="left")
        if len(groups) > 1:
            ax.legend(
                loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False,
                fontsize=SMALL, borderaxespad=0.2, handlelength=1.4, columnspacing=1.4,
            )  # fmt: skip
    return figure
