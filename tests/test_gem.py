"""GEM against its quadratic program, and naive rehearsal's plan against its rule."""

from __future__ import annotations

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, learn, stream
from scipy.optimize import nnls
from test_agem import by_hand
from tiny_streams import split

from jaxmerge.continual import streams
from jaxmerge.continual.federated import federated
from jaxmerge.continual.methods import agem, gem
from jaxmerge.continual.methods.gem import RIDGE, in_cone, least
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.rehearsed import rehearsed


@pytest.mark.parametrize("tasks", [1, 2, 5, 12])
@pytest.mark.parametrize("common", [0.0, 0.999])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_program_is_solved(tasks, common, margin, x64):
    rng = np.random.default_rng(tasks)
    old = (1 - common) ** 0.5 * rng.normal(size=(tasks, 30)) + common**0.5 * rng.normal(size=30)
    g = rng.normal(size=30) - 0.5 * old.sum(0)
    square, linear = old @ old.T + RIDGE * np.eye(tasks), old @ g
    v = np.asarray(least(jnp.asarray(square), jnp.asarray(linear), margin))
    slope = square @ v + linear
    assert (v >= margin).all()
    assert (slope > -1e-9).all()
    assert np.abs(slope * (v - margin)).max() < 1e-9  # with these the minimum is unique


def test_old_gradients_that_hardly_differ_in_float32():
    """Against SciPy in float64, and both in the change of the gradient."""
    rng = np.random.default_rng(0)
    for tasks, common, size in itertools.product((4, 9, 20), (0.99, 0.999, 0.9999), (0.1, 1, 10)):
        shared = rng.normal(size=200)
        old = (1 - common) ** 0.5 * rng.normal(size=(tasks, 200)) + common**0.5 * shared
        old, g = old * size / 200**0.5, (rng.normal(size=200) - shared) * size / 200**0.5
        square, linear = old @ old.T + RIDGE * np.eye(tasks), old @ g
        root = np.linalg.cholesky(square)
        theirs, _ = nnls(root.T, -np.linalg.solve(root, linear), maxiter=1000)
        ours = np.asarray(least(jnp.float32(square), jnp.float32(linear), 0.0))
        assert np.linalg.norm((ours - theirs) @ old) < 1e-4 * np.linalg.norm(g + theirs @ old)


def test_no_old_loss_rises_and_a_gradient_that_agrees_stays(x64):
    rng = np.random.default_rng(0)
    old = {"a": jnp.asarray(rng.normal(size=(3, 4, 2))), "b": jnp.asarray(rng.normal(size=(3, 5)))}
    along = lambda g: sum(np.tensordot(old[n], g[n], g[n].ndim) for n in old)
    against = {n: -o.sum(0) for n, o in old.items()}
    assert (along(against) < 0).all()
    assert (along(in_cone(against, old, 0.0)) > -0.01).all()  # 0.001 v below 0 at most
    assert (along(in_cone(against, old, 2.0)) > 1).all()
    agrees = {n: o.sum(0) for n, o in old.items()}
    assert (along(agrees) > 0).all()
    for n, g in in_cone(agrees, old, 0.5).items():
        np.testing.assert_array_equal(g, agrees[n])


def by_program(kernels, xs, ys, rate, margin, tasks):
    """GEM by hand on a stream: all examples of the last so many tasks, seen through the view."""

    def loss(ws, x, y):
        x = jnp.tanh(2 * x)
        for w in ws[:-1]:
            x = jax.nn.relu(x @ w.T)
        return -jnp.mean(jax.nn.log_softmax(x @ ws[-1].T)[jnp.arange(len(y)), y])

    flat = lambda ws: np.concatenate([np.ravel(w) for w in ws])
    earlier, turned = [], []
    for task_x, task_y in zip(xs, ys, strict=True):
        for x, y in zip(task_x, task_y, strict=True):
            g = flat(jax.grad(loss)(kernels, x, y))
            old = np.array([flat(jax.grad(loss)(kernels, *e)) for e in earlier[-tasks:]])
            if earlier and (old @ g < 0).any():
                square = old @ old.T + RIDGE * np.eye(len(old))
                v = np.asarray(least(jnp.asarray(square), jnp.asarray(old @ g), margin))
                turned.append(len(v))
                g = g + v @ old
            parts = np.split(g, np.cumsum([w.size for w in kernels])[:-1])
            kernels = [w - rate * p.reshape(w.shape) for w, p in zip(kernels, parts, strict=True)]
        earlier.append((np.concatenate(task_x), np.concatenate(task_y)))
    return kernels, turned


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_a_stream_of_four_tasks_is_the_rule(tasks, x64):
    rng = np.random.default_rng(5)
    kernels = tuple(rng.normal(size=s) * 0.5 for s in ((6, 5), (4, 6)))
    xs = [rng.normal(size=(5, 4, 5)) for _ in range(4)]
    ys = [(rng.random((5, 4)) < 0.3).astype(int) + t % 3 for t in range(4)]
    view = lambda stored, info, task, key: jnp.tanh(2 * stored)
    problem = classification(columns="all", metrics=("accuracy",), view=view)
    result, _ = learn(
        given(kernels), stream(xs, ys, classes=4), gem(20, margin=0.5, tasks=tasks),
        optimiser=sgd(0.5), problem=problem,
    )  # fmt: skip
    by_hand, turned = by_program([jnp.asarray(w) for w in kernels], xs, ys, 0.5, 0.5, tasks)
    assert max(turned) == min(tasks, 3)
    for n, w in zip(("layer_0/kernel", "head/kernel"), by_hand, strict=True):
        close(result.state.params[n], w.T, 1e-10)


