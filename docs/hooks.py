"""What three pages are filled with, from the code itself: no table is kept by hand.

What stands between ``<!-- methods -->`` and ``<!-- /methods -->`` is the table of published
methods: what each needs, its memory, and whether the order of the models matters, which is
*measured* on the toy model of `tests/laws.py`.

``results`` is a section for every run of an experiment in `experiments/results/`, ``benchmarks``
one for every other file there: the Markdown that its script wrote beside it, or else its rows.

    python docs/hooks.py        # writes the tables into the Markdown files, draws rehearsal*.png
                                # and online_streams.png

When the site is built the same sections come with links and pictures.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
ELSEWHERE = (  # shown in reproduction.md and rehearsal.md
    "jaxmerge.continual_table/1", "jaxmerge.oracles/1", "jaxmerge.rehearsal/1",
    "jaxmerge.slca/1", "jaxmerge.distil_towers/1", "jaxmerge.online_streams/1",
)  # fmt: skip


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this with every page."""
    return fill(markdown, plain=False)


def fill(text: str, plain: bool = True) -> str:
    """A page with every section made anew; `plain` without pictures and links to the reference."""
    for name, make in SECTIONS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if re.search(pattern, text, re.S):
            content = make(plain=plain).strip()
            text = re.sub(
                pattern, lambda m, content=content: f"{m[1]}\n{content}\n\n{m[2]}", text, flags=re.S
            )
    return text


def all_results(folder: Path = RESULTS, plain: bool = False) -> str:
    """Headline, table and (unless `plain`) pictures of every `Results` in the folder."""
    stored = runs(folder)
    if not stored:
        return "No results are stored in this version."
    heads = headings(stored)
    return "\n\n".join(_results(name, heads[name], r, plain) for name, r in stored.items())


