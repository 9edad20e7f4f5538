"""What a merge in memory costs, for every registered method: seconds, GB/s, ratio to a copy.

    python experiments/bench/merge_memory.py                     # all methods, ViT-B, 8 models
    python experiments/bench/merge_memory.py --only ties,magmax --repeat 5
    python experiments/bench/merge_memory.py --blocks 1 --out SCRATCH      # a twelfth, to try it

The model has the leaves of a ViT-B/16 (86M float32 parameters, 152 leaves); the base and eight
models are jax arrays on one device, the models random task vectors of 1 % of the weights' size.
A method is called once to compile and then `--repeat` times; the best time counts.  GB/s counts
the bytes of the inputs, each once.  The ratio is to copying all nine inputs once on the same
device, leaf by leaf with jax (a method that takes fewer models is compared with a copy of as many):
the best of the copies made right before and right after the method, since shared machines change
their speed within minutes.  The table is sorted by it.

Writes `experiments/results/merge_memory_<device>.json` and `.md`, after every method, with the
machine and its load.  On a busy machine wall times are upper bounds; the processor time of the
process (all threads) and its ratio to that of the copy say more.  `--append` keeps the rows of an
earlier run of which only some methods are measured again.

``--jit`` compiles each merge, and the copies, whole, as they are inside the caller's own `jax.jit`:
nothing is looked at for NaN then, and no leaf waits for Python, which on a GPU takes longer than
the work.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmerge as jm

RESULTS = Path(__file__).parents[1] / "results"
WIDTH, HIDDEN, BLOCKS, PATCH, TOKENS = 768, 3072, 12, 16, 197
SLOW = 30.0  # processor seconds; a method that takes longer is not called again

# Arguments of published methods that have no defaults, and second readings worth a row.  Of a
# descent a few steps are timed: its time is a constant and so much a step.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "dop": {"steps": 1},
    "nearswap": {"t": 0.01},
    "tsv_c": {"tasks": 8},
    "wudi": {"steps": 10},
}
VARIANTS = {"ties/leaf": {"scope": "leaf"}}
# Side information, one tree for all models: any numbers will do.
SIDES: dict[str, Callable[[dict], dict]] = {
    "fisher": lambda base: {n: jnp.square(x) for n, x in base.items()},
    "mask": lambda base: {n: x > 0 for n, x in base.items()},
}


def shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    """The leaves of the vision tower of a ViT-B/16."""
    out = {
        "patch/kernel": (PATCH, PATCH, 3, WIDTH),
        "class_token": (WIDTH,),
        "position": (TOKENS, WIDTH),
        "norm/scale": (WIDTH,),
        "norm/bias": (WIDTH,),
    }
    for i in range(blocks):
        for part, kernel in (
            ("attn/query", (WIDTH, WIDTH)),
            ("attn/key", (WIDTH, WIDTH)),
            ("attn/value", (WIDTH, WIDTH)),
            ("attn/out", (WIDTH, WIDTH)),
            ("mlp/up", (WIDTH, HIDDEN)),
            ("mlp/down", (HIDDEN, WIDTH)),
        ):
            out[f"block_{i:02}/{part}/kernel"] = kernel
            out[f"block_{i:02}/{part}/bias"] = kernel[1:]
        for norm in ("norm_1", "norm_2"):
            out[f"block_{i:02}/{norm}/scale"] = out[f"block_{i:02}/{norm}/bias"] = (WIDTH,)
    return out


def draw(seed: int, like: dict[str, tuple[int, ...]], around: dict | None = None) -> dict:
    """Random weights on the default device, or the weights `around` plus a task vector."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in like.items():
        x = jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(0.02))
        out[name] = x if around is None else around[name] + 0.01 * x
    return jax.block_until_ready(out)


def published() -> list[str]:
    """The names of the registered factories that are published methods, and the variants."""
    return sorted([n for n, f in jm.REGISTRY.items() if ".methods" in f.__module__] + [*VARIANTS])


