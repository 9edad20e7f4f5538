"""Merges that look at data against those that do not: every method on one suite of tasks.

    python experiments/data_driven.py images --data DIR [--work DIR] [--done]
    python experiments/data_driven.py text --data DIR

DIR holds the data sets named in `data_driven_suite.py`.  One model a task is fine-tuned; every
method merges them, each in a process of its own, so that its peak memory is its own (models and
examples included).  Measured as MergeBench does: task-aware test accuracy, the same normalised by
the individual models, what is left of the base's accuracy on a held-out task (generalisation; one
minus it is forgetting), and the seconds of merging plus validating, compilation included.

Two curves show how FW-Merging scales: the accuracy on two tasks against the number of irrelevant
models in the pool, and the accuracy on all tasks against the number of relevant ones.

What was done is kept in the work folder, so a run goes on where it was stopped.  The table and the
picture of a result file are made by `data_driven_page.py`.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from data_driven_methods import arithmetic, frank_wolfe, methods, tuned
from data_driven_suite import IMAGES, TEXT, Config, Suite

from jaxmerge.studies.provenance import machine, versions

RESULTS = Path(__file__).parent / "results"
CONFIGS = {"images": IMAGES, "text": TEXT}
OUT = {"images": RESULTS / "data_driven.json", "text": RESULTS / "data_driven_text.json"}


def get_config(suite: str = "images") -> Config:
    """The configuration of the committed result."""
    return CONFIGS[suite]


def individual(suite: Suite) -> dict:
    """What the figures are measured against: the base and the fine-tuned models."""
    single = [float(suite.evaluate(m)[0][t]) for t, m in enumerate(suite.models)]
    zero, held_out = suite.evaluate(suite.base)
    return {
        "individual": single, "zero_shot": zero.tolist(), "held_out": held_out,
        "names": suite.names, "held_name": suite.held_name,
    }  # fmt: skip


def row(suite: Suite, name: str) -> dict:
    """Run one method and score it."""
    method = methods(suite.config.suite == "text")[name]
    jax.clear_caches()
    before = reset_peak()
    began = time.perf_counter(), time.process_time()
    outcome = method.run(suite)
    jax.block_until_ready(outcome.params)
    seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    memory = None if before is None else status("VmHWM") - before
    aware, left = suite.evaluate(outcome.params, outcome.adapters)
    return {
        "method": name, "sees": method.sees, "note": outcome.note, "tasks": aware.tolist(),
        "held_out": left, "seconds": seconds, "cpu_seconds": cpu, "peak_memory": memory,
    }  # fmt: skip


def reset_peak() -> int | None:
    """Start the system's record of peak memory anew; bytes resident now, None where it cannot.

    Freed memory is given back first, or a method would use it unseen.
    """
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return status("VmRSS")


def status(entry: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x for x in lines if x.startswith(entry)).split()[1])


def curve(suite: Suite, which: str, count: int) -> dict:
    """One point of a scaling curve: accuracies of three merges of a pool of `count` models."""
    config = suite.config
    if which == "irrelevant":
        tasks, pool = config.related, [*config.related, *config.unrelated][:count]
    else:
        tasks = tuple(range(len(suite.models)))
        pool = tasks[:count]
    models = [suite.models[t] for t in pool]
    few = 60 // len(tasks)
    merges = {
        "FW-Merging, soft": frank_wolfe(suite, soft=True, tasks=tasks, models=models, proxy=few),
        "task arithmetic, tuned": tuned(suite, "task_arithmetic", tasks=tasks, models=models),
        "task arithmetic, factor 0.3": arithmetic(suite, models=models),
    }
    score = lambda f: float(np.mean(suite.evaluate(getattr(f, "params", f))[0][list(tasks)]))
    return {"pool": count, "tasks": list(tasks), **{n: score(f) for n, f in merges.items()}}


CURVES = ("irrelevant", "relevant")


def jobs(config: Config) -> list[str]:
    """All parts of a run, in order."""
    names = [f"method {name}" for name in methods(config.suite == "text")]
    return ["individual", *names, *CURVES]


def run_job(suite: Suite, job: str) -> dict | list:
    """One part of a run."""
    if job == "individual":
        return individual(suite)
    if job in CURVES:
        sizes = suite.config.pools[CURVES.index(job)]
        return [curve(suite, job, k) for k in sizes]
    return row(suite, job.removeprefix("method "))


def gather(config: Config, parts: dict) -> dict:
    """The result file's content."""
    base = parts["individual"]
    zero = {
        "method": "zero-shot",
        "sees": "nothing",
        "tasks": base["zero_shot"],
        "held_out": base["held_out"],
    }
    rows = [zero, *(parts[j] for j in parts if j.startswith("method "))]
    for one in rows:
        accuracy = np.array(one["tasks"])
        one["accuracy"] = float(accuracy.mean())
        one["normalised"] = float((accuracy / np.array(base["individual"])).mean())
        one["retained"] = one["held_out"] / base["held_out"]
    return {
        "config": dataclasses.asdict(config), **base, "rows": rows,
        "curves": {k: parts[k] for k in CURVES if k in parts},
        "not_run": [j.removeprefix("method ") for j in jobs(config) if j not in parts],
        "machine": machine(), "versions": versions(),
    }  # fmt: skip


def main(name: str, data: Path, work: Path, out: Path, done: bool) -> None:
    """Do what is not done yet, and write the result; with `done`, only what is there."""
    config = get_config(name)
    work.mkdir(parents=True, exist_ok=True)
    settings = work / "config.json"
    stated = json.dumps(dataclasses.asdict(config))
    if not settings.exists():
        settings.write_text(stated)
    if settings.read_text() != stated:
        raise SystemExit(f"{work} is of another configuration; take another folder with --work.")
    suite = None if done else Suite(config, data, work)
    parts = {}
    for job in jobs(config):
        place = work / f"{job.replace(' ', '_').replace(',', '')}.json"
        if not place.exists() and done:
            continue
        if not place.exists():
            result = run_job(suite, job)
            place.write_text(json.dumps(result))
            if job.startswith("method"):
                result = f"{100 * np.mean(result['tasks']):.1f} %, {result['note']}"
            print(f"{job}: {result}", flush=True)
        parts[job] = json.loads(place.read_text())
    out.write_text(json.dumps(gather(config, parts), indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("suite", choices=tuple(CONFIGS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--done", action="store_true", help="write what is done, run nothing")
    a = parser.parse_args()
    work = a.work or Path(tempfile.gettempdir()) / f"data_driven_{a.suite}"
    main(a.suite, a.data, work, a.out or OUT[a.suite], a.done)
