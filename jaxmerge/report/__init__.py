"""What a run shows: tables, pictures and one HTML page, made from `Results` and nothing else.

* `tables`: Markdown, LaTeX and the terminal
* `plots`, `vectors`: the pictures of a run; `lines`, `heatmaps` and `dots` draw them on a `canvas`,
  in the looks of `style`
* `words`: titles and captions, computed from `numbers`
* `html`: the page

matplotlib is imported when something is drawn, not before.
"""

from __future__ import annotations

from pathlib import Path

from jaxmerge.errors import writing
from jaxmerge.studies.results import Results


def write(results: Results, folder: str | Path) -> list[Path]:
    """Write ``plots/*.png``, ``table.md``, ``table.tex`` and ``report.html`` into a run folder.

    Args:
        results: what to show.
        folder: where; made if it is not there.

    Returns:
        The paths written, the page last.
    """
    from jaxmerge.report import html, plots, tables

    folder = Path(folder)
    paths = plots.write_png(results, folder / "plots")
    for name, text in (
        ("table.md", tables.markdown(results)),
        ("table.tex", tables.latex(results)),
    ):
        paths.append(folder / name)
        with writing(paths[-1]):
            paths[-1].write_text(text, encoding="utf-8")
    return [*paths, html.write(results, folder / "report.html")]
