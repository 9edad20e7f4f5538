"""One metric of several results beside each other: rows are methods, columns are results.

Made for sweeps and for papers' tables whose columns are settings ("5 tasks", "10 tasks").  The best
mean of a column is bold, as in `jaxmerge.report.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxmerge.report import tables
from jaxmerge.studies.results import Results, Summary

if TYPE_CHECKING:
    from rich.table import Table


def one(groups: Mapping[str, Results], metric: str) -> Results:
    """A `Results` whose metrics are the names of `groups`, and whose rows are all their methods."""
    rows: dict[tuple[str, str], Summary] = {}
    for name, results in zip(short(list(groups)), groups.values(), strict=True):
        for s in results.summary:
            row = rows.setdefault((s.label, s.finetunes), Summary(s.label, s.finetunes, {}))
            row.metrics[name] = s.metrics.get(metric)
    first = next(iter(groups.values()))
    return Results(
        first.experiment, first.scenario, [], {}, first.seeds, list(rows.values()), {}, {}, {}
    )


def _directed(groups: Mapping[str, Results], metric: str) -> tuple[Results, list[str]]:
    """The table of one metric, and its columns where less of it is better: all or none."""
    results = one(groups, metric)
    return results, tables.columns(results) if metric in tables.LOWER else []


def short(names: list[str]) -> list[str]:
    """Names without the words that all of them begin with.

    >>> short(["toy, lr 0.1", "toy, lr 0.2"])
    ['lr 0.1', 'lr 0.2']
    >>> short(["toy"])
    ['toy']
    """
    parts = [n.split(", ") for n in names]
    while len(parts) > 1 and all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    return [", ".join(p) for p in parts]


def markdown(groups: Mapping[str, Results], metric: str) -> str:
    """A GitHub table."""
    title = tables.plain_markdown(tables.head(metric))
    return f"{title}\n\n{tables.markdown(*_directed(groups, metric))}"


def latex(groups: Mapping[str, Results], metric: str) -> str:
    """A table for a paper; needs the package booktabs."""
    title = tables.plain_line(tables.head(metric))
    return f"% {title}\n{tables.latex(*_directed(groups, metric))}"


def rich_table(groups: Mapping[str, Results], metric: str) -> Table:
    """A table for the terminal."""
    results, lower = _directed(groups, metric)
    table = tables.rich_table(results, tables.columns(results), lower)
    table.title = tables.head(metric)
    return table
