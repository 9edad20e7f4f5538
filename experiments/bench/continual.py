"""A class-incremental run of MiniLM on CLINC150 against the same run in plain torch, and evaluation
of many merge factors.

    python experiments/bench/continual.py --data DATA --torch-python TORCH_ENV/bin/python
    python experiments/bench/continual.py --data DATA --factors 20

Both sides fine-tune all weights task after task on the same batches in the same order (AdamW,
clipped gradients, cosine schedule), fold every model into MagMax and evaluate the last and the
merged model.  torch pads each batch to its longest sentence; we pack it
(`jaxmerge.models.packing`).  Losses and accuracies of both sides are printed, to show that the
work is the same.  The torch side runs in a process of its own, after ours has ended its work.

With ``--factors`` the time of evaluating a merge under so many factors at once is compared with so
many separate evaluations: in one process that is warm (compiled, the merge and the sentences
prepared anew each time), and in a process each (the time of one such process, multiplied).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import jaxmerge as jm
from jaxmerge.data.pipeline import Order
from jaxmerge.data.splits import few
from jaxmerge.data.streams.scenario import class_incremental, class_order
from jaxmerge.data.text import clinc150
from jaxmerge.drivers import memory
from jaxmerge.evaluation.predict import accuracies, logits, probe
from jaxmerge.models import bert
from jaxmerge.studies.provenance import machine, versions
from jaxmerge.training.fit import Training, fit
from jaxmerge.training.learner import from_bert

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
FACTOR = 0.5


def problem(options):
    """The learner and the stream."""
    counts = {"train": options.sentences, "val": options.test, "test": options.test}
    source = few(clinc150(Path(options.data) / "clinc150"), counts)
    scenario = class_incremental(source, options.tasks, class_order(len(source.classes), 0))
    return from_bert(bert.load(MODEL), scenario), scenario


def ours(learner, scenario, training) -> dict:
    """The run on our side; losses, accuracies and seconds of each phase."""
    began, used = time.perf_counter(), time.process_time()
    method = jm.magmax(FACTOR)
    params, state = learner.params, memory.init(method, learner.params)
    losses, train, merge = [], 0.0, 0.0
    for t, task in enumerate(scenario):
        start = time.perf_counter()
        inputs = learner.prepare(task.source.inputs[task.rows["train"]])
        own = scenario.mask(t)
        params, new = fit(learner, params, inputs, task.labels("train"), own, training, seed=(0, t))
        losses += new
        train += time.perf_counter() - start
        start = time.perf_counter()
        state = jax.block_until_ready(memory.update(method, state, learner.params, params))
        merge += time.perf_counter() - start
    start = time.perf_counter()
    data = probe(learner, scenario, "test")
    merged = memory.merged(method, state, learner.params)
    correct = [logits(learner, [p], data)[0].argmax(1) == data.columns for p in (params, merged)]
    ended = time.perf_counter()
    return {
        "seconds": ended - began,
        "cpu_seconds": time.process_time() - used,
        "training": train,
        "merging": merge,
        "evaluation": ended - start,
        "last": float(correct[0].mean()),
        "magmax": float(correct[1].mean()),
        "losses": losses,
    }


def theirs(learner, scenario, training, python: str) -> dict:
    """The run in torch, in a process of its own."""
    from jaxmerge.io.packaged import packaged

    everything = scenario.split("train", learner.prepare)
    test = scenario.split("test", learner.prepare)
    starts = np.searchsorted(everything.task, range(len(scenario)))
    arrays = {
        "tokens": everything.inputs.astype(np.int64),
        "labels": everything.columns.astype(np.int64),
        "test": test.inputs.astype(np.int64),
        "test_labels": test.columns.astype(np.int64),
        "head": np.asarray(learner.head),
        "own": np.stack([scenario.mask(t) for t in range(len(scenario))]),
    }
    for t, task in enumerate(scenario):
        count = len(task.rows["train"])
        order = Order(count, training.batch, training.steps(count), (0, t))
        arrays[f"rows_{t}"] = starts[t] + np.stack([order[i] for i in range(len(order))])
    job = {
        "model": str(packaged(MODEL) or MODEL),
        "tasks": len(scenario),
        "rate": training.rate,
        "warmup": training.warmup,
        "decay": training.weight_decay,
        "clip": training.clip,
        "scale": float(learner.scale),
        "factor": FACTOR,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.json").write_text(json.dumps(job))
        np.savez(Path(folder) / "job.npz", **arrays)
        script = Path(__file__).with_name("continual_torch.py")
        done = subprocess.run(
            [python, str(script), folder], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"the torch side failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(options) -> dict:
    """Prints both sides; returns the figures."""
    learner, scenario = problem(options)
    training = Training(epochs=options.epochs, batch=32, rate=1e-4)
    print(f"{len(scenario)} tasks, batch {training.batch}, {machine()['cpus']} CPUs", flush=True)
    runs = {"first run, with compilation": ours(learner, scenario, training)}
    runs["jaxmerge"] = ours(learner, scenario, training)
    runs["torch"] = theirs(learner, scenario, training, options.torch_python)
    for name, r in runs.items():
        print(
            f"{name:28} {r['seconds']:6.1f} s ({r['training']:.1f} training, {r['merging']:.1f} "
            f"merging, {r['evaluation']:.1f} evaluation), {r['cpu_seconds']:6.1f} CPU s, last "
            f"{100 * r['last']:.1f} %, MagMax {100 * r['magmax']:.1f} %",
            flush=True,
        )
    difference = np.abs(np.subtract(runs["jaxmerge"]["losses"], runs["torch"]["losses"]))
    steps = len(difference)
    print(f"{steps} steps; losses differ by {difference.mean():.1e} on average")
    for name in ("jaxmerge", "first run, with compilation"):
        ratio = runs["torch"]["seconds"] / runs[name]["seconds"]
        print(f"torch takes {ratio:.2f} times as long as {name}")
    for r in runs.values():
        r.pop("losses")
    return {"steps": steps, "losses_differ": float(difference.mean()), **runs}


def sweep(options) -> dict:
    """Evaluation of many factors at once, and one by one."""
    learner, scenario = problem(options)
    base = {n: np.asarray(p) for n, p in learner.params.items()}
    draw = np.random.default_rng(0).normal
    model = {n: p + 1e-3 * draw(size=p.shape).astype(np.float32) for n, p in base.items()}
    state = memory.update(jm.magmax(), memory.init(jm.magmax(), base), base, model)
    factors = tuple(np.linspace(0.05, 1, options.factors).tolist())

    def together():
        models = (memory.merged(jm.magmax(factor), state, base) for factor in factors)
        data = probe(learner, scenario, "val")
        return accuracies(logits(learner, models, data), data)[0].mean(1)

    def apart():
        scores = []
        for factor in factors:
            merged = memory.merged(jm.magmax(factor), state, base)
            data = probe(learner, scenario, "val")
            scores.append(accuracies(logits(learner, [merged], data), data)[0].mean(1)[0])
        return np.array(scores)

    if options.one:
        memory.merged(jm.magmax(0.5), state, base)
        data = probe(learner, scenario, "val")
        logits(learner, [base], data)
        return {}
    jax.block_until_ready(together())
    seconds = {}
    for name, work in (("together", together), ("one by one", apart)):
        start = time.perf_counter()
        accuracy = work()
        seconds[name] = time.perf_counter() - start
        print(f"{options.factors} factors {name}: {seconds[name]:.1f} s", flush=True)
        seconds[f"{name}, accuracy"] = accuracy.tolist()
    start = time.perf_counter()
    command = [sys.executable, __file__, *sys.argv[1:], "--one"]
    subprocess.run(command, check=True, capture_output=True)
    seconds["a process each"] = options.factors * (time.perf_counter() - start)
    print(f"{options.factors} factors in a process each: {seconds['a process each']:.0f} s")
    for name in ("one by one", "a process each"):
        print(f"together is {seconds[name] / seconds['together']:.1f} times as fast as {name}")
    return {"factors": options.factors, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="the folder with clinc150/")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--sentences", type=int, default=16, help="training sentences an intent")
    parser.add_argument("--test", type=int, default=4, help="test sentences an intent")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--torch-python", help="an interpreter with torch and transformers")
    parser.add_argument("--factors", type=int, default=0)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--save", help="JSON file for the figures; what it holds beside them stays")
    options = parser.parse_args()
    report = {"versions": versions(), "machine": machine()}
    if options.torch_python and not options.one:
        report["run"] = compare(options)
    if options.factors:
        report["sweep"] = sweep(options)
    if options.save and not options.one:
        path = Path(options.save)
        previous = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**previous, **report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