def two_tasks(method):
    """A stream of two tasks, of 20 examples each, from given weights."""
    rng = np.random.default_rng(3)
    kernels = tuple(rng.normal(size=s) * 0.5 for s in ((6, 5), (3, 6)))
    xs = [rng.normal(size=(5, 4, 5)) for _ in range(2)]
    ys = [np.full((5, 4), 0) + (rng.random((5, 4)) < 0.5), np.full((5, 4), 2)]
    result, _ = learn(given(kernels), stream(xs, ys, classes=3), method, optimiser=sgd(0.5))
    return result.state.params, (kernels, xs, ys)


def test_of_one_old_task_it_is_agem_but_for_the_ridge(x64, monkeypatch):
    monkeypatch.setattr(sys.modules[gem.__module__], "RIDGE", 0.0)
    ours, (kernels, xs, ys) = two_tasks(gem(20, margin=0.0, tasks=1))
    theirs, _ = two_tasks(agem(20, examples=20, replay=20))
    by_equation, turned = by_hand([jnp.asarray(w) for w in kernels], xs, ys, 0.5)
    assert 0 < turned < 5
    for n, w in zip(("layer_0/kernel", "head/kernel"), by_equation, strict=True):
        close(ours[n], theirs[n], 1e-12)
        close(ours[n], w.T, 1e-12)


def test_a_memory_of_more_examples_than_a_task_has(x64):
    many, few = two_tasks(gem(50, tasks=2))[0], two_tasks(gem(20, tasks=2))[0]
    for n, p in many.items():
        close(p, few[n], 1e-12)


def test_earlier_tasks_have_an_equal_share_and_as_much_weight_as_the_new():
    plain = split(tasks=4, steps=10, batch=6, classes=8)
    stream = rehearsed(plain, 12, epochs=2, seed=5)
    own = [set(np.unique(r[w > 0])) for r, w in zip(plain.rows, plain.weight, strict=True)]
    before = [set() for _ in own]
    for t in range(4):
        shown = np.asarray(stream.weight[t]) > 0
        rows, origin = np.asarray(stream.rows[t])[shown], np.asarray(stream.origin[t])[shown]
        times = max(len(own[t]) // 12, 1) * 2
        assert all(set(rows[origin == s]) <= own[s] for s in range(t + 1))
        for s in range(t):
            old, counts = np.unique(rows[origin == s], return_counts=True)
            assert counts.tolist() == [times] * (12 // t)
            assert not before[s] or set(old) <= before[s]  # a memory only shrinks
            before[s] = set(old)
        new, counts = np.unique(rows[origin == t], return_counts=True)
        assert set(new) == own[t]
        assert (counts == 2).all()
    other = rehearsed(plain, 12, epochs=2, seed=6)
    kept = lambda s: set(np.asarray(s.rows[3])[np.asarray(s.origin[3]) == 0].tolist())
    assert kept(other) != kept(stream)
    mixed = [len(set(o)) > 1 for o in np.asarray(stream.origin[3])]
    assert np.mean(mixed) > 0.9  # batches hold examples of several tasks
    for t, sample in enumerate(stream.sample):
        assert set(sample[sample >= 0]) == own[t]  # what is read at borders is the task's own


def test_passes_are_those_of_the_stream():
    x, y = np.zeros((12, 3), np.float32), np.arange(12) % 4
    plain = streams.split((x, y), (x, y), [[0, 1], [2, 3]], batch=2, epochs=3)
    assert rehearsed(plain, 6).rows.shape == (2, 18, 2)
    assert (rehearsed(plain, 6).weight[0].sum(), rehearsed(plain, 6).weight[1].sum()) == (18, 36)


def test_clients_of_a_rehearsed_stream_keep_what_their_examples_are_from():
    x, y = np.arange(36, dtype=np.float32).reshape(12, 3), np.arange(12) % 4
    plain = streams.permuted((x, y), (x, y), tasks=3, batch=4)
    mixed = federated(rehearsed(plain, 6), 3, 3, rounds=1)
    origin = np.asarray(mixed.origin[2])[np.asarray(mixed.weight[2]) > 0]
    assert {t: int((origin == t).sum()) for t in range(3)} == {0: 3, 1: 3, 2: 12}
    rows = np.asarray(mixed.rows[2])[np.asarray(mixed.weight[2]) > 0]
    assert sorted(rows[origin == 2]) == list(range(12))


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda s: rehearsed([1], 0), r"takes a `Stream`.*got a list.*size must be a whole number"),
     (lambda s: rehearsed(s, 6, epochs=0), "epochs must be a whole number from 1 on"),
     (lambda s: rehearsed(s, 2), "2 examples cannot be shared out to 3 earlier tasks"),
     (lambda s: rehearsed(rehearsed(s, 6), 6), "Task 1 .* holds examples of other tasks already")],
)  # fmt: skip
def test_what_cannot_be_rehearsed(change, message):
    with pytest.raises(ValueError, match=message):
        change(split(tasks=4, classes=8))
