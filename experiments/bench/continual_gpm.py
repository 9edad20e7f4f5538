"""One seed of GPM on permuted MNIST against the same protocol as a plain torch loop.

    taskset -c 0 python experiments/bench/continual_gpm.py [--steps 2000] [--torch-python PYTHON]
    python experiments/bench/continual_gpm.py --seeds 5      # and five seeds by vmap, on a GPU

784-100-100-10 without biases, batch 10, SGD 0.01, thresholds 0.95, 0.99, 0.99, on noise of
MNIST's shape: a task without a basis, the growth of the bases by 300 examples, a task with them.
torch is the authors' loop on one thread, its projectors made once a task and its batches cut
beforehand; both sides begin with the same weights and read the same batches, and their last weights
are compared.  Processor seconds, the least of three runs; a whole seed is 27,000 steps without a
basis, 243,000 with one, and ten growths.  Several seeds against one are compared by wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from continual_steps import noise, stream, timed

from jaxmerge.continual import stages
from jaxmerge.continual.methods import gpm
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.seeds import stacked
from jaxmerge.continual.stream_records import Setup
from jaxmerge.models.mlp.learner import mlp
from jaxmerge.studies.provenance import machine, versions

SHARES, EXAMPLES, RATE = (0.95, 0.99, 0.99), 300, 0.01
KERNELS = ("layer_0/kernel", "layer_1/kernel", "head/kernel")
PROTOCOL = {"first": 27_000, "later": 243_000, "growth": 10}

TORCH = """
import json, sys, time, numpy as np, torch
torch.set_num_threads(1)
data = np.load(sys.argv[1])
shares, rate = data["shares"], float(data["rate"])
weights = [torch.tensor(data[f"w{i}"]) for i in range(3)]
xs, ys = torch.tensor(data["x"]), torch.tensor(data["y"]).long()
layers = [torch.nn.Linear(*w.T.shape, bias=False) for w in weights]
net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
best = torch.optim.SGD(net.parameters(), lr=rate)

def reset(ws):
    for layer, w in zip(layers, ws):
        layer.weight.data = w.clone()

def learn(x, y, projectors=None):
    for a, b in zip(x, y):
        best.zero_grad()
        torch.nn.functional.cross_entropy(net(a), b).backward()
        if projectors is not None:
            for layer, p in zip(layers, projectors):
                layer.weight.grad -= layer.weight.grad @ p
        best.step()

def grow(x):
    met, bases = x, []
    for layer, share in zip(layers, shares):
        u, s, _ = np.linalg.svd(met.numpy().T, full_matrices=False)
        ratio = np.cumsum(s**2) / np.sum(s**2)
        bases.append(torch.tensor(u[:, : np.sum(ratio < share)]))
        with torch.no_grad():
            met = torch.relu(layer(met))
    return bases, [b @ b.T for b in bases]

def timed(f, before):
    spent = []
    for _ in range(3):
        reset(before)
        began = time.process_time()
        out = f()
        spent.append(time.process_time() - began)
    return out, min(spent)

_, first = timed(lambda: learn(xs[0], ys[0]), weights)
after = [layer.weight.data.clone() for layer in layers]
(bases, projectors), growth = timed(lambda: grow(torch.tensor(data["sample"])), after)
_, later = timed(lambda: learn(xs[1], ys[1], projectors), after)
np.savez(sys.argv[2], *[layer.weight.data.numpy() for layer in layers])
print(json.dumps({"first": first, "growth": growth, "later": later,
                  "ranks": [b.shape[1] for b in bases], "version": torch.__version__}))
