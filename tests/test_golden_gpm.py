"""GPM against the authors' code: ranks exact, projectors and weights to 1e-12."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, learn, load, stream

from jaxmerge.continual.memories import basis
from jaxmerge.continual.methods.gpm import gpm
from jaxmerge.continual.records import Model, Outputs
from jaxmerge.continual.registry import models

grow = jax.jit(basis.grow)


def layers(z):
    """(case, layer) -> its tasks, in order."""
    by_layer = {}
    for k in z:
        if m := re.match(r"(\w+?)__task(\d)_layer(\d)_inputs", k):
            by_layer.setdefault((m[1], int(m[3])), set()).add(int(m[2]))
    return {k: sorted(v) for k, v in by_layer.items()}


def test_bases(x64):
    z = load("gpm", "bases")
    cases = layers(z)
    assert len({case for case, _ in cases}) == 7
    for (case, layer), tasks in cases.items():
        name = f"{case}__task{{}}_layer{layer}_"
        space = basis.empty(z[name.format(0) + "inputs"].shape[0], dtype=jnp.float64)
        for t in tasks:
            inputs = z[name.format(t) + "inputs"].T
            space = grow(space, inputs, z[f"{case}__thresholds"][layer], t == 0)
            assert int(space.rank) == z[name.format(t) + "rank"], (case, layer, t)
            if name.format(t) + "projector" in z:
                close(space.vectors @ space.vectors.T, z[name.format(t) + "projector"], 1e-12)


def test_ranks_in_float32():
    z = load("gpm", "bases")
    for (case, layer), tasks in layers(z).items():
        name = f"{case}__task{{}}_layer{layer}_"
        space = basis.empty(z[name.format(0) + "inputs"].shape[0])
        for t in tasks:
            inputs = z[name.format(t) + "inputs"].T.astype(np.float32)
            space = grow(space, inputs, z[f"{case}__thresholds"][layer], t == 0)
            assert int(space.rank) == z[name.format(t) + "rank"], (case, layer, t)


@pytest.mark.parametrize("conv", range(3))
def test_patches_of_a_convolution(conv, x64):
    z = load("gpm", "conv_patches")
    images, k = z[f"conv{conv}_activations"], int(z[f"conv{conv}_kernel"])
    actual = basis.patches(jnp.moveaxis(jnp.asarray(images), 1, -1), (k, k))
    ours = np.asarray(actual).reshape(-1, k, k, images.shape[1])  # theirs: channels before places
    close(ours.transpose(0, 3, 1, 2).reshape(len(ours), -1).T, z[f"conv{conv}_inputs"], 0)


def test_training(x64):
    z = load("gpm", "training")
    batch, epochs, many = int(z["batch_size"]), int(z["epochs"]), 30
    xs, ys, weight = [], [], []
    for t in range(3):
        order = z[f"task{t}_order"]
        assert order.shape == (epochs, many)
        pad = -many % batch
        pieces = np.concatenate([np.r_[o, np.full(pad, -1)] for o in order]).reshape(-1, batch)
        weight.append((pieces >= 0).astype(float))
        xs.append(z[f"task{t}_x"][pieces] * weight[-1][..., None])
        ys.append(z[f"task{t}_y"][pieces])
    tasks = stream(xs, ys, classes=10)._replace(weight=np.stack(weight))
    method = gpm(tuple(map(float, z["thresholds"])), examples=many + -many % batch)
    model = given([z[f"init_W{i}"] for i in (1, 2, 3)])
    _, after = learn(model, tasks, method, rate=float(z["lr"]))
    for t, state in enumerate(after):
        for i, name in enumerate(("layer_0", "layer_1", "head")):
            kernel = f"{name}/kernel"
            close(state.params[kernel].T, z[f"task{t}_W{i + 1}"], 1e-12)
            space = state.memory[0][kernel]
            assert int(space.rank) == z[f"task{t}_layer{i}_rank"]
            close(space.vectors @ space.vectors.T, z[f"task{t}_layer{i}_projector"], 1e-12)


def test_other_leaves_stop_after_the_first_task_unless_they_are_free():
    rng = np.random.default_rng(0)
    model = given((rng.normal(size=(6, 5)), rng.normal(size=(4, 6))), (np.zeros(6), np.zeros(4)))
    tasks = stream(rng.normal(size=(2, 3, 4, 5)), rng.integers(0, 4, (2, 3, 4)), classes=4)
    for free, moves in ((None, []), ("^head/bias", ["head/bias"])):
        _, (one, two) = learn(model, tasks, gpm(0.5, project="layer", free=free))
        same = {n: bool(jnp.all(one.params[n] == two.params[n])) for n in one.params}
        assert [n for n, s in sorted(same.items()) if not s] == sorted([*moves, "layer_0/kernel"])


@models.register
def convolution():
    """One convolution, its mean over places, a head; gives what met its kernels as taps."""

    def init(key):
        return {
            "conv/kernel": jax.random.normal(key, (3, 3, 2, 5)),
            "head/kernel": jax.random.normal(key, (5, 4)),
        }

    def apply(params, x, task):
        met = basis.patches(x, (3, 3))
        hidden = jax.nn.relu(met @ params["conv/kernel"].reshape(18, 5))
        features = jnp.mean(hidden.reshape(x.shape[0], -1, 5), 1)
        taps = {"conv/kernel": met, "head/kernel": features}
        return Outputs(features @ params["head/kernel"], features, {"taps": taps})

    return Model(init, apply)


def test_a_convolution_moves_outside_the_patches_of_earlier_tasks(x64):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3, 6 * 6 * 2))  # few directions of images, so few of patches
    xs = (rng.normal(size=(2, 3, 4, 3)) @ directions).reshape(2, 3, 4, 6, 6, 2)
    ys = rng.integers(0, 4, (2, 3, 4))
    flat = stream(xs.reshape(2, 3, 4, -1), ys, classes=4)
    tasks = flat._replace(
        inputs=flat.inputs.reshape(-1, 6, 6, 2),
        groups=flat.groups._replace(inputs=flat.groups.inputs.reshape(-1, 6, 6, 2)),
    )
    _, (one, two) = learn(convolution(), tasks, gpm(0.9, examples=12))
    space = one.memory[0]["conv/kernel"]
    assert 0 < int(space.rank) < 18
    change = (two.params["conv/kernel"] - one.params["conv/kernel"]).reshape(18, 5)
    assert float(jnp.abs(change).max()) > 1e-3
    close(space.vectors.T @ change, np.zeros((18, 5)), 1e-12)


def test_bad_settings():
    model = given((np.ones((6, 5)), np.ones((4, 6))))
    tasks = stream(np.ones((2, 3, 4, 5)), np.zeros((2, 3, 4), int), classes=4)
    with pytest.raises(ValueError, match="threshold has 3 numbers, for the 2 kernels layer_0"):
        learn(model, tasks, gpm((0.9, 0.9, 0.9)))
    with pytest.raises(ValueError, match="gpm: no kernel matches 'trunk'; the model has: "):
        learn(model, tasks, gpm(project="trunk"))
