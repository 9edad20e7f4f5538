"""Curves with a band for the spread and their names at their ends: accuracy over time, sweeps.

Labels at the ends of lines need no legend and no colour to be understood; they are moved apart
where lines end close to each other.
"""

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
    spread,
    text_width,
)
from jaxmerge.report.style import LIGHT, LOOKS, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Sequence[float | None]
LEFT = 0.5  # inches for the tick labels, more where they are wider


class Series(NamedTuple):
    """One line of a picture.

    Attributes:
        label: the words at its end.
        x, y: the points; None is a gap.
        std: half the width of the band around it, or (); the band is cut at 0 and 1.
        slot: colour and marker, see `style.slots`.
        dashed: a second way to tell lines apart: independent fine-tunes are dashed.
        chosen: points to mark with a ring.
    """

    label: str
    x: Sequence[float]
    y: Numbers
    std: Numbers = ()
    slot: int = 0
    dashed: bool = False
    chosen: Sequence[tuple[float, float]] = ()


def curves(
    panels: Mapping[str, Sequence[Series]],
    title: str,
    xlabel: str,
    remark: str = "",
    theme: Theme = LIGHT,
    xticks: Sequence[float] | None = None,
    percent: bool = True,
    markers: bool = True,
    height: float = 2.5,
    legend: bool = False,
    log: bool = False,
) -> Figure:
    """Lines with a band for the spread and their names at their ends, one panel below the other.

    Args:
        panels: heading -> lines; an empty heading is not drawn.
        title: what to see.
        xlabel: what the horizontal axis is.
        remark: a line below the title: what is drawn, in which unit.
        theme: the colours.
        xticks: where to put ticks; matplotlib's choice if None, whole numbers where all x are.
        percent: values are fractions, shown as percent.
        markers: draw a marker at every point.
        height: of one panel, in inches.
        legend: names in the upper left corner, for lines that end in one place.
        log: a logarithmic horizontal axis, if all x are positive.
    """
    from matplotlib.ticker import MaxNLocator

    names = [s.label for lines in panels.values() for s in lines]
    right = 0.1 if legend else min(2.0, max((text_width(n, SMALL) for n in names), default=0) + 0.4)
    gap = 0.5 if any(panels) else 0.1
    with drawing(theme):
        figure = canvas(theme, len(panels) * (height + gap) + 0.42, title, remark)
        drawn = []
        for k, (heading, lines) in enumerate(reversed(list(panels.items()))):
            bottom = 0.46 + k * (height + gap)
            ax = axes(figure, LEFT, bottom, WIDTH - LEFT - 0.08 - right, height - 0.05)
            drawn.append((ax, lines))
            for series in lines:
                _curve(ax, series, theme, markers)
            _scale(ax, lines, percent)
            if log and all(x > 0 for s in lines for x in s.x):
                _logarithmic(ax)
            elif all(float(x).is_integer() for s in lines for x in s.x):
                ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            if xticks is not None:
                ax.set_xticks(list(xticks))
            ax.grid(axis="y")
            ax.set_axisbelow(True)
            if heading:
                ax.set_title(heading, loc="left", size=BODY, color=theme.ink, pad=5)
            if k == 0:
                ax.set_xlabel(xlabel, loc="left")
            if legend:
                ax.legend(
                    loc="upper left", frameon=False, fontsize=SMALL, handlelength=1.2,
                    borderaxespad=0.1, labelspacing=0.3,
                )  # fmt: skip
        _room_for_ticks([ax for ax, _ in drawn])
        for ax, lines in () if legend else drawn:
            _ends(ax, lines, theme, height - 0.05, right, markers)
    return figure


def _room_for_ticks(drawn: Sequence[Axes]) -> None:
    """Moves the left edge of all panels to where their widest tick label ends."""
    widths = [0.0]
    for ax in drawn:
        low, high = ax.get_ylim()
        ticks = [v for v in ax.get_yticks() if low <= v <= high]
        widths += [text_width(t, SMALL) for t in ax.yaxis.get_major_formatter().format_ticks(ticks)]
    more = (max(widths) + 0.18 - LEFT) / WIDTH  # of the picture's width
    for ax in drawn if more > 0 else ():
        x, y, width, height = ax.get_position().bounds
        ax.set_position((x + more, y, width - more, height))


