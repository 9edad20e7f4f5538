"""The tables and pictures of `data_driven.py`'s result files, in words and drawn.

    python experiments/data_driven_page.py     # fills docs/data-driven.md, draws its pictures

A section of the page stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from jaxmerge.report.canvas import png, svg
from jaxmerge.report.lines import Series, curves
from jaxmerge.report.style import LIGHT

ROOT = Path(__file__).parent.parent
RESULTS, IMAGES = ROOT / "experiments" / "results", ROOT / "docs" / "images"
PAGE = ROOT / "docs" / "data-driven.md"
HEADS = ("Method", "Sees", "Accuracy %", "Normalised %", "Held out kept %", "CPU s", "Memory MB")
SUITES = {"data_driven": "images on `mini`", "data_driven_text": "CLINC150 on all-MiniLM-L6-v2"}


def read(name: str) -> dict | None:
    """A result file, or None where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(result: dict) -> str:
    """All methods, as Markdown; the best figure of a column in bold."""
    rows = result["rows"]
    adapted = [r for r in rows if r["method"] != "zero-shot"]
    best = {k: max(f"{100 * r[k]:.1f}" for r in adapted) for k in ("accuracy", "normalised")}
    lines = ["| " + " | ".join(HEADS) + " |", "| :-- | :-- " + "| --: " * 5 + "|"]
    for r in rows:
        shown = [f"{100 * r[k]:.1f}" for k in ("accuracy", "normalised", "retained")]
        shown = [
            f"**{x}**" if x == best.get(k) else x for x, k in zip(shown, [*best, ""], strict=True)
        ]
        cost = [_number(r.get("cpu_seconds"), 1), _number(r.get("peak_memory"), 1e6)]
        lines.append("| " + " | ".join([r["method"], r["sees"], *shown, *cost]) + " |")
    single = 100 * np.mean(result["individual"])
    lines.append(f"| individual models | – | {single:.1f} | 100.0 | – | – | – |")
    return "\n".join(lines)


def _number(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value / unit:.0f}"


def section(name: str) -> str:
    """Setting, table and picture of one suite."""
    result = read(name)
    if result is None:
        return ""
    c, names = result["config"], result["names"]
    setting = (
        f"{', '.join(names).replace('_', ' ')}; each model is fine-tuned on {c['examples']} "
        f"examples for {c['epochs']} epochs and scored on {c['test']} test examples a task, the "
        f"task's own classes to choose from.  *Sees* says what of the data a method sees beside "
        f"the weights: inputs and labels are {c['adapt']} validation examples a task, tune is "
        f"{c['tune']} others, test inputs is test-time adaptation.  Held out is "
        f"{result['held_name']} (the base has {100 * result['held_out']:.1f} % there).  CPU "
        "seconds hold merging, validation and compilation; memory is what a method needs beside "
        "the models and examples."
    )
    parts = [
        f"### {len(names)} tasks: {SUITES[name]}",
        setting.replace("  ", " "),
        table(result),
        words(result),
    ]
    known = {r["method"]: None for n in SUITES for r in (read(n) or {"rows": []})["rows"]}
    here = {r["method"] for r in result["rows"]} | set(result["not_run"])
    if dear := [m for m in known if m not in here]:
        parts.append(f"Left out here for their cost: {'; '.join(dear)}.")
    if result["not_run"]:
        parts.append(f"Not run in this version: {'; '.join(result['not_run'])}.")
    if result["curves"]:
        parts.append(f"![FW-Merging and task arithmetic as the pool grows](images/{name}.png)")
    return "\n\n".join(parts)


def words(result: dict) -> str:
    """What the table says, in figures."""
    rows = {r["method"]: r for r in result["rows"]}
    merges = [r for r in result["rows"] if r["method"] not in ("zero-shot",)]
    free = [
        r for r in merges if r["sees"] in ("nothing", "tune") and "tries" not in r.get("note", "")
    ]
    top, best_free = (max(x, key=lambda r: r["accuracy"]) for x in (merges, free))
    text = (
        f"Best is {top['method']} with {100 * top['accuracy']:.1f} %; of the methods that read "
        f"weights only and choose no more than a factor or a density, {best_free['method']} with "
        f"{100 * best_free['accuracy']:.1f} %."
    )
    ada, control = rows.get("AdaMerging, layer-wise"), rows.get("layer-wise coefficients, labels")
    if ada and control:
        text += (
            f" AdaMerging reaches {100 * ada['accuracy']:.1f} % where the same coefficients, "
            f"fitted with labels, reach {100 * control['accuracy']:.1f} %: on this suite the "
            "entropy of weak models is a poor guide; the coefficients themselves could do more."
        )
    return text


def picture(name: str, result: dict, theme=LIGHT):
    """The two scaling curves of FW-Merging."""
    titles = {
        "irrelevant": "Accuracy on two tasks; models of other tasks join the pool",
        "relevant": "Accuracy on all tasks; their models join the pool",
    }
    panels = {}
    for which, points in result["curves"].items():
        heading = titles[which]
        labels = [k for k in points[0] if k not in ("pool", "tasks")]
        sizes = [p["pool"] for p in points]
        panels[heading] = [
            Series(_short(label), sizes, [p[label] for p in points], slot=i)
            for i, label in enumerate(labels)
        ]
    suite = SUITES[name].replace("`", "")
    return curves(
        panels, f"A growing pool: FW-Merging and task arithmetic, {suite}", "models in the pool",
        "Task-aware test accuracy, %", theme, height=2.1,
    )  # fmt: skip


def _short(label: str) -> str:
    return label.replace("task arithmetic", "arithmetic").replace("factor ", "")


def pool() -> str:
    """What the measurement of FW-Merging from files says."""
    result = read("frank_wolfe_pool")
    if result is None:
        return ""
    rows = [
        f"{r['pool']} towers ({r['bytes_in_files'] / 1e9:.1f} GB in files): peak "
        f"{r['peak_memory'] / 1e9:.2f} GB, {r['seconds']:.0f} s"
        for r in result["rows"]
    ]
    return (
        "Measured with ViT-B/32 image towers in float32 (350 MB each), three steps of hard "
        f"FW-Merging, the whole process: {'; '.join(rows)} (`{result['command']}`, a machine "
        f"with {result['machine']['cpus']} processors)."
    )


def page() -> str:
    """Both suites."""
    return "\n\n".join(s for s in map(section, SUITES) if s)


def fill(text: str) -> str:
    """The page with its sections made anew."""
    for name, make in {"pool": pool, "data_driven": page}.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text, flags=re.S)
    return text


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
    for name in SUITES:
        result = read(name)
        if result is None or not result["curves"]:
            continue
        (IMAGES / f"{name}.png").write_bytes(png(picture(name, result)))
        drawn = svg(picture(name, result), LIGHT, name, "FW-Merging as the pool grows")
        (IMAGES / f"{name}.svg").write_text(drawn)
        print(f"drawn {name}")