def best_of(run: Callable[[], Any], repeat: int) -> dict[str, float]:
    """Seconds of the first call, and the best wall and processor time of those after it.

    A slow method is called once; its time then includes compiling.
    """
    times = []
    while len(times) <= repeat and not (times and times[-1][1] > SLOW):
        wall, spent = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        times.append((time.perf_counter() - wall, time.process_time() - spent))
    wall, spent = map(min, zip(*(times[1:] or times), strict=True))
    return {"first": times[0][0], "seconds": wall, "cpu_seconds": spent, "calls": len(times)}


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    device = jax.devices()[0]
    name = device.device_kind
    cpuinfo = Path("/proc/cpuinfo")
    if device.platform == "cpu" and cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = models[0].split(":")[1].strip() if models else platform.processor()
    return {
        "device": name,
        "platform": device.platform,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument(
        "--blocks", type=int, default=BLOCKS, choices=range(1, BLOCKS + 1), metavar="1..12"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="names of methods, with commas between")
    parser.add_argument("--out", type=Path, default=None, help="folder; default: the results")
    parser.add_argument("--append", action="store_true", help="keep the other rows on file")
    parser.add_argument("--jit", action="store_true", help="every merge as one program")
    given = parser.parse_args()
    if given.out is None and given.blocks != BLOCKS:
        parser.error(f"--blocks {given.blocks} is no result on file: name a folder with --out")
    out = given.out or RESULTS
    out.mkdir(parents=True, exist_ok=True)

    like = shapes(given.blocks)
    base = draw(0, like)
    models = [draw(1 + t, like, base) for t in range(given.models)]
    size = sum(x.size for x in base.values())
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    every = (base, *models)
    copy_all = lambda: copy(every) if given.jit else [copy(tree) for tree in every]
    report: dict[str, Any] = {
        "command": " ".join(["python experiments/bench/merge_memory.py", *sys.argv[1:]]),
        "machine": machine(),
        "load": [os.getloadavg()],
        "parameters": size,
        "leaves": len(like),
        "models": given.models,
        "jit": given.jit,
        "methods": [],
        "not_measured": {},
    }
    old = out / f"{stem(report)}.json"
    if given.append and old.exists():
        previous = json.loads(old.read_text())
        if previous["machine"] != report["machine"] or previous["parameters"] != size:
            raise SystemExit(f"{old} is of another machine or model; run without --append.")
        report |= previous | {"command": f"{previous['command']} && {report['command']}"}
    time_copy = lambda: best_of(copy_all, max(3, given.repeat))
    print(f"{size:,} parameters, copy of {1 + given.models}: {time_copy()['seconds']:.3f} s")
    wanted = [n for n in given.only.split(",") if n]
    for name in wanted or published():
        try:
            arguments = VARIANTS.get(name) or ARGUMENTS.get(name, {})
            method = jm.get(name.split("/")[0])(**arguments)
        except TypeError as error:
            report["not_measured"][name] = str(error)
            continue
        if unknown := [k for k in method.needs if k not in SIDES]:
            report["not_measured"][name] = f"it reads {', '.join(unknown)}"
            continue
        low, high = method.models
        count = max(low, min(given.models, high or given.models))
        key = jax.random.key(0)
        chosen = models[:count]
        side = {k: jax.block_until_ready(SIDES[k](base)) for k in method.needs}
        one = functools.partial(jm.merge, method)
        run = functools.partial(
            jax.jit(one) if given.jit else one,
            base, chosen, key=key, extras=[side] * count if side else None,
        )  # fmt: skip
        copies = [time_copy()]
        times = best_of(run, given.repeat)
        copies.append(time_copy())
        copied = {k: min(c[k] for c in copies) for k in ("seconds", "cpu_seconds")}
        row = {"name": name, "method": repr(method), "models": count, **times, "copy": copied}
        report["methods"] = [m for m in report["methods"] if m["name"] != name] + [row]
        report["load"].append(os.getloadavg())
        write(report, out)
        print(f"{name}: {times['seconds']:.3f} s ({times['cpu_seconds']:.3f} s cpu)", flush=True)
    print((out / f"{stem(report)}.md").read_text())


def stem(report: dict[str, Any]) -> str:
    return f"merge_memory_{report['machine']['platform']}{'_jit' * report['jit']}"


def write(report: dict[str, Any], out: Path) -> None:
    """JSON with everything, Markdown with the table."""
    total, rows = 1 + report["models"], []
    for m in report["methods"]:
        read = 4 * report["parameters"] * (1 + m["models"])
        m["gb_per_second"] = read / m["seconds"] / 1e9
        share = (1 + m["models"]) / total
        m["ratio"] = m["seconds"] / (m["copy"]["seconds"] * share)
        m["cpu_ratio"] = m["cpu_seconds"] / (m["copy"]["cpu_seconds"] * share)
        rows.append(m)
    rows.sort(key=lambda m: m["ratio"])
    where, load = report["machine"], [x[0] for x in report["load"]]
    lines = [
        f"# Merging in memory on {where['device']} ({where['cores']} cores)",
        "",
        f"`{report['command']}`: {report['parameters']:,} float32 parameters in "
        f"{report['leaves']} leaves, {report['models']} models, jax {where['jax']}"
        f"{', each merge one program' * report['jit']}.  The ratios "
        f'are to copying as many inputs once; "copy" is the time of copying all {total}, measured '
        f"beside the method.  Load average while measuring: {min(load):.1f} to {max(load):.1f}.",
        "",
        "| method | models | seconds | GB/s | copy, s | ratio "
        "| processor s | ratio | first call, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| `{m['method']}` | {m['models']} | {m['seconds']:.3f} | {m['gb_per_second']:.2f} "
        f"| {m['copy']['seconds']:.3f} | {m['ratio']:.2f} "
        f"| {m['cpu_seconds']:.3f} | {m['cpu_ratio']:.2f} | {m['first']:.1f} |"
        for m in rows
    ]
    if report["not_measured"]:
        lines += ["", "Not measured: "]
        lines += [f"- `{n}`: {why}" for n, why in report["not_measured"].items()]
    (out / f"{stem(report)}.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / f"{stem(report)}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
