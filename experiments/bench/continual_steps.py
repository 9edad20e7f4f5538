"""What a step of a stream costs: against torch, against a hand-written scan, for many seeds.

    python experiments/bench/continual_steps.py [--steps 6000] [--seeds 8] [--torch-python PYTHON]
    python experiments/bench/continual_steps.py --before CHECKOUT --data DATA [--tasks 3]

A perceptron 784-100-100-10, SGD, batch 10, on noise of MNIST's shape.  Times are processor seconds
of one process, the least of nine runs after the one that compiles, the two sides in turn; on an
accelerator read the wall times; on a CPU pin it to one core (`taskset -c 0`).  The scan by hand
does the same arithmetic on the same batches; its last weights must be equal.  torch is a plain loop
on one thread, the batches cut beforehand.

With ``--before`` MiniLM learns CLINC150 with the code of another checkout and then with this one,
each in a process of its own; the ratio is of the second runs, which compile nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmerge.continual import stages
from jaxmerge.continual.drivers import program
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.seeds import over, stacked
from jaxmerge.continual.stream_records import Groups, Setup, Stream
from jaxmerge.models.mlp.learner import mlp
from jaxmerge.studies.provenance import machine, versions

BATCH, RATE = 10, 0.1

TORCH = """
import sys, time, json, numpy as np, torch
torch.set_num_threads(1)
data = np.load(sys.argv[1])
x, y = torch.tensor(data["x"]), torch.tensor(data["y"]).long()
sizes = (784, 100, 100, 10)
layers = []
for a, b in zip(sizes, sizes[1:]):
    layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
net = torch.nn.Sequential(*layers[:-1])
best = torch.optim.SGD(net.parameters(), lr=0.1)
spent = []
for _ in range(3):
    began = time.process_time(), time.perf_counter()
    for a, b in zip(x, y):
        best.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(a), b).backward()
        best.step()
    spent.append((time.process_time() - began[0], time.perf_counter() - began[1]))
print(json.dumps([len(x) / min(c) for c in zip(*spent)]))
"""


MINILM = """
import json, sys, time
from pathlib import Path
data, tasks = sys.argv[1], int(sys.argv[2])
from jaxmerge.data.text import clinc150
from jaxmerge.models import bert
try:
    from jaxmerge.data.splits import few
except ImportError:
    from jaxmerge.data.sources import few
try:
    from jaxmerge.data.streams.scenario import class_incremental
    from jaxmerge.training.fit import Training, fit
    from jaxmerge.training.learner import from_bert
except ImportError:
    from jaxmerge.continual.scenario import class_incremental
    from jaxmerge.continual.train import Training, fit
    from jaxmerge.continual.learner import from_bert
source = few(clinc150(Path(data) / "clinc150"), {"train": 8, "val": 1, "test": 1})
scenario = class_incremental(source, tasks)
learner = from_bert(bert.load("sentence-transformers/all-MiniLM-L6-v2"), scenario)
spent = []
for _ in range(2):
    began, params, losses = time.process_time(), learner.params, []
    for t, task in enumerate(scenario):
        inputs = learner.prepare(task.source.inputs[task.rows["train"]])
        own, labels = scenario.mask(t), task.labels("train")
        how = Training(epochs=1, rate=1e-4)
        params, new = fit(learner, params, inputs, labels, own, how, seed=(0, t))
        losses += new
    spent.append(time.process_time() - began)
