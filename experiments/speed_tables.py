"""Tables of how fast it is, beside mergekit and torch; `readme.py` puts them into the pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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
