"""Fill the tables of README.md and docs/measured.md from the result files, none by hand.

    python experiments/readme.py            # writes both; a test checks that they are up to date

It draws the README's picture from them too.

A section stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; NAME is a function below.
"""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from reliability_page import attack

from jaxmerge.report import canvas, claims, numbers, plots, tables, words
from jaxmerge.studies.results import Results

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


def speed() -> str:
    """The run against torch, and many factors at once."""
    content = json.loads((RESULTS / "continual_cpu.json").read_text())
    run, sweep = content["run"], content["sweep"]
    lines = [
        "| Side | Seconds | Training | Merging | Evaluation | CPU seconds | Last % | MagMax % |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    names = {"jaxmerge": "jaxmerge", "first run, with compilation": "with compilation"}
    for name, label in {**names, "torch": f"torch {run['torch']['version']}"}.items():
        r = run[name]
        times = [r[k] for k in ("seconds", "training", "merging", "evaluation", "cpu_seconds")]
        shown = " | ".join(f"{x:.1f}" for x in times)
        lines.append(f"| {label} | {shown} | {100 * r['last']:.1f} | {100 * r['magmax']:.1f} |")
    ratio = run["torch"]["seconds"] / run["jaxmerge"]["seconds"]
    cold = run["first run, with compilation"]["seconds"] / run["torch"]["seconds"]
    together, alone = (sweep[k] for k in ("together", "one by one"))
    lines += [
        "",
        f"torch takes {ratio:.2f} times as long as jaxmerge once compiled; {run['steps']} steps, "
        f"whose losses differ by {run['losses_differ']:.0e} on average. Compilation is paid once, "
        f"however long the run: with it this short one takes {cold:.2f} times as long as torch.",
        "",
        f"{sweep['factors']} merge factors: {together:.1f} s together, {alone:.1f} s one by one. "
        "The merged models differ in every leaf, so nothing of what they compute is shared. An "
        "accelerator is better filled by many at once; a CPU has no room to fill and gains only "
        "what a warm process gains: one compilation, sentences prepared once.",
    ]
    return "\n".join(lines)


def steps() -> str:
    """What a step of the mechanism costs, on a core and on a GPU, and before it was there."""
    read = lambda name: json.loads((RESULTS / f"{name}.json").read_text())
    lines = [
        "| Device | Steps a second | times torch's | over a scan by hand | Seeds "
        "| cost of all seeds |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for name in ("continual_steps_cpu", "continual_steps_gpu", "continual_steps_gpu_64"):
        r = read(name)
        device = {"cpu": "one CPU core"}.get(r["machine"]["device"], r["machine"]["device"])
        lines.append(
            f"| {device} | {r['steps a second']:,.0f} | {r['times as fast as torch']:.1f} "
            f"| {100 * r['overhead']:+.1f} % | {r['seeds']} | {r['cost of all, wall']:.2f} |"
        )
    r = read("continual_minilm_cpu")
    lines += [
        "",
        f"MiniLM on three tasks of CLINC150 takes {r['MiniLM now / before']:.2f} of the processor "
        f"time that the loop before the mechanism took (`{r['before']}`), "
        f"{r['with compilation']:.2f} with compilation; losses differ by "
        f"{r['losses differ by']:.0f}.",
    ]
    return "\n".join(lines)


def mergekit() -> str:
    """Merging from files beside mergekit, a family of models after the other."""
    families = [json.loads((RESULTS / f"merge_files{x}.json").read_text()) for x in ("", "_3b")]
    machines = {f"{data['machine']}, mergekit {data['mergekit']}" for data in families}
    lines = [
        f"`experiments/bench/merge_files.py` on {' and '.join(sorted(machines))}; whole "
        "processes, wall and processor seconds, the ratio of the wall times. The copy reads all "
        "and writes one with nothing computed.",
        "",
        "| Models | Method | jaxmerge s | CPU s | peak GB | mergekit s | CPU s | peak GB "
        "| mergekit / jaxmerge |",
        "| --: | :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for data in families:
        what = f"{data['inputs']}, {data['bytes'] / 1e9:.1f} GB in all"
        rows = {"the copy": {"jaxmerge": data["copy"]}} | {
            f"`{method}`": row for method, row in data["methods"].items()
        }
        lines += [f"| {what} | {method} | {_sides(row)} |" for method, row in rows.items()]
    loads = [
        side["load_before"]
        for data in families
        for row in data["methods"].values()
        for side in (row[k] for k in ("jaxmerge", "mergekit") if k in row)
    ]
    lines += ["", f"Load average before each run: {min(loads):.1f} to {max(loads):.1f}."]
    return "\n".join(lines)


def _sides(row: dict[str, Any]) -> str:
    """Seconds, processor seconds and memory of both sides, and the ratio."""
    sides = [row.get(k) for k in ("jaxmerge", "mergekit")]
    cells = [
        f"{x['wall']:.1f} | {x['cpu']:.1f} | {x['peak'] / 1e9:.2f}" if x else "– | – | –"
        for x in sides
    ]
    ratio = f"{sides[1]['wall'] / sides[0]['wall']:.1f}" if all(sides) else "–"
    return " | ".join([*cells, ratio])


def torch() -> str:
    """Training and evaluation beside torch, as far as measured."""
    lines = [
        "| What | Machine | jaxmerge | torch eager | torch compiled |",
        "| :-- | :-- | --: | --: | --: |",
    ]
    for path in sorted(RESULTS.glob("clip_*.json")):
        for row in json.loads(path.read_text()):
            figures = [row.get(k) for k in ("images_per_second", "torch_eager", "torch_compiled")]
            shown = [f"{x:.3g}" if x else "–" for x in figures]
            what = f"{row['model']} {row['task']}, {row['dtype']}, images/s"
            lines.append(f"| {what} | {row['machine']} | {' | '.join(shown)} |")
    for path in sorted(RESULTS.glob("continual_*.json")):
        content = json.loads(path.read_text())
        if "run" not in content:  # of single steps
            continue
        ours, theirs = (content["run"][k]["seconds"] for k in ("jaxmerge", "torch"))
        machine = f"{content['machine']['platform']}, {content['machine']['cpus']} cores"
        what = "MiniLM, a whole class-incremental run, seconds"
        lines.append(f"| {what} | {machine} | {ours:.1f} | {theirs:.1f} | – |")
    return "\n".join(lines)


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