"""


def setup_of() -> Setup:
    return Setup(mlp(bias=False), classification("all"), sgd(RATE), (gpm(SHARES),))


def ours(tasks, count: int) -> tuple[dict, list[np.ndarray], list[np.ndarray]]:
    """Seconds, the weights at the beginning and at the end."""
    setup = setup_of()
    state = stages.create(setup, tasks, jax.random.key(0))
    begin = [np.asarray(state.params[n]).T for n in KERNELS]
    train, end = jax.jit(stages.train), jax.jit(stages.end)
    [((state, _), first, _)] = timed((train, setup, tasks, state, jnp.int32(0)), times=3)
    [(state, growth, _)] = timed((end, setup, tasks, state, jnp.int32(0)), times=3)
    ranks = [int(state.memory[0][n].rank) for n in KERNELS]
    [((state, _), later, _)] = timed((train, setup, tasks, state, jnp.int32(1)), times=3)
    spent = {"first": first, "growth": growth, "later": later, "ranks": ranks}
    return spent, begin, [np.asarray(state.params[n]).T for n in KERNELS]


def many_seeds(count: int, seeds: int) -> dict:
    """Wall seconds of a whole stream of one seed and of several at once."""
    data, setup = noise(), setup_of()
    together, axes = stacked([stream(2, count, k, data) for k in range(seeds)])
    one = jax.tree.map(jnp.asarray, stream(2, count, 0, data))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    stage = lambda f: jax.jit(lambda s, x, t: f(setup, s, x, t))
    mapped = lambda f: jax.jit(jax.vmap(lambda s, x, t: f(setup, s, x, t), (axes, 0, None)))
    create = lambda s, k: stages.create(setup, s, k)
    sides = (
        (one, jax.jit(create)(one, keys[0]), stage),
        (jax.tree.map(jnp.asarray, together),
         jax.jit(jax.vmap(create, (axes, 0)))(together, keys), mapped),
    )  # fmt: skip
    spent = []
    for tasks, state, form in sides:
        train, end = form(stages.train), form(stages.end)
        [((state, _), _, first)] = timed((train, tasks, state, jnp.int32(0)), times=3)
        [(state, _, growth)] = timed((end, tasks, state, jnp.int32(0)), times=3)
        [(_, _, later)] = timed((train, tasks, state, jnp.int32(1)), times=3)
        spent.append({"first": first, "growth": growth, "later": later})
    return dict(zip(("one", "all"), spent, strict=True))


def torch_loop(tasks, begin: list[np.ndarray], python: str) -> tuple[dict, list[np.ndarray]]:
    """The same by torch."""
    rows = np.asarray(tasks.rows)
    sample = np.asarray(tasks.inputs)[rows[0].reshape(-1)[:EXAMPLES]]
    with tempfile.TemporaryDirectory() as folder:
        given, after = f"{folder}/given.npz", f"{folder}/after.npz"
        np.savez(
            given, shares=SHARES, rate=RATE, sample=sample, x=np.asarray(tasks.inputs)[rows],
            y=np.asarray(tasks.targets)[rows], **{f"w{i}": w for i, w in enumerate(begin)},
        )  # fmt: skip
        done = subprocess.run(
            [python, "-c", TORCH, given, after], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"the torch side failed:\n{done.stderr[-2000:]}")
        with np.load(after) as z:
            return json.loads(done.stdout.strip().splitlines()[-1]), list(z.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--seeds", type=int, default=0, help="so many at once besides")
    parser.add_argument("--save", help="JSON file for the figures")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    tasks = jax.tree.map(jnp.asarray, stream(2, options.steps))
    spent, begin, weights = ours(tasks, options.steps)
    theirs, other = torch_loop(tasks, begin, options.torch_python)
    if spent["ranks"] != theirs["ranks"]:
        raise SystemExit(f"the bases have {spent['ranks']} directions, torch's {theirs['ranks']}")
    steps = {"first": options.steps, "later": options.steps, "growth": 1}
    seed = lambda s: sum(many * s[k] / steps[k] for k, many in PROTOCOL.items())
    command = "taskset -c 0 python experiments/bench/continual_gpm.py"
    report = {
        "command": f"{command} --steps {options.steps}",
        "versions": versions(),
        "machine": machine(),
        "torch version": theirs["version"],
        "load average before": load,
    }
    for name, s in (("", spent), ("torch, ", theirs)):
        for k in ("first", "later"):
            report[f"{name}{k} task, microseconds a step"] = 1e6 * s[k] / options.steps
        report[f"{name}growth of the bases, processor seconds"] = s["growth"]
        report[f"{name}one seed, processor seconds"] = seed(s)
    report["directions of the bases"] = ", ".join(map(str, spent["ranks"]))
    report["weights differ by"] = max(
        float(np.abs(a - b).max()) for a, b in zip(weights, other, strict=True)
    )
    report["times as fast as torch"] = seed(theirs) / seed(spent)
    if options.seeds:
        report["command"] += f" --seeds {options.seeds}"
        wall = many_seeds(options.steps, options.seeds)
        for name, s in (("one seed", wall["one"]), (f"{options.seeds} seeds", wall["all"])):
            report[f"{name}, first task, microseconds a step, wall"] = (
                1e6 * s["first"] / options.steps
            )
            report[f"{name}, later task, microseconds a step, wall"] = (
                1e6 * s["later"] / options.steps
            )
            report[f"{name}, growth of the bases, wall seconds"] = s["growth"]
            report[f"{name}, wall seconds"] = seed(s)
        report[f"{options.seeds} seeds, times one"] = seed(wall["all"]) / seed(wall["one"])
    for name, value in report.items():
        if isinstance(value, str | float):
            print(f"{name:48} {value if isinstance(value, str) else f'{value:.4g}'}", flush=True)
    if options.save:
        with open(options.save, "w") as file:
            file.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
