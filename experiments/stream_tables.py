"""Tables of the streams that were learnt; `readme.py` puts them into the pages."""

from __future__ import annotations

import dataclasses
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxmerge.report import claims, numbers, tables, words
from jaxmerge.studies.results import Results

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
STREAMS = {  # result file -> column head; what is not measured is left out
    "clinc150_10_full": "CLINC150, 10 tasks",
    "clinc150_5_full": "CLINC150, 5 tasks",
    "clinc150_30_full": "CLINC150, 30 tasks",
    "banking77_7_full": "Banking77, 7 tasks",
    "quickstart": "Handwritten digits, 5 tasks",
}
FEW = {  # the same with ten sentences an intent
    "clinc150_10": "CLINC150, 10 tasks, ten an intent",
    "clinc150_5": "CLINC150, 5 tasks, ten an intent",
    "clinc150_30": "CLINC150, 30 tasks, ten an intent",
    "banking77": "Banking77, 7 tasks, ten an intent",
}
Streams = Mapping[str, str]


def read(name: str) -> Results:
    """One result file."""
    return Results.from_json(RESULTS / f"{name}.json")


def all_methods(name: str) -> str:
    """A link to the section of docs/results.md that shows a result file."""
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    heading = hooks["headings"](hooks["runs"](RESULTS))[name]
    return f"All methods: [docs/results.md](docs/results.md#{hooks['anchor'](heading)})."


def streams(names: Streams) -> dict[str, Results]:
    """Those of some streams that were run, by their column heads."""
    return {head: read(n) for n, head in names.items() if (RESULTS / f"{n}.json").exists()}


def quickstart() -> str:
    """The quickstart's table, its picture and its headline."""
    results = read("quickstart")
    return "\n\n".join(
        [
            "![Accuracy on the tasks seen so far, task after task](docs/images/quickstart.png)",
            words.lesson(results),
            "What it finds (`jaxmerge quickstart`, whose table has more rows; accuracy on the test "
            f"split, mean and standard deviation over {len(results.seeds)} class orders):",
            tables.markdown(shortened(results)).strip(),
            all_methods("quickstart"),
        ]
    )


def lesson() -> str:
    """What the quickstart shows, in two sentences."""
    return words.lesson(read("quickstart"))


def shortened(results: Results) -> Results:
    """The rows that answer a reader's question, at most eight; of LwF, EWC and L2 the best."""
    chosen = {("MagMax", "independent")}
    chosen |= {(m, "sequential") for m in ("last model", "MagMax", "average", "RandMix", "TIES")}
    chosen |= {("zero-shot", "none"), ("joint", "joint")}
    others = {n: s for n in numbers.other_ways(results) if (s := numbers.stat(results, n))}
    chosen |= {max(others, key=lambda n: others[n].mean)} if others else set()
    rows = [s for s in results.summary if (s.label, s.finetunes) in chosen]
    if len(rows) > 8:
        rows = [s for s in rows if s.label != "RandMix"]
    return dataclasses.replace(results, summary=rows)


