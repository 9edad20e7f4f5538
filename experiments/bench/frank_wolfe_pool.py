"""FW-Merging from files: memory does not grow with the pool.

    python experiments/bench/frank_wolfe_pool.py --pools 5,20 [--work DIR] [--out FILE]

Writes ViT-B/32 image towers with random weights in Hugging Face's layout (float32, 350 MB each),
then merges the first 5 and all 20 with hard FW-Merging, three steps, every pool in a process of its
own.  The pool is read from the files a leaf at a time; the loss is the cross-entropy of random
images under a random head, so every step costs what a real one costs.  Reported: the peak resident
memory of the process (the system's own figure), seconds, and the checkpoints chosen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jaxmerge import solvers
from jaxmerge.models import clip
from jaxmerge.studies.provenance import machine, peak_memory, versions

CONFIG = replace(clip.variant("ViT-B/32"), text=None)
STEPS, EXAMPLES, CLASSES = 3, 16, 10
OUT = Path(__file__).parents[1] / "results" / "frank_wolfe_pool.json"


def write(work: Path, count: int) -> list[Path]:
    """Fine-tuned towers, as far as memory can tell: one base and a little noise each."""
    base = clip.init(CONFIG, jax.random.key(0))
    folders = [work / f"tower_{i:02d}" for i in range(count)]
    for i, folder in enumerate(folders):
        if (folder / "config.json").exists():
            continue  # of an earlier run in the same --work
        rng = np.random.default_rng(i)
        noise = lambda x, rng=rng: np.float32(1e-3) * rng.standard_normal(x.shape, np.float32)
        clip.save((CONFIG, {n: np.asarray(x) + noise(x) for n, x in base.items()}), folder)
    return folders


def run(folders: list[Path]) -> dict:
    """Merge a pool from files."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((EXAMPLES, 224, 224, 3)).astype(np.float32)
    head = rng.standard_normal((CONFIG.projection_dim, CLASSES)).astype(np.float32)
    apply = lambda params, x: clip.image_features(CONFIG, params, x) @ head
    pool = [clip.lazy(folder, CONFIG) for folder in folders]
    began = time.perf_counter()
    solver = solvers.frank_wolfe(solvers.cross_entropy(apply), pool)
    batch = (images, rng.integers(0, CLASSES, EXAMPLES))
    params, history = solvers.solve(solver, [batch] * STEPS)
    jax.block_until_ready(params)
    return {
        "pool": len(pool),
        "bytes_in_files": sum(f.stat().st_size for d in folders for f in d.glob("*.safetensors")),
        "bytes_of_a_model": sum(x.nbytes for x in params.values()),
        "peak_memory": peak_memory(),
        "seconds": time.perf_counter() - began,
        "steps": STEPS,
        "gap": [h["gap"] for h in history],
        "loss": [h["loss"] for h in history],
        "chosen": [len(set(h["chosen"].values())) for h in history],
    }


def main(pools: list[int], work: Path, out: Path) -> None:
    """Write the towers, merge each pool in its own process, keep the figures."""
    folders = write(work, max(pools))
    rows = []
    for count in pools:
        command = [sys.executable, __file__, "--run", *map(str, folders[:count])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        print(
            f"{count} towers, {row['bytes_in_files'] / 1e9:.1f} GB in files: peak "
            f"{row['peak_memory'] / 1e9:.2f} GB, {row['seconds']:.0f} s", flush=True,
        )  # fmt: skip
    command = f"python experiments/bench/frank_wolfe_pool.py --pools {','.join(map(str, pools))}"
    report = {"command": command, "rows": rows, "machine": machine(), "versions": versions()}
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pools", default="5,20")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--run", nargs="+", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.run:
        print(json.dumps(run(a.run)))
    else:
        work = a.work or Path(tempfile.mkdtemp(prefix="frank_wolfe_pool_"))
        try:
            main([int(n) for n in a.pools.split(",")], work, a.out)
        finally:
            if a.work is None:
                shutil.rmtree(work)
