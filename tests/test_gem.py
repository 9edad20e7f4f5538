"""GEM against its quadratic program, and naive rehearsal's plan against its rule."""

from __future__ import annotations

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, learn, stream
from scipy.optimize import minimize
from test_agem import by_hand
from tiny_streams import split

from jaxmerge.continual.methods import agem, gem
from jaxmerge.continual.methods.gem import RIDGE, in_cone, least
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.rehearsed import rehearsed


@pytest.mark.parametrize("tasks", [1, 2, 5, 12])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_program_is_solved(tasks, margin, x64):
    rng = np.random.default_rng(tasks)
    old, g = rng.normal(size=(tasks, 30)), rng.normal(size=30) - 0.2
    square, linear = old @ old.T + RIDGE * np.eye(tasks), old @ g
    v = np.asarray(least(jnp.asarray(square), jnp.asarray(linear), margin))
    slope = square @ v + linear
    assert (v >= margin).all()
    assert (slope > -1e-9).all()
    assert np.abs(slope * (v - margin)).max() < 1e-9  # with these the minimum is unique
    value = lambda v: 0.5 * v @ square @ v + linear @ v
    theirs = minimize(value, np.full(tasks, margin + 1), bounds=[(margin, None)] * tasks).x
    np.testing.assert_allclose(v, theirs, atol=1e-4)


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
    assert (np.asarray(other.rows) != np.asarray(stream.rows)).any()


def test_what_is_no_stream_and_no_number():
    with pytest.raises(ValueError, match=r"takes a `Stream`.*got a list.*size must be a whole num"):
        rehearsed([1], 0)