def clinc150() -> str:
    """The main table: MiniLM on CLINC150."""
    results = read("clinc150_10_full")
    task = results.seeds[0].tasks[0]
    counts = " / ".join(str(n // len(task.classes)) for n in (task.train, task.val, task.test))
    orders = len(results.seeds)
    over = f"mean and standard deviation over {orders} class orders" if orders > 1 else "one order"
    return "\n\n".join(
        [
            "![Accuracy on the first task while later ones are learnt](docs/images/clinc150.png)",
            "all-MiniLM-L6-v2 on CLINC150, 10 tasks of 15 intents (`jaxmerge run "
            f"experiments/clinc150.py --set data=DATA --set lr={results.recipe['lr']:g} --set "
            f"'few={{val: {task.val // len(task.classes)}}}'`), {counts} sentences an intent for "
            f"training / validation / test, {over}:",
            tables.markdown(shortened(results)).strip(),
            words.headline(results),
            all_methods("clinc150_10_full"),
        ]
    )


def budgets() -> str:
    """What each stream was given."""
    lines = [
        "| Stream | Class orders | Examples a class: train / val / test | Epochs | Steps a task | "
        "Zero-shot % | Joint % | Seconds of training, all streams and orders |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for head, results in streams({**STREAMS, **FEW}).items():
        tasks = [t for s in results.seeds for t in s.tasks]
        ratio = lambda split, tasks=tasks: (
            sum(getattr(t, split) for t in tasks) / sum(len(t.classes) for t in tasks)
        )
        recipe = results.recipe
        steps = np.mean([recipe["epochs"] * t.train // recipe["batch"] for t in tasks])
        ends = {s.label: s.metrics["accuracy"].mean for s in results.summary}
        joint = f"{100 * ends['joint']:.1f}" if "joint" in ends else "–"
        counts = " / ".join(f"{ratio(split):.0f}" for split in ("train", "val", "test"))
        lines.append(
            f"| {head} | {len(results.seeds)} | {counts} | {recipe['epochs']} | {steps:.0f} | "
            f"{100 * ends['zero-shot']:.1f} | {joint} | {results.seconds['training']:.0f} |"
        )
    return "\n".join(lines)


def matrix(columns: dict[str, Results], first: list[str], rows: dict, cell: Callable) -> str:
    """A table with a column for every stream: rows by key, ``cell(results, key)`` as text."""
    lines = [
        f"| {' | '.join([*first, *columns])} |",
        f"| {' | '.join([':--'] * len(first) + ['--:'] * len(columns))} |",
    ]
    for key, shown in rows.items():
        lines.append(f"| {shown} | {' | '.join(cell(r, key) for r in columns.values())} |")
    return "\n".join(lines)


def training() -> str:
    """Seconds of training that each stream took, for one class order."""
    by_stream = {h: r for h, r in streams(STREAMS).items() if any(s.streams for s in r.seeds)}
    rows = {name: name for r in by_stream.values() for s in r.seeds for name in s.streams}

    def cell(results: Results, name: str) -> str:
        spent = [s.streams.get(name, {}).get("training") for s in results.seeds]
        known = [x for x in spent if x is not None]
        return f"{np.mean(known):.0f}" if known else "–"

    return matrix(by_stream, ["Strategy"], rows, cell)


def findings(names: Streams = STREAMS) -> str:
    """The claims of the papers."""
    return claims.markdown(streams(names)).strip()


def held() -> str:
    """How many of MagMax's claims hold in each stream, of those that its rows can answer."""
    said, failed = [], 0
    for head, results in streams(STREAMS).items():
        asked = [claims.check(c, results) for c in claims.CLAIMS if c.source == "MagMax"]
        verdicts = [finding.verdict for finding in asked if finding]
        failed += verdicts.count("fails")
        said.append(f"{head}: {verdicts.count('holds')} of {len(verdicts)}")
    return (
        "Claims of MagMax's paper that hold in every class order, of those that a stream's rows "
        f"can answer: {'; '.join(said)}. {failed or 'None'} of the others fails in every order."
    )


def accuracies(names: Streams = STREAMS) -> str:
    """Final accuracy of every row in every stream."""
    by_stream = streams(names)
    keys = [(s.label, s.finetunes) for r in by_stream.values() for s in r.summary]

    def cell(results: Results, key: tuple[str, str]) -> str:
        stats = {(s.label, s.finetunes): s.metrics["accuracy"] for s in results.summary}
        stat = stats.get(key)
        spread = f" ± {100 * stat.std:.1f}" if stat and stat.n > 1 else ""
        return f"{100 * stat.mean:.1f}{spread}" if stat else "–"

    return matrix(by_stream, ["Method", "Fine-tunes"], {k: " | ".join(k) for k in keys}, cell)


def edges(names: Streams = STREAMS) -> str:
    """Where the factor that was chosen is the first or the last tried: a wider grid may help."""
    lines = []
    for head, results in streams(names).items():
        ends: dict[str, list[float]] = {}
        for entry in (e for s in results.seeds for e in s.entries if e.sweep):
            sweep, row = entry.sweep, f"{entry.label} ({entry.finetunes})"
            at_end = sweep.chosen in (min(sweep.factors), max(sweep.factors))
            ends.setdefault(row, []).append(sweep.chosen if at_end else np.nan)
        orders = len(results.seeds)
        most = {row: e for row, e in ends.items() if 2 * np.isfinite(e).sum() > orders}
        said = [
            f"{row} {' or '.join(f'{f:g}' for f in sorted({x for x in e if np.isfinite(x)}))}"
            for row, e in most.items()
        ]
        older = results.recipe.get("older", {})  # see text_results.py
        before = f" Made under earlier settings: {'; '.join(older)}." if older else ""
        lines.append(f"* {head}: {', '.join(said) if said else 'none'}.{before}")
    return "\n".join(lines)
