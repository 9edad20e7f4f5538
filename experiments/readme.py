"""Fill the tables of README.md and docs/measured.md from the result files, none by hand.

    python experiments/readme.py            # writes both; a test checks that they are up to date

It draws the README's picture from them too.

A section stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; NAME is a function below.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from reliability_page import attack
from speed_tables import mergekit, speed, steps, torch
from stream_tables import (
    FEW,
    accuracies,
    budgets,
    clinc150,
    edges,
    findings,
    held,
    lesson,
    quickstart,
    read,
    training,
)

from jaxmerge.report import canvas, plots

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/measured.md",
    "docs/files.md",
    "docs/reliability.md",
    "docs/scaling.md",
)


def suite() -> str:
    """Eight text tasks, every data-free method, two in ten orders."""
    if not (RESULTS / "text_suite.json").exists():
        return "Not measured yet."
    report = json.loads((RESULTS / "text_suite.json").read_text())
    rows, single = report["rows"], np.array(report["rows"]["single models"]["each"])
    lines = ["| Method | Factor | Accuracy % | Normalised % |", "| :-- | --: | --: | --: |"]
    plain = {k: r for k, r in rows.items() if ", order " not in k}
    for name, row in sorted(plain.items(), key=lambda kr: -np.mean(kr[1]["each"])):
        scores = np.array(row["each"])
        factor = f"{row['factor']:.2f}" if "factor" in row else "–"
        lines.append(
            f"| {name} | {factor} | {100 * scores.mean():.1f} "
            f"| {100 * (scores / single).mean():.1f} |"
        )
    orders = []
    for name in dict.fromkeys(k.split(", order ")[0] for k in rows if ", order " in k):
        ends = [100 * np.mean(r["each"]) for k, r in rows.items() if k.startswith(f"{name}, order")]
        if len(ends) < 2:
            continue
        orders.append(
            f"{name} over {len(ends)} orders of arrival: {np.mean(ends):.1f} ± "
            f"{np.std(ends, ddof=1):.1f} %, from {min(ends):.1f} to {max(ends):.1f} %."
        )
    if report["left"]:
        left = dict.fromkeys(re.sub(r", order .*", " in other orders", k) for k in report["left"])
        orders += [""] * bool(orders)
        orders.append(f"Not run yet: {', '.join(left)}; the command goes on with them.")
    return "\n".join([*lines, "", *orders])


def notebooks() -> str:
    """The notebooks of colabs/ by their titles, each with the badge that opens it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    place = project["urls"]["Repository"].removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{place}/blob/main/colabs"
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    lines = ["| Notebook | |", "| :-- | :-- |"]
    for path in sorted((ROOT / "colabs").glob("*.ipynb")):
        title = "".join(json.loads(path.read_text())["cells"][0]["source"]).split("\n")[0]
        link = f"[![Open in Colab]({badge})]({colab}/{path.name})"
        lines.append(f"| {title.removeprefix('# ')} (`colabs/{path.name}`) | {link} |")
    return "\n".join(lines)


def leaf_memory() -> str:
    """Peak memory on one large leaf beside what --check says."""
    path = RESULTS / "leaf_memory.md"
    return path.read_text().strip() if path.exists() else "Not measured yet."


def placement() -> str:
    """Where every method's leaves lie on eight devices."""
    from placement_table import table

    path = RESULTS / "placement.json"
    return table(json.loads(path.read_text())["methods"]) if path.exists() else "Not measured yet."


SECTIONS: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        quickstart,
        lesson,
        clinc150,
        budgets,
        training,
        findings,
        held,
        accuracies,
        edges,
        suite,
        speed,
        steps,
        mergekit,
        torch,
        notebooks,
        leaf_memory,
        attack,
        placement,
    )
} | {f"{f.__name__}_few": partial(f, FEW) for f in (findings, accuracies, edges)}


def fill(text: str) -> str:
    """A page with every section made anew."""
    for name, make in SECTIONS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if re.search(pattern, text, re.S):
            content = make()
            text = re.sub(
                pattern, lambda m, content=content: f"{m[1]}{content}\n{m[2]}", text, flags=re.S
            )
    return text


PICTURES = {  # of docs/images -> result file, and which of its pictures
    "quickstart": ("quickstart", "accuracy_over_tasks"),
    "clinc150": ("clinc150_10_full", "first_task"),
}


def picture(name: str) -> bytes:
    """One picture of `PICTURES` as PNG."""
    file, which = PICTURES[name]
    (plot,) = (p for p in plots.of(read(file)) if p.name == which)
    return canvas.png(plot.draw(canvas.LIGHT))


if __name__ == "__main__":
    for name in PICTURES:
        (ROOT / "docs" / "images" / f"{name}.png").write_bytes(picture(name))
    for page in PAGES:
        path = ROOT / page
        path.write_text(fill(path.read_text()))
