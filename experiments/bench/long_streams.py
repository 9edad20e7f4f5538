"""Long streams: 300 tasks through the continual loop, 10,000 models through `jm.update`.

    python experiments/bench/long_streams.py
    python experiments/bench/long_streams.py --tasks 80 --models 500 --out OUT.json  # to try it

The loop learns 300 tasks of one class each with a two-layer classifier, merging after every task; a
state of `jm.magmax` takes in 10,000 models.  Resident memory and processor seconds (which
other programs hardly change) are those around task 20 and at the end: neither may grow with the
tasks.  Writes `experiments/results/long_streams.json`; other sizes are no result on file and need
`--out`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxmerge as jm

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from tiny_streams import KEY, blobs, split, tiny

OUT = Path(__file__).parents[1] / "results" / "long_streams.json"
TASKS, MODELS = 300, 10_000


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def loop(tasks: int) -> dict[str, Any]:
    """The stream, with the figures after every task."""
    from jaxmerge.continual.drivers import run
    from jaxmerge.continual.optimisers import sgd
    from jaxmerge.continual.problems import classification
    from jaxmerge.continual.stream_records import Setup

    model, problem = tiny(classes=tasks), classification(columns="all")
    merges = {"MagMax": jm.magmax(0.5)}
    setup = Setup(model, problem, sgd(rate=0.1), (), merges=merges, start="MagMax")
    stream = split(tasks=tasks, classes=tasks, data=blobs(classes=tasks))
    memory, times = [], []

    def watch(t: int, state: Any, losses: Any) -> None:
        jax.block_until_ready(state.params)
        memory.append(resident())
        times.append(time.process_time())

    run(setup, stream, KEY, watch=watch, score_every=tasks)
    return around(memory, times, 20)


def updates(models: int, size: int = 100_000) -> dict[str, Any]:
    """A state that takes in models, each drawn anew."""
    base = {"w": np.zeros(size, np.float32)}
    method = jm.magmax()
    step = jax.jit(functools.partial(jm.update, method), donate_argnums=0)
    state, memory, times = jm.init(method, base), [], []
    row = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    for t in range(models):
        state = step(state, base, {"w": np.roll(row, t)})
        if t % (models // 500) == 0:
            jax.block_until_ready(state.cells)
            memory.append(resident())
            times.append(time.process_time())
    most = np.abs(np.stack([np.roll(row, t)[:50].copy() for t in range(models)])).max(0)
    got = np.abs(np.asarray(jm.merged(method, state, base)["w"])[:50]) * 2
    return {"models": models, "right": bool(np.allclose(got, most)), **around(memory, times, 20)}


def around(memory: list[int], times: list[float], first: int) -> dict[str, Any]:
    """Memory and median processor seconds a step, after the step `first` and over the last 50."""
    steps = np.diff(times)
    early, late = steps[first - 10 : first + 40], steps[-50:]
    return {
        "steps": len(memory), "memory_first": memory[first], "memory_last": memory[-1],
        "seconds_first": float(np.median(early)), "seconds_last": float(np.median(late)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=TASKS, help="of the loop, at least 70")
    parser.add_argument("--models", type=int, default=MODELS, help="taken in, at least 500")
    parser.add_argument("--out", type=Path, help="JSON file; by default the result on file")
    given = parser.parse_args()
    if given.tasks < 70 or given.models < 500:
        parser.error("expected --tasks of 70 or more and --models of 500 or more")
    if given.out is None and (given.tasks, given.models) != (TASKS, MODELS):
        parser.error("other sizes are no result on file: name a file with --out")
    report = {
        "command": " ".join(["python experiments/bench/long_streams.py", *sys.argv[1:]]),
        "load": os.getloadavg()[0], "loop": loop(given.tasks), "updates": updates(given.models),
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    (given.out or OUT).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
