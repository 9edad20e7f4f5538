"""Merges that decompose kernels: jaxmerge and FusionBench on the same models in one run.

    python experiments/bench/matrix_merges.py --peer-python ENV/bin/python    # ViT-B, 8 models
    python experiments/bench/matrix_merges.py --blocks 1 --out SCRATCH        # a twelfth, to try it

ENV is an environment of its own: ``pip install torch fusion-bench "transformers<5.13"``.  Both
programs draw the same models (float32; the dense layers of a ViT-B with their biases, [out, in])
and merge each method by its public interface on all cores: jaxmerge by `jm.merge` of numpy arrays,
compiled before it is timed, FusionBench (MIT; used as it is installed) by its class's ``run`` of a
pool of torch modules.  Of --repeat runs the least counts.  "differ by" is the norm of the
difference of both merged task vectors of one kernel over the norm of ours.  WUDI and DOP take
--steps steps of their descents.  Not in FusionBench: TSV-Compress, PCB, DELLA; its RegMean takes
CLIP models and data, so it is not compared.

Obtained: experiments/results/matrix_merges_cpu.md, a sixth of the model (--blocks 2 --out
experiments/results), all but DOP, in four minutes of two idle cores, most of them FusionBench's.
DOP, of a twelfth and in one step: 13.1 s, FusionBench 29.0 (--blocks 1 --steps 1 --only dop).

Writes `matrix_merges_<device>.json` and `.md`, after every method, with the load average.  On a
busy machine LAPACK's and torch's threads wait for each other by spinning, so even processor times
say little: run it on an idle one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import merge_memory
import numpy as np
from matrix_weights import draw, kernels

import jaxmerge as jm

METHODS = ("tsv_m", "iso_c", "iso_cts", "wudi", "opcm", "dop")
BLOCKS = 12
COMPARED = "encoder.layers.0.mlp.fc2.weight"


def method_of(name: str, steps: int) -> jm.Merge:
    """Ours, for kernels [out, in]."""
    return {
        "tsv_m": lambda: jm.tsv_m(),
        "iso_c": lambda: jm.iso_c(),
        "iso_cts": lambda: jm.iso_cts(output_axis=0),
        "wudi": lambda: jm.wudi(steps=steps, output_axis=0),
        "opcm": lambda: jm.opcm(zero_diag=True),  # as its general class does
        "dop": lambda: jm.dop(steps=steps),
    }[name]()


def ours(name: str, given: Any, base: dict, models: list[dict]) -> tuple[dict[str, Any], dict]:
    """Seconds of our merge, compiled before, and its result."""
    method, times = method_of(name, given.steps), []
    merged: dict = {}
    for _ in range(1 + given.repeat):
        wall, spent = time.perf_counter(), time.process_time()
        merged = jax.block_until_ready(jm.merge(method, base, models))
        times.append((time.perf_counter() - wall, time.process_time() - spent))
    seconds, spent = map(min, zip(*times[1:], strict=True))
    return {"method": repr(method), "seconds": seconds, "cpu_seconds": spent}, merged


def theirs(name: str, given: Any, scratch: str) -> dict[str, Any]:
    """The same by the peer, in a process of its own."""
    job = {
        "methods": [name], "blocks": given.blocks, "models": given.models, "steps": given.steps,
        "repeat": given.repeat, "compare": COMPARED, "out": scratch,
    }  # fmt: skip
    peer = Path(__file__).parent / "matrix_merges_fusion.py"
    done = subprocess.run(
        [given.peer_python, str(peer)], input=json.dumps(job), capture_output=True, text=True
    )
    lines = [x for x in done.stdout.splitlines() if x.startswith('{"name"')]
    return json.loads(lines[-1]) if lines else {"failed": done.stderr.strip()[-200:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", help="interpreter of an environment with fusion-bench")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument(
        "--blocks", type=int, default=BLOCKS, choices=range(1, BLOCKS + 1), metavar="1..12"
    )
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--only", default="", help="names of methods, with commas between")
    parser.add_argument("--out", type=Path, help="folder; default: the results")
    given = parser.parse_args()
    if given.peer_python and shutil.which(given.peer_python) is None:
        parser.error(f"--peer-python {given.peer_python}: no such program")
    if given.out is None and given.blocks != BLOCKS:
        parser.error(f"--blocks {given.blocks} is no result on file: name a folder with --out")
    out = given.out or merge_memory.RESULTS
    like = kernels(given.blocks)
    base = draw(0, like)
    models = [draw(1 + t, like, base) for t in range(given.models)]
    report: dict[str, Any] = {
        "command": " ".join(["python experiments/bench/matrix_merges.py", *shown(sys.argv[1:])]),
        "machine": merge_memory.machine(),
        "parameters": sum(x.size for x in base.values()),
        "models": given.models,
        "steps": given.steps,
        "methods": [],
    }
    out.mkdir(parents=True, exist_ok=True)
    for name in [n for n in given.only.split(",") if n] or METHODS:
        row, merged = ours(name, given, base, models)
        row |= {"name": name, "load": os.getloadavg()[0]}
        if given.peer_python:
            with tempfile.TemporaryDirectory() as scratch:
                row["peer"] = theirs(name, given, scratch)
                path = Path(scratch, f"{name}.npy")
                if path.exists():
                    a, b = (x - base[COMPARED] for x in (merged[COMPARED], np.load(path)))
                    row["differ"] = float(np.linalg.norm(a - b) / np.linalg.norm(a))
        report["methods"].append(row)
        write(report, out)
        print(json.dumps(row), flush=True)


def shown(words: list[str]) -> list[str]:
    """The command's words without the path of an environment."""
    return ["ENV/bin/python" if w.endswith("bin/python") else w for w in words]


def write(report: dict[str, Any], out: Path) -> None:
    """JSON with everything, Markdown with the table."""
    where, load = report["machine"], [m["load"] for m in report["methods"]]
    peers = [m["peer"] for m in report["methods"] if "version" in m.get("peer", {})]
    against = f"FusionBench {peers[0]['version']} (torch {peers[0]['torch']})" if peers else ""
    lines = [
        f"# Merges that decompose kernels on {where['device']} ({where['cores']} cores)",
        "",
        f"`{report['command']}`: {report['parameters']:,} float32 parameters, {report['models']} "
        f"models, jax {where['jax']}{' and ' * bool(against)}{against}; {report['steps']} steps of "
        f"WUDI and DOP.  Load average: {min(load):.1f} to {max(load):.1f}.",
        "",
        "| method | seconds | FusionBench, s | times as fast | processor s | FusionBench, s "
        "| times as fast | differ by |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for m in report["methods"]:
        peer, cells = m.get("peer", {}), []
        for clock in ("seconds", "cpu_seconds"):
            theirs = peer.get(clock)
            cells += [f"{m[clock]:.2f}"]
            cells += [f"{theirs:.2f}", f"{theirs / m[clock]:.1f}"] if theirs else ["–", "–"]
        differ = f"{m['differ']:.1e}" if "differ" in m else "–"
        lines.append(f"| `{m['method']}` | {' | '.join(cells)} | {differ} |")
    failed = {
        m["name"]: m["peer"]["failed"] for m in report["methods"] if "failed" in m.get("peer", {})
    }
    lines += ["", *(f"* FusionBench's `{n}` did not run: {why}" for n, why in failed.items())]
    stem = f"matrix_merges_{where['platform']}"
    (out / f"{stem}.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / f"{stem}.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
