"""Teachers merged into one tower: the loss and its gradient written out, stages, both teachers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.distillation import heads_above, imitation, taught
from jaxmerge.continual.drivers import program
from jaxmerge.continual.methods import train_only
from jaxmerge.continual.optimisers import by_name, sgd
from jaxmerge.continual.records import LAST
from jaxmerge.continual.stream_records import Setup
from jaxmerge.core.specs import Static
from jaxmerge.models.mlp.learner import mlp
from jaxmerge.training.model_learner import from_weights

KEY = jax.random.key(0)
STUDENT = heads_above(mlp(5, (4,), 2, activation="tanh"), 4)


def teachers(seed=0, many=24):
    """What two unlike teachers say of inputs of their own, [(x, y), (x, y)]."""
    draw = np.random.default_rng(seed).normal
    kernels = np.random.default_rng(9).normal(size=(2, 5, 4))
    inputs = [draw(size=(many, 5)) for _ in kernels]
    return [(x.astype(np.float32), np.tanh(x @ k).astype(np.float32))
            for x, k in zip(inputs, kernels, strict=True)]  # fmt: skip


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_loss_and_first_step_of_the_heads_by_hand():
    """One step of SGD at 1: H_k - sum of w_k f' (cos u - v) / |f H_k| / B, u and v of length 1."""
    parts, weights = teachers(), np.array([10.0, 0.5])
    stream = taught(parts, parts, batch=16)
    one = lambda x: x[:, :1]
    stream = stream._replace(
        rows=one(stream.rows), origin=one(stream.origin), weight=one(stream.weight),
        promise=Static("nothing"),
    )  # fmt: skip
    setup = Setup(STUDENT, imitation(weights), sgd(1.0), (train_only("^heads/"),))
    result = program(setup, stream, KEY)
    base = result.state.base
    rows, who, on = (np.asarray(k)[0, 0] for k in (stream.rows, stream.origin, stream.weight))
    x, y, share = stream.inputs[rows], stream.targets[rows], weights[who] * on / on.sum()
    f = np.tanh(x @ base["layer_0/kernel"] + base["layer_0/bias"])  # a head is the identity
    u, v = unit(f), unit(y)
    cos = np.sum(u * v, -1, keepdims=True)
    assert set(who) == {0, 1}
    np.testing.assert_allclose(result.losses[0, 0], np.sum(share * (1 - cos[:, 0])), rtol=1e-5)
    slope = share[:, None] * (cos * u - v) / np.linalg.norm(f, axis=-1, keepdims=True)
    expected = [np.eye(4) - f[who == k].T @ slope[who == k] for k in (0, 1)]
    np.testing.assert_allclose(result.state.params["heads/kernel"], expected, atol=1e-5)
    for n, p in base.items():
        if not n.startswith("heads/"):
            np.testing.assert_array_equal(result.state.params[n], p)


def test_heads_then_all_keep_both_teachers():
    train, test = teachers(0, 200), teachers(1, 50)
    stream = taught(train, test, batch=20, epochs=10)
    heads = sgd(0.3, momentum=0.9)
    first = program(Setup(STUDENT, imitation(), heads, (train_only("^heads/"),)), stream, KEY)
    slow = by_name((("heads/.*", heads), (".*", sgd(0.03, momentum=0.9))))
    student = from_weights(STUDENT, first.state.params)
    second = program(Setup(student, imitation(), slow), stream, KEY)
    one, two = (np.asarray(r.R[LAST]["likeness"])[-1] for r in (first, second))
    assert (two > one + 0.02).all(), (one, two)
    assert (two > 0.9).all(), two
    np.testing.assert_array_equal(second.state.base["heads/kernel"],
                                  first.state.params["heads/kernel"])  # fmt: skip


def test_an_example_trains_the_head_of_its_teacher_alone():
    parts = teachers()
    only = taught([parts[0], tuple(k[:1] for k in parts[1])], parts, batch=1)
    setup = Setup(STUDENT, imitation((1.0, 0.0)), sgd(0.1), (train_only("^heads/"),))
    kernel = program(setup, only, KEY).state.params["heads/kernel"]
    assert np.abs(kernel[0] - jnp.eye(4)).max() > 0
    np.testing.assert_array_equal(kernel[1], jnp.eye(4))
