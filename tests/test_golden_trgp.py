"""TRGP against the authors' code: decisions exact, weights, spaces and answers to 1e-9."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, learn, load, stream

from jaxmerge.continual.methods.trgp import nearest, trgp
from jaxmerge.continual.stages import build
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.wraps.scales import SPACE, USED

KERNELS = ("layer_0/kernel", "layer_1/kernel", "head/kernel")


def given_stream(z):
    many, batch = len(z["task0_x"]), int(z["batch_size"])
    pad = -many % batch
    xs, ys, weight = [], [], []
    for t in range(6):
        order = z[f"task{t}_order"]
        pieces = np.concatenate([np.r_[o, np.full(pad, -1)] for o in order]).reshape(-1, batch)
        weight.append((pieces >= 0).astype(float))
        xs.append(z[f"task{t}_x"][pieces] * weight[-1][..., None])
        ys.append(z[f"task{t}_y"][pieces])
    return stream(xs, ys, classes=10)._replace(weight=np.stack(weight)), many + pad


def test_the_first_six_of_ten_tasks(x64):
    z = load("trgp", "six_tasks")
    tasks, examples = given_stream(z)
    method = trgp(tuple(map(float, z["thresholds"])), trust=float(z["epsilon1"]), examples=examples)
    model = given([z[f"init_W{i}"] for i in range(3)])
    _, after = learn(model, tasks, method, rate=float(z["lr"]))
    for t, state in enumerate(after):
        for i, n in enumerate(KERNELS):
            close(state.params[n].T, z[f"task{t}_W{i}"], 1e-9)
            m, own = state.memory[0][n].vectors, state.params[n + SPACE][t]
            for actual, name in ((m, "all_spaces"), (own, "space")):
                theirs = z[f"task{t}_layer{i}_{name}"]
                assert int(jnp.sum(jnp.any(actual != 0, 0))) == theirs.shape[1], (t, i, name)
                close(actual @ actual.T, theirs @ theirs.T, 1e-9)
            if t < 3:
                assert state.params[n + USED][t].tolist() == [-1, -1]
            else:
                used = set(state.params[n + USED][t].tolist())
                assert used == set(z[f"task{t}_layer{i}_selected"].tolist())
    wrapped = build(Setup(model, *setting(), (method,)), 6).model
    for t in range(4):
        for j in range(t + 1):
            logits = wrapped.apply(after[t].params, z[f"task{j}_x"], j).logits
            close(logits, z[f"task{t}_logits_on_task{j}"], 1e-9)


def setting():
    from jaxmerge.continual.optimisers import sgd
    from jaxmerge.continual.problems import classification

    return classification(columns="all"), sgd(rate=0.1)


@pytest.mark.parametrize(
    ("near", "inside", "task", "released", "used"),
    [
        ([1, 1, 0], [0.2, 0.7, 0.9], 3, True, [-1, 1]),  # one of the two best is in the region
        ([1, 1, 0], [0.2, 0.7, 0.9], 3, False, [1, 0]),
        ([1, 1, 0], [0.9, 0.7, -1], 2, True, [1, -1]),  # task 2 looks at task 1 only
        ([1, 1, 0], [0.9, 0.7, -1], 2, False, [0, 1]),
        ([0, 0, 0], [-1, -1, -1], 0, True, [-1, -1]),
        ([1], [0.5], 1, True, [0, -1]),  # a stream of one task
    ],
)
def test_which_tasks_are_used(near, inside, task, released, used):
    chosen = nearest(jnp.array(near, bool), jnp.array(inside), jnp.int32(task), released)
    assert chosen.tolist() == used


def test_weights_move_outside_all_spaces_and_old_answers_stay(x64):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(2, 3, 12))
    xs = np.stack([rng.normal(size=(6, 4, 3)) @ d for d in directions])
    ys = rng.integers(0, 4, (2, 6, 4))
    model = given((rng.normal(size=(8, 12)), rng.normal(size=(4, 8))))
    method = trgp(0.999999, trust=0.1, examples=24, rule="paper")
    _, (one, two) = learn(model, stream(xs, ys, classes=4), method)
    wrapped = build(Setup(model, *setting(), (method,)), 2).model
    x = xs[0].reshape(-1, 12)
    before, now = (wrapped.apply(s.params, x, 0).logits for s in (one, two))
    assert float(jnp.abs(one.params["layer_0/kernel"] - two.params["layer_0/kernel"]).max()) > 1e-3
    np.testing.assert_allclose(now, before, rtol=0, atol=1e-3 * float(jnp.abs(before).max()))
