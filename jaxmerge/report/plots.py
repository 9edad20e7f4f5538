"""The pictures of a run: which ones its results give, each with a title and a caption.

>>> from jaxmerge.report import plots
>>> [p.name for p in plots.of(results)]                                      # doctest: +SKIP
['overview', 'accuracy_over_tasks', 'accuracy_matrix', 'merge_factor', ...]

A picture whose numbers were not measured is left out, never drawn empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxmerge.continual.results import Entry, Results, Vectors
from jaxmerge.report import numbers, tables, words
from jaxmerge.report.style import LIGHT, SLOTS, Theme, slots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Name = numbers.Name


class Table(NamedTuple):
    """The numbers behind a picture, as words."""

    heading: str
    head: list[str]
    rows: list[list[str]]


class Plot(NamedTuple):
    """One picture: file name, title, caption, how to draw it in a theme, and its numbers."""

    name: str
    title: str
    caption: str
    draw: Callable[[Theme], Figure]
    tables: list[Table]


def of(results: Results) -> list[Plot]:
    """All pictures that the results give."""
    made = [
        _overview(results),
        _over_time(results),
        _matrices(results),
        _factors(results),
        *_vectors(results),
    ]
    return [p for p in made if p is not None]


def write_png(results: Results, folder: str | Path) -> list[Path]:
    """Write every picture into `folder` as PNG (1000 pixels wide), and return the paths."""
    from jaxmerge.report.canvas import png

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for plot in of(results):
        paths.append(folder / f"{plot.name}.png")
        paths[-1].write_bytes(png(plot.draw(LIGHT), LIGHT))
    return paths


def _overview(results: Results) -> Plot | None:
    from jaxmerge.report.dots import Dot, overview

    colour = slots(label for label, _ in numbers.names(results))
    groups: dict[str, list[Dot]] = {}
    for name in numbers.names(results):
        found = numbers.stat(results, name)
        if found is not None:
            dot = Dot(name[0], found.mean, found.std, colour[name[0]], name[1] == "independent")
            groups.setdefault(tables.group(name[1]).capitalize(), []).append(dot)
    if not groups:
        return None
    title = words.overview_title(results)
    remark = "Accuracy on all classes after the last task, %"
    return Plot(
        "overview", title, words.overview_caption(results),
        lambda theme: overview(groups, title, remark, theme), [],
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
    for name in shown:
        points = numbers.mean_std([e.over_time for e in numbers.entries(results, name)])
        y, std = [p[0] for p in points], [p[1] for p in points]
        x = list(range(1, len(y) + 1))
        series.append(
            Series(words.title_of(name), x, y, std, colour[name[0]], name[1] == "independent")
        )
        rows.append([words.title_of(name), *(_cell(v) for v in y)])
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
        [Table("Mean over seeds, %", head, rows)],
    )  # fmt: skip


def _matrices(results: Results) -> Plot | None:
    from jaxmerge.report.heatmaps import heatmaps

    shown: list[Name] = []
    for name in (numbers.hero(results), numbers.LAST, *numbers.names(results)):
        found = numbers.entries(results, name) if name else []
        full = found and all(v is not None for e in found for row in e.matrix for v in row)
        if full and name not in shown and name[1] not in numbers.CONSTANT:
            shown.append(name)
    shown = shown[:2]
    if not shown:
        return None
    panels = {
        words.title_of(n): numbers.mean_matrix([e.matrix for e in numbers.entries(results, n)])
        for n in shown
    }
    title, caption = words.forgetting(results, shown)
    return Plot(
        "accuracy_matrix", title, caption,
        lambda theme: heatmaps(
            panels, title, "Accuracy on task i after task t, all classes to choose from, %", theme,
            xlabel="accuracy on task i", ylabel="after task t", stairs=True,
        ),
        [_grid(h, "after task", m) for h, m in panels.items()],
    )  # fmt: skip


def _factors(results: Results) -> Plot | None:
    from jaxmerge.report.lines import curves

    groups: dict[str, list[Name]] = {}
    for name in numbers.names(results):
        found = [e for e in numbers.entries(results, name) if e.sweep]
        if any(len(set(e.sweep.factors)) > 1 for e in found):
            groups.setdefault(name[1], []).append(name)
    if not groups:
        return None
    colour = slots(label for label, _ in numbers.names(results))
    panels, shown_numbers = {}, []
    for finetunes, shown in groups.items():
        found = [_sweep(numbers.entries(results, n), n[0], colour[n[0]]) for n in shown]
        panels[f"{finetunes} fine-tunes".capitalize()] = [s for s, _ in found]
        shown_numbers += [t for _, t in found]
    title, caption = words.factors(results, [n for g in groups.values() for n in g])
    return Plot(
        "merge_factor", title, caption,
        lambda theme: curves(
            panels, title, "merge factor", "Accuracy on the validation split, mean over seeds",
            theme, markers=False, height=2.0,
        ),
        shown_numbers,
    )  # fmt: skip


def _sweep(found: Sequence[Entry], label: str, slot: int):
    """One curve: the mean over the seeds that tried the same factors as the first."""
    from jaxmerge.report.lines import Series

    sweeps = [e.sweep for e in found if e.sweep]
    same = [s for s in sweeps if s.factors == sweeps[0].factors]
    x = sweeps[0].factors
    y = [m for m, _ in numbers.mean_std([s.accuracy for s in same])]
    at = dict(zip(x, y, strict=True))
    chosen = sorted({(s.chosen, at[s.chosen]) for s in same if at.get(s.chosen) is not None})
    rows = [[f"{a:g}", _cell(b)] for a, b in zip(x, y, strict=True)]
    table = Table(f"{label} ({found[0].finetunes})", ["Factor", "Validation accuracy, %"], rows)
    return Series(label, x, y, (), slot, False, chosen), table


def _vectors(results: Results) -> list[Plot | None]:
    from jaxmerge.report.dots import bars
    from jaxmerge.report.heatmaps import heatmaps

    kinds = list(dict.fromkeys(v.finetunes for run in results.seeds for v in run.vectors))
    found = [_mean_vectors(results, kind) for kind in kinds]
    if not found:
        return []
    plots: list[Plot | None] = []
    for what, low in (("cosine", -1.0), ("sign_agreement", 0.0)):
        panels = {v.finetunes.capitalize(): getattr(v, what) for v in found}
        title, caption = words.pairs(found, what)
        share = what == "sign_agreement"
        remark = "Share of entries, %" if share else "Cosine of the task vectors of two tasks"

        def draw(theme, panels=panels, title=title, remark=remark, low=low, share=share):
            return heatmaps(
                panels, title, remark, theme, xlabel="task", ylabel="task",
                low=low, percent=share, diverging=True,
            )  # fmt: skip

        grids = [_grid(h, "task", m, share) for h, m in panels.items()]
        plots.append(Plot(what, title, caption, draw, grids))
    plots.append(_magnitudes(found))
    title, caption = words.shares(found)
    groups = {v.finetunes.capitalize(): v.magmax_share for v in found}
    n = max(len(v) for v in groups.values())
    table = Table(
        "Share of entries, %",
        ["Task", *(str(i + 1) for i in range(n))],
        [[k, *(_cell(x) for x in v)] for k, v in groups.items()],
    )
    plots.append(
        Plot(
            "magmax_share", title, caption,
            lambda theme: bars(
                groups, title, "Share of the merge's entries that come from each task", theme,
                "task", 1 / n,
            ),
            [table],
        )
    )  # fmt: skip
    return plots


def _magnitudes(found: list[Vectors]) -> Plot | None:
    from jaxmerge.report.lines import Series, curves

    title, caption = words.magnitudes(found)

    def panels() -> dict[str, list[Series]]:
        out = {}
        for v in found:
            edges, n = v.magnitude_edges, len(v.magnitude_counts)
            middle = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
            used = [k for k, c in enumerate(zip(*v.magnitude_counts, strict=True)) if any(c)]
            part = slice(used[0], used[-1] + 1) if used else slice(None)
            lines = []
            for t in sorted({0, n // 2, n - 1}):
                total = sum(v.magnitude_counts[t]) or 1
                y = [c / total for c in v.magnitude_counts[t][part]]
                slot = {0: 1, n - 1: 0}.get(t, SLOTS.index("grey"))
                lines.append(Series(f"task {t + 1}", middle[part], y, (), slot))
            out[v.finetunes.capitalize()] = lines
        return out

    return Plot(
        "magnitudes", title, caption,
        lambda theme: curves(
            panels(), title, "log10 of the magnitude of an entry",
            "Share of a task vector's non-zero entries in each bin", theme, markers=False,
            height=1.6, legend=True,
        ),
        [],
    )  # fmt: skip


def _mean_vectors(results: Results, finetunes: str) -> Vectors:
    """The same figures averaged over seeds, place by place; counts are added."""
    found = [v for run in results.seeds for v in run.vectors if v.finetunes == finetunes]
    found = [v for v in found if v.magnitude_edges == found[0].magnitude_edges]
    row = lambda name: [m for m, _ in numbers.mean_std([getattr(v, name) for v in found])]
    counts = [
        [sum(c) for c in zip(*rows, strict=False)]
        for rows in zip(*(v.magnitude_counts for v in found), strict=False)
    ]
    return Vectors(
        finetunes, row("norm"), row("relative"), numbers.mean_matrix([v.cosine for v in found]),
        numbers.mean_matrix([v.sign_agreement for v in found]), found[0].magnitude_edges, counts,
        row("magmax_share"),
    )  # fmt: skip


def _cell(v: float | None, share: bool = True) -> str:
    if v is None:
        return "–"
    return f"{100 * v:.1f}" if share else f"{v:.2f}"


def _grid(heading: str, corner: str, matrix, share: bool = True) -> Table:
    head = [corner, *(str(i + 1) for i in range(len(matrix)))]
    rows = [[str(t + 1), *(_cell(v, share) for v in row)] for t, row in enumerate(matrix)]
    return Table(heading, head, rows)
