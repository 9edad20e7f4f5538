"""Pictures of a sweep: a metric over the setting that was swept, or over two of them.

Read from the rows of a store (`jaxmerge.studies.cells`): every numeric setting in which rows of one
experiment differ is an axis, the merge factor too where each factor is a row of its own.  One axis
is drawn as lines, one a method; two as a heat map a method; of more each is drawn as lines at the
best of the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import writing
from jaxmerge.evaluation.definitions import DEFINITIONS
from jaxmerge.report import numbers, words
from jaxmerge.report.picture import Plot, Table, cell
from jaxmerge.report.style import LIGHT, slots
from jaxmerge.studies.cells import swept_of
from jaxmerge.studies.gather import flat

Point = tuple[float, ...]
Values = dict[Point, list[float]]  # coordinates -> the metric of every seed


def of(rows: Iterable[Mapping[str, Any]], metric: str = "accuracy") -> list[Plot]:
    """The pictures of all experiments in a store; none where nothing was swept."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get(metric) is not None:
            groups.setdefault((row["experiment"], row["scenario"]), []).append(row)
    return [plot for name, group in groups.items() for plot in _pictures(name, group, metric)]


def write_png(rows: Sequence[Mapping[str, Any]], folder: Path, metric: str = "accuracy") -> int:
    """Write every picture into a folder, which is made where there is one; how many there are."""
    from jaxmerge.report.canvas import png

    plots = of(rows, metric)
    if plots:
        folder.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        path = folder / f"{plot.name}.png"
        with writing(path):
            path.write_bytes(png(plot.draw(LIGHT), LIGHT))
    return len(plots)


def axes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The numeric settings in which rows of one method differ, in the order of their names."""
    names: dict[str, None] = {}
    for group in _methods(rows).values():
        every = [_settings(row) for row in group]
        for name in dict.fromkeys(n for settings in every for n in settings):
            values = {settings.get(name) for settings in every}
            if len(values) > 1 and None not in values:
                names[name] = None
    return sorted(names)


def _methods(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list]:
    groups: dict[tuple[str, str], list] = {}
    for row in rows:
        groups.setdefault((swept_of(row["merge"])[0], row["stream"]), []).append(row)
    return groups


def _settings(row: Mapping[str, Any]) -> dict[str, float]:
    """The numeric settings of a row by their dotted names, and its factor where that is fixed."""
    settings = {
        name: float(value)
        for name, value in flat(json.loads(row["settings"])).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    settings |= swept_of(row["merge"])[1]
    if row["fixed"] is not None:
        settings["factor"] = float(row["fixed"])
    return settings


def _pictures(name: tuple[str, str], rows: Sequence, metric: str) -> list[Plot]:
    swept = axes(rows)
    if not swept:
        return []
    values: dict[tuple[str, str], Values] = {}
    own: dict[tuple[str, str], list[str]] = {}
    for method, members in _methods(rows).items():
        own[method] = axes(members)
        for row in members:
            at = _settings(row)
            point = tuple(at[axis] for axis in own[method])
            values.setdefault(method, {}).setdefault(point, []).append(row[metric])
    plots = []
    for axis in swept:
        if any(len(axes_) != 2 and axis in axes_ for axes_ in own.values()):
            plots.append(_lines(name, axis, own, values, metric))
    pairs = dict.fromkeys(tuple(axes_) for axes_ in own.values() if len(axes_) == 2)
    for pair in pairs:
        which = [m for m, axes_ in own.items() if tuple(axes_) == pair]
        plots.append(_map(name, pair, {m: values[m] for m in which}, metric))
    return plots


def _metric_title(metric: str) -> str:
    return DEFINITIONS[metric].head if metric in DEFINITIONS else metric


def _best(means: Iterable[float], metric: str) -> float:
    less = metric in DEFINITIONS and DEFINITIONS[metric].lower_is_better
    return (min if less else max)(means)


def _lines(name: tuple[str, str], axis: str, own: Mapping, values: Mapping, metric: str) -> Plot:
    from jaxmerge.report.lines import Series, curves

    colour = slots(merge for merge, _ in own)
    panels: dict[str, list[Series]] = {}
    others = False
    for method, axes_ in own.items():
        if axis not in axes_ or len(axes_) == 2:
            continue
        k, scores = axes_.index(axis), {}
        others |= len(axes_) > 1
        for point, seeds in values[method].items():
            scores.setdefault(point[k], []).append(seeds)
        x = sorted(scores)
        picked = [
            max(scores[v], key=lambda s: np.mean(s) == _best(map(np.mean, scores[v]), metric))
            for v in x
        ]
        y = [float(np.mean(s)) for s in picked]
        std = [float(np.std(s, ddof=1)) if len(s) > 1 else None for s in picked]
        band = std if any(std) else ()
        series = Series(method[0], x, y, band, colour[method[0]])
        panels.setdefault(_heading(method[1]), []).append(series)
    title = f"{_metric_title(metric)} over {axis}"
    remark = f"{name[0]}: {name[1]}, %" + (", at the best of the other settings" if others else "")
    every = [v for lines in panels.values() for s in lines for v in s.x]
    wide = min(every) > 0 and max(every) / min(every) >= 20
    return Plot(
        f"sweep_{_file(axis)}", title, remark,
        lambda theme: curves(panels, title, axis, remark, theme, height=2.2, log=wide),
        [_table(axis, heading, lines) for heading, lines in panels.items()],
    )  # fmt: skip


def _heading(stream: str) -> str:
    return stream if stream in numbers.CONSTANT else words.sentence(f"{stream} fine-tunes", "")


def _table(axis: str, heading: str, lines: Sequence) -> Table:
    at = [dict(zip(s.x, s.y, strict=True)) for s in lines]
    rows = [[f"{x:g}", *(cell(a.get(x)) for a in at)] for x in sorted({x for a in at for x in a})]
    return Table(heading, [axis, *(s.label for s in lines)], rows)


def _map(name: tuple[str, str], pair: Sequence[str], values: Mapping, metric: str) -> Plot:
    from jaxmerge.report.heatmaps import heatmaps

    down, across = pair
    ys = sorted({p[0] for v in values.values() for p in v})
    xs = sorted({p[1] for v in values.values() for p in v})
    mean = lambda seeds: None if seeds is None else float(np.mean(seeds))
    panels = {
        f"{merge}, {stream}": [[mean(cells.get((y, x))) for x in xs] for y in ys]
        for (merge, stream), cells in values.items()
    }
    shown = [v for m in panels.values() for row in m for v in row if v is not None]
    title, remark = f"{_metric_title(metric)} over {down} and {across}", f"{name[0]}: {name[1]}, %"
    low, high = min(shown), max(max(shown), min(shown) + 0.02)
    words = lambda numbers_: [f"{v:g}" for v in numbers_]
    return Plot(
        f"sweep_{_file(down)}_{_file(across)}", title, remark,
        lambda theme: heatmaps(
            panels, title, remark, theme, ticks=words(ys), columns=words(xs), xlabel=across,
            ylabel=down, low=low, high=high,
        ),
        [
            Table(h, [down, *words(xs)], [[f"{y:g}", *map(cell, row)] for y, row in
                                          zip(ys, m, strict=True)])
            for h, m in panels.items()
        ],
    )  # fmt: skip


def _file(axis: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in axis)
