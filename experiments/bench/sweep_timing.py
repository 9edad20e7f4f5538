"""What a sweep costs: 200 cells, an axis that is added later, two terminals on one store.

    python experiments/bench/sweep_timing.py --out experiments/results/sweep_timing.json
    python experiments/bench/sweep_timing.py --seeds 2 --factors 4        # to try it out

Clouds of points and two dense layers, three tasks (tests/clouds.py), so that what is timed is the
sweep and not the training.  Wall and processor seconds of whole commands:

* seeds x factors of MagMax, into an empty store;
* five densities of TIES on the models that are kept, beside the same into an empty store;
* four settings that train on their own, by one command and by two at once.
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
    load = os.getloadavg()[0]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [
        subprocess.Popen([*command, grid], env=env, stdout=subprocess.DEVNULL) for _ in range(count)
    ]
    if any(process.wait() for process in running):
        raise SystemExit(f"a sweep of {grid!r} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cells = len(result_store.read(store))
    return {
        "wall s": round(time.perf_counter() - began, 1), "processor s": round(spent, 1),
        "cells in the store": cells, "load average before": round(load, 1),
    }  # fmt: skip


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
    settings = "seed=0 epochs=1,2,3,4 method=magmax"
    ties = f"{seeds} method=ties density=0.1,0.2,0.3,0.4,0.5"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "clouds.py").write_text(EXPERIMENT.format(tests=str(ROOT / "tests")))
        timings = {
            f"grid of {options.seeds * options.factors} merges": sweep(
                folder / "a", f"{seeds} method=magmax {factors}"
            ),
            "5 densities of TIES added": sweep(folder / "a", ties),
            "the same, nothing kept": sweep(folder / "b", ties),
            "4 trainings, one terminal": sweep(folder / "c", settings),
            "4 trainings, two terminals": sweep(folder / "d", settings, count=2),
        }
    report = {"versions": versions(), "machine": machine(), "timings": timings}
    for name, figures in timings.items():
        print(f"{name}: {figures}")
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