print(json.dumps([spent, losses]))
"""


def minilm(before: str, data: str, tasks: int) -> dict:
    """Processor seconds of MiniLM on CLINC150 before and now."""
    outputs = {}
    for name, place in (("before", before), ("now", str(Path(__file__).parents[2]))):
        done = subprocess.run(
            [sys.executable, "-c", MINILM, data, str(tasks)], capture_output=True, text=True,
            check=False, env={**os.environ, "PYTHONPATH": place},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-2000:]}")
        outputs[name] = json.loads(done.stdout.strip().splitlines()[-1])
    (old, losses), (new, again) = outputs["before"], outputs["now"]
    revision = ["git", "-C", before, "rev-parse", "--short", "HEAD"]
    return {
        "before": subprocess.run(revision, capture_output=True, text=True).stdout.strip(),
        "MiniLM before, processor seconds": old[1], "MiniLM now, processor seconds": new[1],
        "MiniLM now / before": new[1] / old[1], "with compilation": new[0] / old[0],
        "losses differ by": max(map(abs, np.subtract(losses, again).tolist())),
    }  # fmt: skip


def stream(tasks: int, steps: int, seed: int = 0, data=None) -> Stream:
    """Noise with labels; every task reads all of it in an order of its own."""
    rng = np.random.default_rng(seed)
    data = data or noise()
    rows = rng.integers(0, len(data[1]), (tasks, steps, BATCH)).astype(np.int32)
    origin = np.broadcast_to(np.arange(tasks, dtype=np.int32)[:, None, None], rows.shape).copy()
    own = np.ones((tasks, 10), bool)
    groups = Groups(
        *data, np.arange(500, dtype=np.int32)[None], np.ones((1, 500), np.float32),
        np.zeros(1, np.int32), {"own": own[:1]},
    )  # fmt: skip
    return Stream(*data, rows, origin, np.ones(rows.shape, np.float32), {"own": own}, groups)


def noise() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(5000, dtype=np.int32) % 10
    means = rng.normal(size=(10, 784)).astype(np.float32)
    return (means[labels] + rng.normal(size=(5000, 784))).astype(np.float32), labels


def timed(*sides: tuple, times: int = 9) -> list[tuple]:
    """Of each side ``(f, *args)``: its result, least processor and wall seconds behind the first
    call; the sides run in turn, so that a noisy machine is noisy for both."""
    results = [jax.block_until_ready(f(*args)) for f, *args in sides]
    spent: list[list[tuple[float, float]]] = [[] for _ in sides]
    for _ in range(times):
        for own, (f, *args) in zip(spent, sides, strict=True):
            began = time.process_time(), time.perf_counter()
            jax.block_until_ready(f(*args))
            own.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    least = [[min(x) for x in zip(*own, strict=True)] for own in spent]
    return [(r, *x) for r, x in zip(results, least, strict=True)]


def setup() -> Setup:
    return Setup(mlp(), classification(), sgd(RATE))


def by_hand(params, inputs, targets, rows):
    """The same steps without the mechanism."""
    model = mlp().build()

    def step(params, r):
        def loss(p):
            logits = model.apply(p, inputs[r], 0).logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, targets[r]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, grads), value

    return jax.lax.scan(step, params, rows)


def steps(count: int) -> dict:
    """Steps a second in the scan of a task, and by hand."""
    s = jax.tree.map(jnp.asarray, stream(1, count))
    state = stages.create(setup(), s, jax.random.key(0))
    ((after, _), ours, wall), (hand, theirs, _) = timed(
        (jax.jit(stages.train), setup(), s, state, jnp.int32(0)),
        (jax.jit(by_hand), state.params, s.inputs, s.targets, s.rows[0]),
    )
    apart = max(float(jnp.abs(hand[0][n] - p).max()) for n, p in after.params.items())
    return {
        "steps a processor second": count / ours, "steps a second": count / wall,
        "by hand, steps a processor second": count / theirs, "overhead": ours / theirs - 1,
        "weights differ by": apart,
    }  # fmt: skip


def torch_steps(count: int, python: str) -> dict:
    """Steps a second of a plain torch loop."""
    s = stream(1, count)
    x, y = s.inputs[s.rows[0]], s.targets[s.rows[0]]
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, x=x, y=y)
        file.flush()
        done = subprocess.run(
            [python, "-c", TORCH, file.name], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"the torch side failed:\n{done.stderr[-2000:]}")
    cpu, wall = json.loads(done.stdout.strip().splitlines()[-1])
    return {"torch, steps a processor second": cpu, "torch, steps a second": wall}


def many_seeds(count: int, seeds: int) -> dict:
    """One stream against several seeds in one program; `vmap` on an accelerator."""
    data, keys = noise(), jax.random.split(jax.random.key(0), seeds)
    streams = [stream(2, count // 2, k, data) for k in range(seeds)]
    one = lambda s, key: program(setup(), s, key).R
    together, axes = stacked(streams)
    many = jax.jit(lambda s, k: over(one, axes, s, k))
    (_, cpu, wall), (_, cpus, walls) = timed(
        (jax.jit(one), jax.tree.map(jnp.asarray, streams[0]), keys[0]),
        (many, jax.tree.map(jnp.asarray, together), keys),
    )
    return {"seeds": seeds, "cost of all, processor": cpus / cpu, "cost of all, wall": walls / wall}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--before", help="a checkout with other code, for MiniLM")
    parser.add_argument("--data", help="the folder with clinc150/")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--save", help="JSON file for the figures")
    options = parser.parse_args()
    what = " --before CHECKOUT --data DATA" if options.before else ""
    command = f"python experiments/bench/continual_steps.py{what}"
    report = {"command": command, "versions": versions(), "machine": machine()}
    if options.before:
        report |= minilm(options.before, options.data, options.tasks)
    else:
        report |= steps(options.steps) | torch_steps(options.steps, options.torch_python)
        ours, theirs = (report[f"{k}steps a processor second"] for k in ("", "torch, "))
        report["times as fast as torch"] = ours / theirs
        report |= many_seeds(options.steps, options.seeds)
    for name, value in report.items():
        if isinstance(value, int | float):
            print(f"{name:36} {value:.4g}", flush=True)
    if options.save:
        with open(options.save, "w") as file:
            file.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
