"""The pictures of task vectors: where they point, how large they are, who wins in MagMax."""

from __future__ import annotations

import itertools
from typing import Any

from jaxmerge.report import numbers, words
from jaxmerge.report.picture import Plot, Table, cell, grid
from jaxmerge.report.style import SLOTS
from jaxmerge.studies.results import Results, Vectors


def of(results: Results) -> list[Plot]:
    """Cosines, signs, magnitudes and MagMax's shares, if the results have task vectors.

    Args:
        results: of an experiment.

    >>> of(Results("toy", "one task", ["cat"], {}, [], [], {}, {}, {}))  # without task vectors
    []
    """
    from jaxmerge.report.dots import bars
    from jaxmerge.report.heatmaps import heatmaps

    kinds = list(dict.fromkeys(v.finetunes for run in results.seeds for v in run.vectors))
    vectors = [_mean_vectors(results, kind) for kind in kinds]
    if not vectors:
        return []
    plots: list[Plot] = []
    for what, low in (("cosine", -1.0), ("sign_agreement", 0.0)):
        panels = {words.sentence(v.finetunes, ""): getattr(v, what) for v in vectors}
        title, caption = words.pairs(vectors, what)
        share = what == "sign_agreement"
        remark = "Share of entries, %" if share else "Cosine of the task vectors of two tasks"

        def draw(theme, panels=panels, title=title, remark=remark, low=low, share=share):
            return heatmaps(
                panels, title, remark, theme, xlabel="task", ylabel="task",
                low=low, percent=share, diverging=True,
            )  # fmt: skip

        grids = [grid(h, "task", m, share) for h, m in panels.items()]
        plots.append(Plot(what, title, caption, draw, grids))
    plots.append(_magnitudes(vectors))
    title, caption = words.shares(vectors)
    groups = {words.sentence(v.finetunes, ""): v.magmax_share for v in vectors}
    n = max(len(v) for v in groups.values())
    table = Table(
        "Share of entries, %",
        ["Task", *(str(i + 1) for i in range(n))],
        [[k, *(cell(x) for x in v)] for k, v in groups.items()],
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


def _magnitudes(vectors: list[Vectors]) -> Plot:
    from jaxmerge.report.lines import Series, curves

    title, caption = words.magnitudes(vectors)

    few = max(c for v in vectors for row in v.magnitude_counts for c in row) / 200
    columns = [c for v in vectors for c in enumerate(zip(*v.magnitude_counts, strict=True))]
    used = [k for k, column in columns if max(column) > few]
    part = slice(max(min(used, default=0) - 1, 0), max(used, default=0) + 2)
    panels = {}
    for v in vectors:
        edges, n = v.magnitude_edges, len(v.magnitude_counts)
        middle = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
        panels[words.sentence(v.finetunes, "")] = lines = []
        for t in sorted({0, n // 2, n - 1}):
            total = sum(v.magnitude_counts[t]) or 1
            y = [c / total for c in v.magnitude_counts[t][part]]
            slot = {0: 1, n - 1: 0}.get(t, SLOTS.index("grey"))
            lines.append(Series(f"task {t + 1}", middle[part], y, (), slot))
    return Plot(
        "magnitudes", title, caption,
        lambda theme: curves(
            panels, title, "log10 of the magnitude of an entry",
            "Share of a task vector's non-zero entries in each bin", theme, markers=False,
            height=1.6, legend=True,
        ),
        [],
    )  # fmt: skip


def _mean_vectors(results: Results, finetunes: str) -> Vectors:
    """The same figures averaged over seeds, place by place; counts are added."""
    same = [v for run in results.seeds for v in run.vectors if v.finetunes == finetunes]
    same = [v for v in same if v.magnitude_edges == same[0].magnitude_edges]

    def row(name: str) -> list[Any]:
        return [m for m, _ in numbers.mean_std([getattr(v, name) for v in same])]

    counts = [
        [sum(c) for c in zip(*rows, strict=False)]
        for rows in zip(*(v.magnitude_counts for v in same), strict=False)
    ]
    return Vectors(
        finetunes, row("norm"), row("relative"), numbers.mean_matrix([v.cosine for v in same]),
        numbers.mean_matrix([v.sign_agreement for v in same]), same[0].magnitude_edges, counts,
        row("magmax_share"),
    )  # fmt: skip
