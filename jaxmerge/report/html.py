"""One self-contained ``report.html``: the table, the pictures, and how they came about.

The page needs no network and no JavaScript to be read; its script only sorts tables and switches
between light and dark.  Results are not trusted: the template (``page.html``) escapes every word,
and the page's content security policy lets only the script that is shipped here run (by its hash),
and nothing load.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jaxmerge.errors import writing
from jaxmerge.evaluation.definitions import DEFINITIONS
from jaxmerge.report import numbers, plots, tables, words
from jaxmerge.report.picture import Plot, Table
from jaxmerge.report.style import THEMES
from jaxmerge.studies.results import Results

Json = Mapping[str, Any] | list[Any] | str | float | bool | None


def write(results: Results, path: str | Path) -> Path:
    """Write the report of a run to `path`, and return it.

    Args:
        results: of a run.
        path: of the file; its folder is made.

    >>> import tempfile
    >>> from jaxmerge.studies.results import Results, Stat, Summary
    >>> row = Summary("MagMax", "sequential", {"accuracy": Stat(0.8, 0.0, 1)})
    >>> results = Results("mine", "2 tasks", ["cat"], {}, [], [row], {}, {}, {})
    >>> write(results, Path(tempfile.mkdtemp()) / "report.html").name
    'report.html'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with writing(path):
        new.write_text(page(results), encoding="utf-8")
    return new.replace(path)


def page(results: Results) -> str:
    """The report as text; equal results give equal text, byte by byte.

    Args:
        results: of a run.

    >>> from jaxmerge.studies.results import Results, Stat, Summary
    >>> row = Summary("MagMax", "sequential", {"accuracy": Stat(0.8, 0.0, 1)})
    >>> results = Results("mine", "2 tasks", ["cat"], {}, [], [row], {}, {}, {})
    >>> page(results) == page(results)
    True
    """
    results = numbers.clean(results)
    css, script = _asset("page.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _template().render(
        results=results,
        policy=policy,
        css=css,
        script=script,
        headline=words.headline(results),
        columns=[
            {
                "head": tables.head(m),
                "short": DEFINITIONS[m].short if m in DEFINITIONS else m,
                "meaning": DEFINITIONS[m].meaning if m in DEFINITIONS else "",
            }
            for m in tables.columns(results)
        ],
        rows=tables.rows(results),
        constant=numbers.CONSTANT,
        seeds=max((s.n for r in results.summary for s in r.metrics.values() if s), default=0),
        plots=[_drawn(plot) for plot in plots.of(results)],
        recipe=flat(results.recipe),
        merges=_merges(results),
        streams=_streams(results),
        by_seed=_by_seed(results),
        costs=_costs(results),
        versions=[*results.versions.items(), *flat(results.machine)],
    )


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return resources.files("jaxmerge.report").joinpath(name).read_text(encoding="utf-8")


def _drawn(plot: Plot) -> dict[str, Any]:
    from jaxmerge.report.canvas import svg

    drawn = [
        (theme.name, svg(plot.draw(theme), theme, f"{plot.name}-{theme.name}", plot.title))
        for theme in THEMES
    ]
    return {"name": plot.name, "caption": plot.caption, "tables": plot.tables, "drawn": drawn}


def _costs(results: Results) -> list[tuple[str, str]]:
    seconds = dict(results.seconds)
    for run in results.seeds:
        for name, spent in run.streams.items():
            label = f"training, {name}"
            seconds[label] = seconds.get(label, 0.0) + spent.get("training", 0.0)
    costs = [(k, f"{v:,.1f} s") for k, v in seconds.items()]
    if results.peak_memory is not None:
        costs.append(("peak memory", f"{results.peak_memory / 1e9:.2f} GB"))
    return costs


def flat(tree: Json, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as dotted names and values.

    Args:
        tree: mappings with text as keys, lists, texts, numbers.
        prefix: of all names.

    >>> flat({"merge": {"method": "ties", "factors": [0.5, 1]}, "seed": 0})
    [('merge.method', 'ties'), ('merge.factors', '[0.5, 1]'), ('seed', '0')]
    """
    if isinstance(tree, Mapping) and tree:
        return [p for k, v in tree.items() for p in flat(v, f"{prefix}.{k}" if prefix else str(k))]
    return [(prefix, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False))]


def _merges(results: Results) -> list[tuple[str, str]]:
    merges = []
    for name in numbers.names(results):
        used = dict.fromkeys(e.method for e in numbers.entries(results, name) if e.method)
        if used:
            merges.append((words.title_of(name), "; ".join(used)))
    return merges


def _streams(results: Results) -> list[tuple[int, list[tuple[str, str]]]]:
    return [
        (
            run.seed,
            [
                (f"task {k}", f"{', '.join(t.classes)} ({t.train} / {t.val} / {t.test})")
                for k, t in enumerate(run.tasks, 1)
            ],
        )
        for run in results.seeds
    ]


def _by_seed(results: Results) -> Table | None:
    if len(results.seeds) < 2:
        return None
    rows = []
    for name in numbers.names(results):
        values = []
        for run in results.seeds:
            entries = [e for e in run.entries if (e.label, e.finetunes) == name]
            value = entries[0].metrics.get("accuracy") if entries else None
            values.append("–" if value is None else f"{100 * value:.1f}")
        rows.append([words.title_of(name), *values])
    head = ["Method", *(f"Seed {run.seed}" for run in results.seeds)]
    return Table("Accuracy after the last task, %", head, rows)
