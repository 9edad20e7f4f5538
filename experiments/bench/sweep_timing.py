"""What a sweep costs: 200 cells, an axis that is added later, two terminals on one store.

    python experiments/bench/sweep_timing.py --out experiments/results/sweep_timing.json
    python experiments/bench/sweep_timing.py --seeds 2 --factors 4        # to try it out

Clouds of points and two dense layers, three tasks (tests/clouds.py), so that what is timed is the
sweep and not the training.  Three figures, wall and processor seconds of whole commands:

* `grid`: seeds x factors of MagMax, into an empty store;
* `added`: five densities of TIES on the models that are kept, beside the same into an empty store;
* `terminals`: four settings that train on their own, by one command and by two at once.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxmerge.studies import result_store
from jaxmerge.studies.provenance import machine, versions

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
import dataclasses, sys
from typing import ClassVar
sys.path.insert(0, {tests!r})
import clouds
from jaxmerge.studies.config import Experiment, setting

@dataclasses.dataclass(frozen=True)
class Clouds(Experiment):
    name: ClassVar[str] = "clouds"
    epochs: int = 2
    batch: int = 8
    lr: float = 0.02
    baselines: list = setting([])
    streams: dict = setting({{"sequential": {{"deploys": ["last model", "average"]}}}})

    def scenario(self, seed):
        return clouds.scenario(clouds.source())

    def learner(self, scenario):
        return clouds.learner()

def get_config():
    return Clouds()
"""


def sweep(store: Path, grid: str, count: int = 1) -> dict[str, float]:
    """Seconds of one command, or of several at once, and the cells that the store then holds."""
    command = [sys.executable, "-c", "from jaxmerge.cli import main; main()", "sweep"]
    command += [str(store.parent / "clouds.py"), "--out", str(store), "--resume", "-q", "--grid"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    store.mkdir(exist_ok=True)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [
        subprocess.Popen([*command, grid], env=env, stdout=subprocess.DEVNULL) for _ in range(count)
    ]
    if any(process.wait() for process in running):
        raise SystemExit(f"a sweep of {grid!r} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cells = len(result_store.read(store))
    return {"wall": time.perf_counter() - began, "cpu": spent, "cells": cells}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--factors", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seeds = "seed=" + ",".join(map(str, range(options.seeds)))
    factors = "factor=" + ",".join(f"{(k + 1) / options.factors:g}" for k in range(options.factors))
    ties = f"{seeds} method=ties density=0.1,0.2,0.3,0.4,0.5"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "clouds.py").write_text(EXPERIMENT.format(tests=str(ROOT / "tests")))
        report = {"versions": versions(), "machine": machine()}
        report["grid"] = sweep(folder / "a", f"{seeds} method=magmax {factors}")
        report["added"] = sweep(folder / "a", ties)
        report["added, nothing kept"] = sweep(folder / "b", ties)
        settings = "seed=0 epochs=1,2,3,4 method=magmax"
        report["terminals, one"] = sweep(folder / "c", settings)
        report["terminals, two"] = sweep(folder / "d", settings, count=2)
    for name in ("grid", "added", "added, nothing kept", "terminals, one", "terminals, two"):
        figures = report[name]
        print(f"{name}: {figures['wall']:.1f} s, {figures['cpu']:.1f} s of a processor, "
              f"{figures['cells']} cells in the store")  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
