"""One self-contained ``report.html``: the table, the pictures, and how they came about.

The page needs no network and no JavaScript to be read; its script only sorts tables and switches
between light and dark.  Results are not trusted: every word is escaped, and the page's content
security policy lets only the script that is shipped here run (by its hash), and nothing load.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from jaxmerge.continual.results import Results
from jaxmerge.report import numbers, plots, tables, words
from jaxmerge.report.picture import Plot, Table
from jaxmerge.report.style import THEMES


def write(results: Results, path: str | Path) -> Path:
    """Write the report of a run to `path`, and return it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(page(results), encoding="utf-8")
    return new.replace(path)


def page(results: Results) -> str:
    """The report as text; equal results give equal text, byte by byte."""
    results = numbers.clean(results)
    css, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    body = "\n".join(
        [
            _header(results),
            "<main>",
            f'<p class="lead">{_e(words.headline(results))}</p>',
            _summary(results),
            _pictures(results),
            _provenance(results),
            "</main>",
            "<footer>All figures are in <code>results.json</code> beside this page.</footer>",
        ]
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_e(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_e(results.experiment)} – jaxmerge</title>
<link rel="icon" href="data:,">
<style>
{css}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def _e(text: Any) -> str:
    return escape(str(text), quote=True)


def _asset(name: str) -> str:
    return resources.files("jaxmerge.report").joinpath(name).read_text(encoding="utf-8")


def _header(results: Results) -> str:
    return f"""<header>
<div><h1>{_e(results.experiment)}</h1><p>{_e(results.scenario)}</p></div>
<button class="toggle" type="button" hidden>Dark</button>
</header>"""


def _summary(results: Results) -> str:
    metrics = tables.columns(results)
    heads = "".join(
        f'<th scope="col" title="{_e(tables.MEANING.get(m, ""))}">'
        f'<span class="long">{_e(tables.head(m))}</span>'
        f'<span class="short">{_e(tables.SHORT.get(m, m))}</span></th>'
        for m in metrics
    )
    body = "\n".join(_row(row) for row in tables.rows(results))
    seeds = max((s.n for r in results.summary for s in r.metrics.values() if s), default=0)
    spread = f"Mean ± standard deviation over {seeds} seeds. " if seeds > 1 else ""
    meaning = "".join(
        f'<tr><th scope="row">{_e(tables.head(m))}</th><td>{_e(tables.MEANING[m])}</td></tr>'
        for m in metrics
        if m in tables.MEANING
    )
    return f"""<section>
<h2>All methods</h2>
<div class="scroll wide" tabindex="0" role="region" aria-label="All methods">
<table data-sort>
<thead><tr><th scope="col">Method</th>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div>
<p class="note">Percent. {spread}Bold: the best mean among the methods that learnt the stream.</p>
<details class="words prose"><summary>What the columns mean</summary>
<table>{meaning}</table></details>
</section>"""


def _row(row: tables.Row) -> str:
    cells = []
    for c in row.cells:
        value = "" if c.stat is None else f"{c.stat.mean:.6f}"
        mean = f"<b>{_e(c.mean)}</b>" if c.best else _e(c.mean)
        std = f' <span class="std">± {_e(c.std)}</span>' if c.std else ""
        cells.append(f'<td data-value="{value}">{mean.replace("-", "−")}{std}</td>')
    group = "" if row.finetunes in numbers.CONSTANT else f"<small>{_e(row.finetunes)}</small>"
    key = _e(f"{row.label} {row.finetunes}")
    return f'<tr><td data-value="{key}">{_e(row.label)}{group}</td>{"".join(cells)}</tr>'


def _pictures(results: Results) -> str:
    found = plots.of(results)
    if not found:
        return ""
    return f"""<section>
<h2>Pictures</h2>
<div class="plots">
{"".join(_figure(plot) for plot in found)}</div>
</section>"""


def _figure(plot: Plot) -> str:
    from jaxmerge.report.canvas import svg

    drawn = "\n".join(
        f'<div class="on-{theme.name}">'
        f"{svg(plot.draw(theme), theme, f'{plot.name}-{theme.name}', plot.title)}</div>"
        for theme in THEMES
    )
    grids = "".join(_grid(t) for t in plot.tables)
    behind = f"<details><summary>Numbers</summary>{grids}</details>" if grids else ""
    return f"""<figure id="{_e(plot.name)}">
{drawn}
<figcaption>{_e(plot.caption)}</figcaption>
{behind}</figure>
"""


def _grid(table: Table) -> str:
    head = "".join(f'<th scope="col">{_e(h)}</th>' for h in table.head)
    body = "".join(
        f'<tr><th scope="row">{_e(r[0])}</th>{"".join(f"<td>{_e(c)}</td>" for c in r[1:])}</tr>'
        for r in table.rows
    )
    return (
        f'<h3>{_e(table.heading)}</h3><div class="scroll" tabindex="0" role="region" '
        f'aria-label="{_e(table.heading)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _provenance(results: Results) -> str:
    seconds = {k: f"{v:,.1f} s" for k, v in results.seconds.items()}
    training: dict[str, float] = {}
    for run in results.seeds:
        for name, spent in run.streams.items():
            training[name] = training.get(name, 0.0) + spent.get("training", 0.0)
    seconds |= {f"training, {name}": f"{v:,.1f} s" for name, v in training.items()}
    if results.peak_memory is not None:
        seconds["peak memory"] = f"{results.peak_memory / 1e9:.2f} GB"
    folds = [
        _fold("Recipe", _pairs(flat(results.recipe))),
        _fold("Merges and their factors", _merges(results)),
        _fold("The stream", _stream(results)),
        _fold("Accuracy, seed by seed", _by_seed(results)),
        _fold("Time and memory", _pairs(seconds.items())),
        _fold("Versions and machine", _pairs([*results.versions.items(), *flat(results.machine)])),
    ]
    return f"<section>\n<h2>How it was made</h2>\n{''.join(folds)}</section>"


def _fold(summary: str, inside: str) -> str:
    if not inside:
        return ""
    return f'<details class="words"><summary>{_e(summary)}</summary><div>{inside}</div></details>\n'


def _pairs(pairs: Iterable[tuple[Any, Any]]) -> str:
    rows = "".join(f'<tr><th scope="row">{_e(k)}</th><td>{_e(v)}</td></tr>' for k, v in pairs)
    return f"<table>{rows}</table>" if rows else ""


def flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as dotted names and values.

    >>> flat({"merge": {"method": "ties", "factors": [0.5, 1]}, "seed": 0})
    [('merge.method', 'ties'), ('merge.factors', '[0.5, 1]'), ('seed', '0')]
    """
    if isinstance(tree, Mapping) and tree:
        return [p for k, v in tree.items() for p in flat(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False))]


def _merges(results: Results) -> str:
    out = []
    for name in numbers.names(results):
        used = dict.fromkeys(e.method for e in numbers.entries(results, name) if e.method)
        if used:
            out.append((words.title_of(name), "; ".join(used)))
    return _pairs(out)


def _stream(results: Results) -> str:
    parts = []
    for run in results.seeds:
        rows = [
            (f"task {k}", f"{', '.join(t.classes)} ({t.train} / {t.val} / {t.test})")
            for k, t in enumerate(run.tasks, 1)
        ]
        parts.append(f"<h3>Seed {_e(run.seed)}</h3>{_pairs(rows)}")
    note = '<p class="note">Classes, and images of the training, validation and test split.</p>'
    return "".join(parts) + note if parts else ""


def _by_seed(results: Results) -> str:
    seeds: Sequence[Any] = results.seeds
    if len(seeds) < 2:
        return ""
    rows = []
    for name in numbers.names(results):
        values = []
        for run in seeds:
            found = [e for e in run.entries if (e.label, e.finetunes) == name]
            value = found[0].metrics.get("accuracy") if found else None
            values.append("–" if value is None else f"{100 * value:.1f}")
        rows.append([words.title_of(name), *values])
    head = ["Method", *(f"Seed {run.seed}" for run in seeds)]
    return _grid(Table("Accuracy after the last task, %", head, rows))