def runs(folder: Path) -> dict[str, Any]:
    """The `Results` in a folder, by the names of their files."""
    from jaxmerge.studies.results import SCHEMA, Results

    texts = {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*.json"))}
    return {n: Results.from_json(t) for n, t in texts.items() if schema(json.loads(t)) == SCHEMA}


def headings(runs: dict[str, Any]) -> dict[str, str]:
    """A heading for every run by its file's name; those of one experiment are told apart by the
    number of tasks and the training examples a class."""
    several = Counter(r.experiment for r in runs.values())
    return {
        name: f"{r.experiment}{_told_apart(r) if several[r.experiment] > 1 else ''}"
        for name, r in runs.items()
    }


def _told_apart(results: Any) -> str:
    tasks, few = results.seeds[0].tasks, results.recipe.get("few")
    each = sum(t.train for t in tasks) / sum(len(t.classes) for t in tasks)
    whole = few is not None and "train" not in few  # the experiment can do with less
    budget = f"all training examples, {each:.0f}" if whole else f"{each:.0f} training examples"
    return f", {len(tasks)} tasks, {budget} a class"


def anchor(heading: str) -> str:
    """Where a heading is linked to, in a forge and on the site."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _results(name: str, heading: str, results: Any, plain: bool) -> str:
    from html import escape

    from jaxmerge.report import plots, tables, words
    from jaxmerge.report.canvas import svg
    from jaxmerge.report.style import THEMES

    pictures = []
    for plot in () if plain else plots.of(results):
        both = "".join(
            f'<div class="on-{theme.name}">'
            f"{svg(plot.draw(theme), theme, f'{name}-{plot.name}-{theme.name}', plot.title)}</div>"
            for theme in THEMES
        )
        pictures.append(f"<figure>{both}<figcaption>{escape(plot.caption)}</figcaption></figure>")
    body = "\n".join(pictures)
    return "\n\n".join(
        [
            f"## {escape(heading)}",
            escape(f"{results.scenario}. {words.headline(results)}") + _where(results.experiment),
            tables.markdown(results).strip(),
            *([] if plain else [f'<div class="plots">\n{body}\n</div>']),
        ]
    )


def _where(experiment: str) -> str:
    """Which file explains the labels of an experiment's streams and settings."""
    file = RESULTS.parent / f"{experiment.replace('-', '_')}.py"
    return f" Its streams and settings: `experiments/{file.name}`." if file.exists() else ""


def benchmarks(folder: Path = RESULTS, plain: bool = False) -> str:
    """Every measurement in the folder that is no run of an experiment; the same, plain or not."""
    from jaxmerge.studies.results import SCHEMA

    sections = {p: section(p) for p in sorted(folder.rglob("*.md"))}
    for path in sorted(folder.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.with_suffix(".md") in sections or schema(content) in (SCHEMA, *ELSEWHERE):
            continue
        rows = content if isinstance(content, dict) else {"": content}
        sections[path] = f"## {path.stem.replace('_', ' ')}\n\n{tabled(rows)}"
    return "\n\n".join(sections[p] for p in sorted(sections)) or "Nothing is stored here."


def schema(content: Any) -> str | None:
    """What a file says it is."""
    return content.get("schema") if isinstance(content, dict) else None


def section(path: Path) -> str:
    """A Markdown file with its headings one level lower, headed by its name where it has none."""
    text = path.read_text(encoding="utf-8")
    if not text.startswith("#"):
        text = f"# {path.stem.replace('_', ' ')}\n\n{text}"
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())


def tabled(content: dict[str, Any]) -> str:
    """JSON as Markdown: its words as a list, its rows (a list or mapping of mappings) as tables."""
    tables, words = [], []
    for key, value in content.items():
        rows = [{"": k, **v} for k, v in value.items() if isinstance(v, dict)] if isinstance(
            value, dict) else value  # fmt: skip
        if isinstance(rows, list) and rows and all(isinstance(r, dict) for r in rows):
            rows = [flat(r) for r in rows]
            heads = list(dict.fromkeys(h for r in rows for h in r))
            lines = [heads, [":--"] + ["--:"] * (len(heads) - 1)]
            lines += [[shown(r.get(h, "")) for h in heads] for r in rows]
            tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        elif isinstance(value, dict):  # the machine, versions
            facts = ", ".join(f"{k} {shown(v)}" for k, v in flat(value).items())
            words += [f"* {key}: {facts}"] if facts else []
        elif not isinstance(value, list):
            words.append(f"* {key}: `{value if isinstance(value, str) else shown(value)}`")
    return "\n\n".join(["\n".join(words), *tables])


def flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, lists left out."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        name = f"{prefix} {key}".strip()
        if isinstance(value, dict):
            out |= flat(value, name)
        elif not isinstance(value, list):
            out[name] = value
    return out


def shown(value: Any) -> str:
    """A figure with three digits that count."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(str(value).split()).replace("|", "\\|")


def methods(plain: bool = False) -> str:
    """The table of published methods, as Markdown; unless `plain` linked to the reference."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(ROOT / "tests"))
    import jaxmerge as jm
    from jaxmerge.cli.methods import describe

    lines = [
        "| Method | What it does | Needs | Order matters | Memory | Settings |",
        "|:--|:--|:--|:--|:--|:--|",
    ]
    for name in sorted(jm.REGISTRY):
        entry = describe(name)
        if entry["kind"] == "method":
            lines.append(_row(name, entry, plain))
    return "\n".join(lines) + "\n"


def _row(name: str, entry: dict[str, Any], plain: bool) -> str:
    import laws

    import jaxmerge as jm
    from jaxmerge.cli.methods import settings

    case = laws.case_of(name)
    package = jm.REGISTRY[name].__module__
    cells = [
        f"`{name}`" if plain else f"[`{name}`][{package}.{name}]",
        entry["summary"],
        _needs(case),
        _order(case),
        entry["memory"] or "",
        ", ".join(f"`{s}`" for s in settings(jm.REGISTRY[name])),
    ]
    return "| " + " | ".join(str(c).replace("``", "`").replace("|", "\\|") for c in cells) + " |"


def _needs(case: Any) -> str:
    words = {"fisher": "Fisher information", "gram": "Gram matrices", "mask": "masks"}
    needs = [words.get(n, n) for n in case.method.needs]
    low, high = case.method.models
    if high is not None:
        needs.append(f"{low} model{'s' if low > 1 else ''}" if low == high else f"{low} to {high}")
    elif low > 1:
        needs.append(f"{low} models or more")
    if case.stochastic:
        needs.append("a key")
    return ", ".join(needs) or "–"


def _order(case: Any) -> str:
    import numpy as np

    if len(case.models) < 2:
        return "–"
    if case.stochastic:
        return "draws anew"
    extras = case.extras[::-1] if case.extras else None
    there, back = case.merge(), case.merge(models=case.models[::-1], extras=extras)
    same = all(np.allclose(there[n], back[n], atol=1e-5) for n in there)
    return "no" if same else "yes"


SECTIONS = {"methods": methods, "results": all_results, "benchmarks": benchmarks}
FILLED = ("choosing.md", "results.md", "benchmarks.md")

if __name__ == "__main__":
    for page in FILLED:
        path = ROOT / "docs" / page
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")
    sys.path.insert(0, str(ROOT / "experiments"))
    import draw_online_streams
    import draw_rehearsal

    draw_rehearsal.write()
    draw_online_streams.write()