def _curve(ax: Axes, series: Series, theme: Theme, markers: bool) -> None:
    y = [math.nan if v is None else v for v in series.y]
    look = LOOKS[series.slot]
    colour = theme.series[look.colour]
    style = (0, (4, 2)) if series.dashed else "-"
    marker = look.marker if markers and len(y) <= 20 else ""
    if any(series.std):
        low = [max(a - (s or 0.0), 0.0) for a, s in zip(y, series.std, strict=True)]
        high = [min(a + (s or 0.0), 1.0) for a, s in zip(y, series.std, strict=True)]
        ax.fill_between(series.x, low, high, color=colour, alpha=0.16, linewidth=0)
    ax.plot(
        series.x, y, color=colour, linestyle=style, marker=marker,
        markersize=4.5, markerfacecolor=theme.surface if series.dashed else colour,
        markeredgecolor=colour, linewidth=2.4 if series.slot == 0 else 1.6, label=series.label,
        clip_on=False, zorder=3 if series.slot == 0 else 2,
    )  # fmt: skip
    for x, v in series.chosen:
        ax.plot(
            [x], [v], marker="o", markersize=7.5, markerfacecolor="none", markeredgecolor=theme.ink,
            markeredgewidth=1.3, clip_on=False, zorder=5,
        )  # fmt: skip


def _logarithmic(ax: Axes) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _scale(ax: Axes, lines: Sequence[Series], percent: bool) -> None:
    """A vertical range that holds lines and bands with some air, at least two points wide; that of
    accuracies ends at 0 and 100 %."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = []
    for s in lines:
        stds = s.std or [0.0] * len(s.y)
        for v, e in zip(s.y, stds, strict=True):
            values += [] if v is None else [v - (e or 0.0), v + (e or 0.0)]
        values += [v for _, v in s.chosen]
    low, high = min(values, default=0.0), max(values, default=1.0)
    air = max(0.06 * (high - low), 0.01)
    low, high = low - air, high + air
    if percent:
        points = [v for s in lines for v in s.y if v is not None]
        if min(points, default=0.0) >= 0:
            low = max(low, 0.0)
            high = max(high, low + 0.02)
        if max(points, default=1.0) <= 1:
            high = min(high, 1.0)
            low = min(low, high - 0.02)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.4g} %"))
    ax.set_ylim(low, high)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _ends(
    ax: Axes, lines: Sequence[Series], theme: Theme, height: float, right: float, markers: bool
) -> None:
    """The name of each line beside its last point, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    ends = []
    for s in lines:
        points = [(x, v) for x, v in zip(s.x, s.y, strict=True) if v is not None]
        ends.append(points[-1] if points else (0.0, low))
    inches = (high - low) / height
    wanted = [v for _, v in ends]
    placed = spread(wanted, SMALL * 1.3 / 72 * inches, low + 0.05 * inches, high - 0.05 * inches)
    limits = ax.get_xlim()
    flat = ax.transData + ax.transAxes.inverted()
    unit = 1 / (ax.get_position().width * WIDTH)  # one inch in axes widths
    for s, end, y in zip(lines, ends, placed, strict=True):
        colour = theme.series[LOOKS[s.slot].colour]
        (x, v), (_, w) = flat.transform(end), flat.transform((limits[1], y))
        # from the last point straight to the edge, then to the label: dotted, it is no data
        ax.plot(
            [x, 1, 1 + 0.14 * unit], [v, v, w], color=colour, linewidth=1.1,
            clip_on=False, linestyle=(0, (1, 2)), transform=ax.transAxes,
        )  # fmt: skip
        if markers:
            ax.plot(
                [1 + 0.19 * unit], [w], marker=LOOKS[s.slot].marker, markersize=4.5, clip_on=False,
                markerfacecolor=theme.surface if s.dashed else colour, markeredgecolor=colour,
                transform=ax.transAxes,
            )  # fmt: skip
        ax.text(
            1 + (0.26 if markers else 0.17) * unit, w, shorten(s.label, right - 0.34, SMALL),
            size=SMALL, color=theme.ink, va="center_baseline", clip_on=False,
            transform=ax.transAxes,
        )  # fmt: skip
    ax.set_xlim(limits)
    ax.set_ylim(low, high)
