"""The pictures of a run: which ones its results give, each with a title and a caption.

A picture whose numbers were not measured is left out, never drawn empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmerge.errors import writing
from jaxmerge.report import numbers, tables, vectors, words
from jaxmerge.report.picture import Plot, Table, cell, grid
from jaxmerge.report.style import LIGHT, apart, slots
from jaxmerge.studies.results import Entry, Results

if TYPE_CHECKING:
    from jaxmerge.report.lines import Series

Name = numbers.Name


def of(results: Results) -> list[Plot]:
    """All pictures that the results give.

    Args:
        results: of a run.

    >>> from jaxmerge.studies.results import Results, Stat, Summary
    >>> row = Summary("MagMax", "sequential", {"accuracy": Stat(0.8, 0.0, 1)})
    >>> results = Results("mine", "2 tasks", ["cat"], {}, [], [row], {}, {}, {})
    >>> [plot.name for plot in of(results)]
    ['overview']
    """
    results = numbers.clean(results)
    plots = [
        _overview(results),
        _first_task(results),
        _over_time(results),
        _matrices(results),
        _factors(results),
        _fixed(results),
        *vectors.of(results),
    ]
    return [p for p in plots if p is not None]


def write_png(results: Results, folder: str | Path) -> list[Path]:
    """Write every picture into `folder` as PNG (1000 pixels wide), and return the paths.

    Args:
        results: of a run.
        folder: is made.

    >>> import tempfile
    >>> from jaxmerge.studies.results import Results, Stat, Summary
    >>> row = Summary("MagMax", "sequential", {"accuracy": Stat(0.8, 0.0, 1)})
    >>> results = Results("mine", "2 tasks", ["cat"], {}, [], [row], {}, {}, {})
    >>> [path.name for path in write_png(results, tempfile.mkdtemp())]
    ['overview.png']
    """
    from jaxmerge.report.canvas import png

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for plot in of(results):
        paths.append(folder / f"{plot.name}.png")
        with writing(paths[-1]):
            paths[-1].write_bytes(png(plot.draw(LIGHT), LIGHT))
    return paths


def _overview(results: Results) -> Plot | None:
    from jaxmerge.report.dots import Dot, overview

    colour = slots(label for label, _ in numbers.names(results))
    groups: dict[str, list[Dot]] = {}
    for name in numbers.names(results):
        stat = numbers.stat(results, name)
        if stat is not None:
            dot = Dot(name[0], stat.mean, stat.std, colour[name[0]], name[1] == "independent")
            groups.setdefault(words.sentence(tables.group(name[1]), ""), []).append(dot)
    if not groups:
        return None
    title = words.overview_title(results)
    remark = "Accuracy on all classes after the last task, %"
    return Plot(
        "overview", title, words.overview_caption(results),
        lambda theme: overview(groups, title, remark, theme), [],
    )  # fmt: skip


def _first_task(results: Results) -> Plot | None:
    """Forgetting, and what merging does about it: last model, hero and zero-shot on task 1."""
    from jaxmerge.report.lines import Series, curves

    zero = [numbers.ZERO] if numbers.ZERO in numbers.names(results) else []
    shown, series, rows = (numbers.LAST, numbers.hero(results), *zero), [], []
    colour = slots(label for label, _ in numbers.names(results))
    for name in shown:
        paths = [[row[0] for row in e.matrix] for e in numbers.entries(results, name or ("", ""))]
        points = numbers.mean_std(paths)
        if name is None or len(points) < 2 or any(mean is None for mean, _ in points):
            return None
        y, std = [p[0] for p in points], [p[1] for p in points]
        std = [] if name == numbers.ZERO else std  # a line to compare with, without a band
        x = list(range(1, len(y) + 1))
        series.append(Series(words.title_of(name), x, y, std, colour[name[0]]))
        rows.append([words.title_of(name), *(cell(v) for v in y)])
    if len({s.label for s in series}) < 2 + len(zero):
        return None
    title, caption = words.first_task_words(results)
    ticks = series[0].x[:: max(1, len(series[0].x) // 10)]
    remark = "Accuracy on the first task, all classes to choose from"
    return Plot(
        "first_task", title, caption,
        lambda theme: curves(
            {"": series}, title, "tasks learnt", remark, theme, xticks=ticks, height=2.7
        ),
        [Table(f"{remark}, %", ["After task", *(str(x) for x in series[0].x)], rows)],
    )  # fmt: skip


def _over_time(results: Results, most: int = 9) -> Plot | None:
    from jaxmerge.report.lines import Series, curves

    shown = []
    for name in numbers.names(results):
        rows = [e.over_time for e in numbers.entries(results, name)]
        if rows and len(rows[0]) > 1 and all(v is not None for row in rows for v in row):
            shown.append(name)
    if not shown:
        return None
    shown = shown[:most]
    colour = slots(label for label, _ in numbers.names(results))
    series, rows = [], []
    wanted = [(colour[label], finetunes == "independent") for label, finetunes in shown]
    for name, slot in zip(shown, apart(wanted, colour.values()), strict=True):
        points = numbers.mean_std([e.over_time for e in numbers.entries(results, name)])
        y, std = [p[0] for p in points], [p[1] for p in points]
        x = list(range(1, len(y) + 1))
        series.append(
            Series(
                words.title_of(name),
                x,
                y,
                std if name in words.bands(results) else (),
                slot,
                name[1] == "independent",
            )
        )
        rows.append([words.title_of(name), *(cell(v) for v in y)])
    title, caption = words.over_time(results, shown)
    ticks = series[0].x[:: max(1, len(series[0].x) // 10)]
    head = ["After task", *(str(x) for x in series[0].x)]
    return Plot(
        "accuracy_over_tasks", title, caption,
        lambda theme: curves(
            {"": series}, title, "tasks learnt",
            "Mean accuracy on the tasks seen so far, all classes to choose from", theme,
            xticks=ticks, height=2.7,
        ),
        [Table("Mean accuracy on the tasks seen so far, %", head, rows)],
    )  # fmt: skip


def _matrices(results: Results) -> Plot | None:
    from jaxmerge.report.heatmaps import heatmaps

    shown: list[Name] = []
    for name in (numbers.hero(results), numbers.LAST, *numbers.names(results)):
        entries = numbers.entries(results, name) if name else []
        full = entries and all(v is not None for e in entries for row in e.matrix for v in row)
        if name and full and name not in shown and name[1] not in numbers.CONSTANT:
            shown.append(name)
    shown = shown[:2]
    if not shown:
        return None
    panels = {
        words.title_of(n): numbers.mean_matrix([e.matrix for e in numbers.entries(results, n)])
        for n in shown
    }
    title, caption = words.forgetting(results, shown)
    values = [v for m in panels.values() for row in m for v in row if v is not None]
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10
    return Plot(
        "accuracy_matrix", title, caption,
        lambda theme: heatmaps(
            panels, title, "Accuracy on task i after task t, all classes to choose from, %", theme,
            xlabel="accuracy on task i", ylabel="after task t", stairs=True, low=low,
            high=max(high, low + 0.1),
        ),
        [grid(h, "after task", m) for h, m in panels.items()],
    )  # fmt: skip


def _factors(results: Results) -> Plot | None:
    from jaxmerge.report.lines import curves

    groups: dict[str, list[Name]] = {}
    for name in numbers.names(results):
        swept = [e for e in numbers.entries(results, name) if e.sweep]
        if any(e.sweep and len(set(e.sweep.factors)) > 1 for e in swept):
            groups.setdefault(name[1], []).append(name)
    if not groups:
        return None
    colour = slots(label for label, _ in numbers.names(results))
    panels = {
        words.sentence(f"{finetunes} fine-tunes", ""): [
            _sweep(numbers.entries(results, n), n[0], colour[n[0]]) for n in shown
        ]
        for finetunes, shown in groups.items()
    }
    mean = ", mean over seeds" if len(results.seeds) > 1 else ""
    behind = [_tried(heading, lines) for heading, lines in panels.items()]
    title, caption = words.factors(results, [n for g in groups.values() for n in g])
    return Plot(
        "merge_factor", title, caption,
        lambda theme: curves(
            panels, title, "merge factor", f"Accuracy on the validation split{mean}",
            theme, height=2.0, log=True,
        ),
        behind,
    )  # fmt: skip


def _sweep(entries: Sequence[Entry], label: str, slot: int) -> Series:
    """One curve: at every factor the mean over the seeds that tried it."""
    from jaxmerge.report.lines import Series

    sweeps = [e.sweep for e in entries if e.sweep]
    at: dict[float, list[float]] = {}
    for sweep in sweeps:
        for factor, accuracy in zip(sweep.factors, sweep.accuracy, strict=True):
            at.setdefault(factor, []).append(accuracy)
    means = {factor: sum(at[factor]) / len(at[factor]) for factor in sorted(at)}
    x, y = list(means), list(means.values())
    chosen = sorted({(s.chosen, means[s.chosen]) for s in sweeps})
    return Series(label, x, y, (), slot, False, chosen)


def _fixed(results: Results) -> Plot | None:
    """Accuracy on the test split over the factor, where each factor is a row of its own."""
    from jaxmerge.report.lines import Series, curves

    rows_of: dict[Name, dict[float, Name]] = {}  # (merge, stream) -> factor -> row
    for name in numbers.names(results):
        factor = next((e.fixed for e in numbers.entries(results, name)), None)
        if factor is not None:
            merge = name[0].removesuffix(f", factor {factor:g}")
            rows_of.setdefault((merge, name[1]), {})[factor] = name
    rows_of = {k: rows for k, rows in rows_of.items() if len(rows) > 1}
    if not rows_of:
        return None
    colour = slots(merge for merge, _ in rows_of)
    panels: dict[str, list[Series]] = {}
    for (merge, stream), rows in rows_of.items():
        stats = [numbers.stat(results, rows[f]) for f in sorted(rows)]
        y, std = ([getattr(s, k) if s else None for s in stats] for k in ("mean", "std"))
        line = Series(merge, sorted(rows), y, std, colour[merge])
        panels.setdefault(words.sentence(f"{stream} fine-tunes", ""), []).append(line)
    title = "Accuracy of every merge factor"
    spread = ", mean and standard deviation over seeds" if len(results.seeds) > 1 else ""
    remark = f"Accuracy on the test split after the last task{spread}"
    behind = [_tried(heading, lines, "test") for heading, lines in panels.items()]
    return Plot(
        "factor_sweep", title, f"{remark}. No factor was chosen on these figures.",
        lambda theme: curves(panels, title, "merge factor", remark, theme, height=2.0),
        behind,
    )  # fmt: skip


def _tried(heading: str, lines: Sequence[Series], split: str = "validation") -> Table:
    """All factors that were tried, one method a column."""
    at = [dict(zip(s.x, s.y, strict=True)) for s in lines]
    factors = sorted({x for s in lines for x in s.x})
    rows = [[f"{x:g}", *(cell(column.get(x)) for column in at)] for x in factors]
    head = f"{heading}, {split} accuracy, %"
    return Table(head, ["Factor", *(s.label for s in lines)], rows)
