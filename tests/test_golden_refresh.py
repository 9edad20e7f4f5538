"""Refresh learning on DER++ against the authors' code, through the driver: weights to 1e-12."""

from __future__ import annotations

import importlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from golden_streams import close, given, learn, load, stream

from jaxmerge.continual import buffers
from jaxmerge.continual.methods.der import derpp
from jaxmerge.continual.optimisers import sgd

module = importlib.import_module("jaxmerge.continual.methods.refresh")  # a method's name too
NAMES = {"layer_0/kernel": "W1", "layer_0/bias": "b1", "head/kernel": "W2", "head/bias": "b2"}


def table(z, key, empty):
    """[12, ...]: an array of every step of the three tasks."""
    actual = [z.get(f"task{t}_step{s}_{key}", empty) for t in range(3) for s in range(4)]
    return np.stack(
        [np.r_[np.full(len(empty) - len(x), 0), x] if x.ndim == 1 else x for x in actual]
    )


def test_unlearn_and_relearn(x64):
    z = load("refresh", "derpp_refresh")
    size, replay = int(z["buffer_size"]), int(z["minibatch"])
    draws = jnp.asarray(table(z, "reservoir_draws", np.zeros(5, int)))
    picks = {
        k: jnp.asarray(table(z, f"buffer_pick_{k}", np.zeros(replay, int)))
        for k in ("logits", "labels")
    }
    noise = {
        n: jnp.stack([z[f"task{t}_step{s}_noise_{k}"].T for t in range(3) for s in range(4)])
        for n, k in NAMES.items()
    }
    calls = iter(range(10**6))

    def draw_distinct(buffer, key, count):
        slots = picks[("logits", "labels")[next(calls) % 2]][buffer["met"] // 5]
        present = jnp.broadcast_to(buffer["met"] > 0, slots.shape).astype(jnp.float64)
        return jax.tree.map(lambda x: x[slots], buffer["rows"]), present

    randint = lambda key, shape, low, high: draws[(jnp.max(high) - 5) // 5]
    normal = lambda step, leaves: {n: noise[n][4 * step.task + step.count] for n in leaves}
    xs = [[z[f"task{t}_step{s}_x"] for s in range(4)] for t in range(3)]
    ys = [[z[f"task{t}_step{s}_y"] for s in range(4)] for t in range(3)]
    method = module.refresh(
        float(z["delta"]),
        float(z["noise_scale"]),
        float(z["damping"]),
        float(z["tau"]),
        examples=20,
    )
    rates = sgd(rate=float(z["lr"]), weight_decay=float(z["weight_decay"]))
    model = given((z["init_W1"], z["init_W2"]), (z["init_b1"], z["init_b2"]))
    dark = derpp(size, float(z["alpha"]), float(z["beta"]), replay)
    with (
        mock.patch.object(buffers, "draw_distinct", draw_distinct),
        mock.patch.object(jax.random, "randint", randint),
        mock.patch.object(module, "normal", normal),
    ):
        result, after = learn(model, stream(xs, ys, classes=4), method, dark, optimiser=rates)
    for t, state in enumerate(after):
        close(result.losses[t], [z[f"task{t}_step{s}_loss"] for s in range(4)], 1e-12)
        for n, k in NAMES.items():
            close(state.params[n].T, z[f"task{t}_step3_after_{k}"], 1e-12)
            close(state.memory[0][n].T, z[f"task{t}_importance_{k}"], 1e-12)
        rows = state.memory[1]["rows"]
        close(rows.inputs, z[f"task{t}_buffer_x"], 0)
        close(rows.logits, z[f"task{t}_buffer_logits"], 1e-12)


def test_the_move_alone(x64):
    """The unlearning half is of the order of 1e-5: its differences are compared."""
    z = load("refresh", "derpp_refresh")
    method = module.refresh().build()
    for t, s, before in ((0, 0, None), (2, 1, 1)):
        start = {
            n: jnp.asarray(z[f"unlearn_task{t}_step{s}_before_{k}"].T) for n, k in NAMES.items()
        }
        memory = {
            n: jnp.zeros_like(p)
            if before is None
            else jnp.asarray(z[f"task{before}_importance_{NAMES[n]}"].T)
            for n, p in start.items()
        }
        x, y = (jnp.asarray(z[f"task{t}_step{s}_{k}"]) for k in "xy")
        model = given((z["init_W1"], z["init_W2"]), (z["init_b1"], z["init_b2"])).build()

        def fit(params, x=x, y=y, model=model):
            logs = jax.nn.log_softmax(model.apply(params, x, 0).logits)
            return -jnp.mean(logs[jnp.arange(len(y)), y])

        class Step:
            pass

        step = Step()
        step.memory = memory
        noise = {
            n: jnp.asarray(z[f"unlearn_task{t}_step{s}_noise_{k}"].T) for n, k in NAMES.items()
        }
        with mock.patch.object(module, "normal", lambda step, leaves, noise=noise: noise):
            actual = method.perturb(model, step, start, jax.grad(fit))
        for n, k in NAMES.items():
            expected = z[f"unlearn_task{t}_step{s}_after_{k}"].T - start[n]
            close((actual[n] - start[n]) * 1e5, expected * 1e5, 1e-9)
