"""`jaxmerge report STORE...`: tables and pictures from runs, sweeps and result stores."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxmerge.errors import UserError, closest
from jaxmerge.evaluation.definitions import NAMES as METRICS
from jaxmerge.report import swept
from jaxmerge.studies import result_store
from jaxmerge.studies.gather import gather
from jaxmerge.studies.results import Results
from jaxmerge.training import checkpoint

FORMATS = ("md", "latex", "html")


def run(
    stores: Sequence[str | Path],
    *,
    format: str | None = None,
    metric: str | None = None,
    plot: bool = False,
    out: str | Path | None = None,
    json: bool = False,
) -> dict[str, Results]:
    """Print tables of everything that runs and stores hold, mean and spread over seeds and orders.

    Args:
        stores: run folders, sweep folders, ``results.json`` or Parquet files, or folders of them.
        format: "md", "latex" or "html"; by default a table for the terminal.
        metric: one figure only, results that differ in a setting beside each other.
        plot: write the pictures too, as PNG.
        out: file for the table (html: ``report.html`` by default), or folder when there are
            pictures.

    Raises:
        UserError: nothing to read, an unknown format or metric.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"No format {format!r}: {closest(format, FORMATS)}")
    if metric is not None and metric not in METRICS:
        raise UserError(f"No metric {metric!r}: {closest(metric, METRICS)}")
    if json and (format or plot):
        raise UserError("--json prints rows; leave --format and --plot out.")
    rows = [row for path in stores for row in result_store.read(path)]
    groups = gather(rows)
    if json:
        import json as jsonlib

        print(jsonlib.dumps(rows, default=str))
        return groups
    if plot:
        folder = Path(out) if out is not None else Path("report")
        folder.mkdir(parents=True, exist_ok=True)
        pictures(groups, folder)
        if count := swept.write_png(rows, folder / "sweep", metric or "accuracy"):
            print(f"{folder / 'sweep'}  ({count} over what was swept)", file=sys.stderr)
        out = folder / f"table.{_suffix(format)}" if format else None
    if format is None:
        show(groups, metric)
    elif format == "html":
        pages(groups, Path(out) if out is not None else Path("report.html"))
    else:
        text = tables(groups, format, metric)
        if out is None:
            print(text, end="")
        else:
            checkpoint.replace(out, text)
            print(out, file=sys.stderr)
    return groups


def _suffix(format: str) -> str:
    return {"md": "md", "latex": "tex", "html": "html"}[format]


def show(groups: Mapping[str, Results], metric: str | None = None) -> None:
    """Tables for the terminal."""
    from rich.console import Console

    from jaxmerge.report import across
    from jaxmerge.report import tables as one

    console = Console(markup=False)
    if metric is not None:
        console.print(across.rich_table(groups, metric))
        return
    for name, results in groups.items():
        title = one.plain_line(f"{name}: {results.scenario}")
        console.print(title, style="bold", highlight=False, markup=False)
        console.print(one.rich_table(results))


def tables(groups: Mapping[str, Results], format: str, metric: str | None = None) -> str:
    """All tables as Markdown or LaTeX; headings as Markdown or as comments."""
    from jaxmerge.report import across
    from jaxmerge.report import tables as one

    if metric is not None:
        return (across.markdown if format == "md" else across.latex)(groups, metric)
    make, sign = (one.markdown, "##") if format == "md" else (one.latex, "%")
    quoted = one.plain_markdown if format == "md" else one.plain_line
    return "\n".join(
        f"{sign} {quoted(f'{name}: {results.scenario}')}\n\n{make(results)}"
        for name, results in groups.items()
    )


def pages(groups: Mapping[str, Results], path: Path) -> None:
    """One self-contained page for each group of results; the paths go to standard error."""
    from jaxmerge.report import html

    for k, results in enumerate(groups.values()):
        page = path if k == 0 else path.with_name(f"{path.stem}-{k + 1}{path.suffix}")
        print(html.write(results, page), file=sys.stderr)


def pictures(groups: Mapping[str, Results], folder: Path) -> None:
    """The pictures of every group of results; the folders go to standard error."""
    from jaxmerge.report import plots

    for k, results in enumerate(groups.values()):
        place = folder / "plots" if len(groups) == 1 else folder / f"plots-{k + 1}"
        plots.write_png(results, place)
        print(f"{place}  ({results.experiment})", file=sys.stderr)
