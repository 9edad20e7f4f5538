"""The table of a run as Markdown, LaTeX and rich: mean and spread over seeds, the best in bold.

Percent everywhere.  Bold is the best mean of a column among the methods that learnt the stream
(zero-shot and joint fine-tuning are the ends of the scale, not competitors), and every mean that
shows the same digits.  Columns that no method has are left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxmerge.evaluation.definitions import DEFINITIONS
from jaxmerge.io.untrusted import plain_line, plain_markdown
from jaxmerge.report.numbers import CONSTANT, clean
from jaxmerge.studies.results import Results, Stat

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

LOWER = tuple(name for name, d in DEFINITIONS.items() if d.lower_is_better)


class Cell(NamedTuple):
    """One figure: its mean and spread in percent as shown, bold or not; None if not measured."""

    stat: Stat | None
    mean: str
    std: str
    best: bool


class Row(NamedTuple):
    """One method: its names and its figures in the order of the columns."""

    label: str
    finetunes: str
    cells: list[Cell]


def columns(results: Results) -> list[str]:
    """The metrics that at least one method has, the known ones first.

    Left out: the mean over classes where it is the accuracy (every class has as many examples),
    and definitions that are shown on demand only (`jaxmerge report --metric`).

    Args:
        results: of a run.

    >>> from jaxmerge.studies.results import Results, Stat, Summary
    >>> row = Summary("MagMax", "sequential", {"accuracy": Stat(0.8, 0.0, 1)})
    >>> results = Results("mine", "2 tasks", ["cat"], {}, [], [row], {}, {}, {})
    >>> columns(results)
    ['accuracy']
    """
    have = [k for s in results.summary for k, v in s.metrics.items() if v is not None]
    figures = lambda k: [
        _digits(x.mean) if (x := s.metrics.get(k)) else "" for s in results.summary
    ]
    if figures("per_class") == figures("accuracy"):
        have = [k for k in have if k != "per_class"]
    known = [k for k, d in DEFINITIONS.items() if k in have and d.shown]
    return known + [k for k in dict.fromkeys(have) if k not in DEFINITIONS]


def rows(results: Results, lower: Collection[str] = LOWER) -> list[Row]:
    """The table itself, figures as words.

    Args:
        results: of a run.
        lower: metrics of which less is better.

    >>> from jaxmerge.studies.results import Results, Stat, Summary
    >>> row = Summary("MagMax", "sequential", {"accuracy": Stat(0.8, 0.0, 1)})
    >>> results = Results("mine", "2 tasks", ["cat"], {}, [], [row], {}, {}, {})
    >>> rows(results)[0].cells[0].mean
    '80.0'
    """
    results = clean(results)
    metrics = columns(results)
    best: dict[str, str] = {}
    for m in metrics:
        figures = [
            stat.mean
            for s in results.summary
            if s.finetunes not in CONSTANT and (stat := s.metrics.get(m)) is not None
        ]
        if len({_digits(x) for x in figures}) > 1:
            best[m] = _digits(min(figures) if m in lower else max(figures))
    table = []
    for s in results.summary:
        cells = [_cell(s.metrics.get(m), best.get(m), s.finetunes) for m in metrics]
        table.append(Row(s.label, s.finetunes, cells))
    return table


def _cell(stat: Stat | None, best: str | None, finetunes: str) -> Cell:
    if stat is None:
        return Cell(None, "–", "", False)
    mean = _digits(stat.mean)
    std = _digits(stat.std) if stat.n > 1 else ""
    return Cell(stat, mean, std, mean == best and finetunes not in CONSTANT)


def _digits(fraction: float) -> str:
    text = f"{100 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text


def head(metric: str) -> str:
    """What stands above a column.

    Args:
        metric: its name; one that is not known stands for itself.

    >>> head("accuracy"), head("mine")
    ('Accuracy', 'mine')
    """
    return DEFINITIONS[metric].head if metric in DEFINITIONS else metric


def markdown(results: Results, lower: Collection[str] = LOWER) -> str:
    """A GitHub table.

    Args:
        results: of a run.
        lower: metrics of which less is better.

    >>> from jaxmerge.studies.results import Results, Stat, Summary
    >>> row = Summary("MagMax", "sequential", {"accuracy": Stat(0.8, 0.0, 1)})
    >>> results = Results("mine", "2 tasks", ["cat"], {}, [], [row], {}, {}, {})
    >>> print(markdown(results).splitlines()[-1])
    | MagMax | sequential | 80.0 |
    """
    metrics = columns(results)
    lines = [
        _line(["Method", "Fine-tunes", *(f"{plain_markdown(head(m))} %" for m in metrics)]),
        _line([":--", ":--", *("--:" for _ in metrics)]),
    ]
    for row in rows(results, lower):
        names = plain_markdown(row.label), plain_markdown(row.finetunes)
        lines.append(_line([*names, *map(_md_cell, row.cells)]))
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_cell(cell: Cell) -> str:
    mean = f"**{cell.mean}**" if cell.best else cell.mean
    return f"{mean} ± {cell.std}" if cell.std else mean


def latex(results: Results, lower: Collection[str] = LOWER) -> str:
    """A table for a paper; needs the package booktabs.

    Args:
        results: of a run.
        lower: metrics of which less is better.

    >>> from jaxmerge.studies.results import Results, Stat, Summary
    >>> row = Summary("MagMax", "sequential", {"accuracy": Stat(0.8, 0.0, 1)})
    >>> results = Results("mine", "2 tasks", ["cat"], {}, [], [row], {}, {}, {})
    >>> print(latex(results).splitlines()[4])
    MagMax & sequential & $80.0$ \\\\
    """
    metrics = columns(results)
    heads = ["Method", "Fine-tunes", *(f"{_tex(head(m))} (\\%)" for m in metrics)]
    lines = [
        f"\\begin{{tabular}}{{ll{'r' * len(metrics)}}}",
        "\\toprule",
        " & ".join(heads) + r" \\",
        "\\midrule",
    ]
    for row in rows(results, lower):
        cells = [_tex(row.label), _tex(row.finetunes), *(_tex_cell(c) for c in row.cells)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _tex(text: str) -> str:
    return re.sub(r"\s+", " ", "".join(_TEX.get(c, c) for c in plain_line(text)))


def _tex_cell(cell: Cell) -> str:
    if cell.stat is None:
        return "--"
    mean = f"\\mathbf{{{cell.mean}}}" if cell.best else cell.mean
    return f"${mean} \\pm {cell.std}$" if cell.std else f"${mean}$"


GROUPS = {
    "none": "not fine-tuned",
    "sequential": "fine-tuned task after task",
    "independent": "fine-tuned on each task alone",
    "joint": "fine-tuned on all tasks at once",
}


def group(finetunes: str) -> str:
    """A heading for the rows of one set of fine-tunes.

    Args:
        finetunes: "none", "sequential", "independent" or "joint"; others stand for themselves.

    >>> group("joint")
    'fine-tuned on all tasks at once'
    """
    return GROUPS.get(finetunes, finetunes)


def rich_table(
    results: Results,
    metrics: Sequence[str] = ("accuracy", "aware", "over_time", "bwt", "forgetting"),
    lower: Collection[str] = LOWER,
) -> Table:
    """A table for the terminal, at most 80 columns wide with the default metrics.

    Args:
        results: of a run.
        metrics: those that are shown.
        lower: metrics of which less is better.

    >>> from jaxmerge.studies.results import Results, Stat, Summary
    >>> row = Summary("MagMax", "sequential", {"accuracy": Stat(0.8, 0.0, 1)})
    >>> results = Results("mine", "2 tasks", ["cat"], {}, [], [row], {}, {}, {})
    >>> rich_table(results).columns[1].header.plain
    'Accuracy'
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    seeds = len(results.seeds)
    caption = "percent" + (f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else "")
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
    shown = [(k, m) for k, m in enumerate(columns(results)) if m in metrics]
    table.add_column("Method")
    for _, m in shown:
        table.add_column(Text(head(m)), justify="right", no_wrap=True)
    last = None
    for row in rows(results, lower):
        if row.finetunes != last:
            if last is not None:
                table.add_section()
            if row.finetunes not in CONSTANT:
                table.add_row(Text(row.finetunes, style="italic dim"))
            last = row.finetunes
        table.add_row(Text(row.label), *(_rich_cell(row.cells[k]) for k, _ in shown))
    return table


def _rich_cell(cell: Cell) -> Text:
    from rich.text import Text

    text = Text(cell.mean, style="bold" if cell.best else "")
    return text.append(f" ±{cell.std}", style="not bold dim") if cell.std else text
