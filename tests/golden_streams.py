"""Networks and streams whose weights, batches and order are those of golden files, for `run`."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles

from jaxmerge.continual.drivers import run
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models
from jaxmerge.continual.stream_records import Groups, Setup, Stream

GOLDEN = Path(__file__).parent / "golden" / "continual"
compared = {"now": ("", "", None)}  # system and file that are open, and the test that opened them
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


@models.register
def given(kernels: tuple, biases: tuple | None = None, activation: str = "relu") -> Model:
    """Dense layers with the weights of a file, torch layout [out, in]; the last one is the head."""
    names = [*(f"layer_{i}" for i in range(len(kernels) - 1)), "head"]

    def init(key):
        params = {f"{n}/kernel": jnp.asarray(w).T for n, w in zip(names, kernels, strict=True)}
        for n, b in zip(names, biases or (), strict=False):
            params[f"{n}/bias"] = jnp.asarray(b)
        return params

    def apply(params, x, task):
        for n in names:
            features = x
            x = x @ params[f"{n}/kernel"]
            x = x + params[f"{n}/bias"][None] if f"{n}/bias" in params else x
            x = x if n == "head" else ACTIVATIONS[activation](x)
        return Outputs(x, features)

    return Model(init, apply)


def stream(xs, ys, own=None, classes=None):
    """Tasks of given batches.

    Args:
        xs: of every task [steps, B, d]; ys: [steps, B].
        own: bool [tasks, columns]; by default every task has all.
    """
    xs, ys = [np.asarray(x) for x in xs], [np.asarray(y) for y in ys]
    steps, size = max(len(x) for x in xs), max(x.shape[1] for x in xs)
    many = sum(x.shape[0] * x.shape[1] for x in xs)
    inputs = np.concatenate([x.reshape(-1, x.shape[-1]) for x in xs])
    targets = np.concatenate([y.reshape(-1) for y in ys])
    rows, weight, first = np.zeros((len(xs), steps, size), np.int32), None, 0
    weight = np.zeros(rows.shape, inputs.dtype)
    for t, x in enumerate(xs):
        n, b = x.shape[:2]
        rows[t, :n, :b] = first + np.arange(n * b).reshape(n, b)
        weight[t, :n, :b] = 1
        first += n * b
    origin = np.broadcast_to(np.arange(len(xs), dtype=np.int32)[:, None, None], rows.shape)
    own = np.ones((len(xs), classes or int(targets.max()) + 1), bool) if own is None else own
    groups = Groups(
        inputs, targets, np.arange(many, dtype=np.int32)[None], np.ones((1, many), inputs.dtype),
        np.zeros(1, np.int32), {"own": own[:1]},
    )  # fmt: skip
    return Stream(inputs, targets, rows, origin, weight, {"own": own}, groups)


def learn(model, tasks, *methods, optimiser=None, rate=0.1, columns="all", problem=None):
    """`run` with every task watched: the result, and the state after each."""
    after = []
    problem = problem or classification(columns=columns, metrics=("accuracy",))
    setup = Setup(model, problem, optimiser or sgd(rate=rate), methods)
    keep = lambda t, state, R: after.append(state)
    return run(setup, tasks, jax.random.key(0), watch=keep), after


def load(system, name):
    """The arrays of a golden file."""
    compared["now"] = (system, name, os.environ.get("PYTEST_CURRENT_TEST"))
    with np.load(GOLDEN / system / f"{name}.npz") as z:
        return {k: z[k] for k in z.files}


def close(actual, expected, tolerance):
    """Equal within an absolute tolerance; the difference is noted for `oracles.json`."""
    system, name, test = compared["now"]
    if test and test == os.environ.get("PYTEST_CURRENT_TEST"):  # not a closed form after a file
        apart = np.abs(np.asarray(actual, float) - np.asarray(expected, float)).max(initial=0.0)
        oracles.note(system, name, apart)
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)
