"""What a picture is: a way to draw it in a theme, with its title, its caption and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxmerge.report.style import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def cell(v: float | None, share: bool = True) -> str:
    """A figure as a word: a share as percent, anything else with two digits."""
    if v is None:
        return "–"
    return (f"{100 * v:.1f}" if share else f"{v:.2f}").replace("-", "−")


def grid(
    heading: str, corner: str, matrix: Sequence[Sequence[float | None]], share: bool = True
) -> Table:
    """A matrix as a table, rows and columns numbered from 1."""
    head = [corner, *(str(i + 1) for i in range(len(matrix)))]
    rows = [[str(t + 1), *(cell(v, share) for v in row)] for t, row in enumerate(matrix)]
    return Table(heading, head, rows)
