"""What an accelerator does otherwise, made to happen on a CPU: narrow digits, joined rows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.drivers import joined_rows, measuring
from jaxmerge.models.attention import even_attention
from jaxmerge.numerics import measures, order_statistics


@pytest.fixture
def accelerator(monkeypatch):
    """Every array counts as one on an accelerator."""
    jax.clear_caches()
    monkeypatch.setattr(order_statistics, "WIDTHS", {})
    monkeypatch.setattr(joined_rows, "on_accelerator", lambda leaves: True)
    monkeypatch.setattr(measuring, "_on_host", lambda *args: False)
    yield
    jax.clear_caches()


def model(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (30, 40), "b": (40,), "c": (7, 3, 5), "d": ()}
    draw = lambda s: jnp.asarray(scale * rng.integers(-9, 10, s) / 8, jnp.float32)  # many alike
    return {n: draw(s) for n, s in shapes.items()}


BASE, MODELS = model(0), [model(t, 2.0**-t) for t in range(1, 4)]
METHODS = {
    "ties": jm.ties(0.3),
    "ties by leaf": jm.ties(0.3, scope="leaf"),
    "trim": jm.chain(jm.trim(0.25), jm.mean()),
    "breadcrumbs": jm.breadcrumbs(0.5, 0.1),
    "breadcrumbs_ties": jm.breadcrumbs_ties(0.5, 0.1),
    "outliers": jm.chain(jm.drop_outliers(0.4, 0.2), jm.add()),
}


@pytest.mark.parametrize("part", [1 << 28, 100])
def test_a_merge_is_the_same(accelerator, monkeypatch, part):
    monkeypatch.setattr(joined_rows, "PART", part)
    joins = []
    joined = joined_rows.joined
    monkeypatch.setattr(joined_rows, "joined", lambda *args: joins.append(1) or joined(*args))
    ours = {name: jm.merge(m, BASE, MODELS) for name, m in METHODS.items()}
    assert len(joins) == 2 * len(MODELS)  # ties and trim, each model; the others rank by leaf
    monkeypatch.undo()
    jax.clear_caches()
    for name, method in METHODS.items():
        jax.tree.map(np.testing.assert_array_equal, ours[name], jm.merge(method, BASE, MODELS))


def test_gradients_pass_by_the_ranks_of_a_loop(accelerator, monkeypatch):
    method = jm.ties(0.3, scope="leaf")
    loss = lambda models: sum((x**2).sum() for x in jax.tree.leaves(jm.merge(method, BASE, models)))
    ours = jax.grad(loss)(MODELS)
    monkeypatch.undo()
    jax.clear_caches()
    jax.tree.map(np.testing.assert_array_equal, ours, jax.grad(loss)(MODELS))
    assert any(np.any(x) for x in jax.tree.leaves(ours))


@pytest.mark.slow  # a minute of compiling
def test_pcb_up_to_the_rounding_of_its_sums(accelerator, monkeypatch):
    ours = jm.merge(jm.pcb(0.3), BASE, MODELS)
    monkeypatch.undo()
    jax.clear_caches()
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=4 * np.finfo("f").eps)
    jax.tree.map(near, ours, jm.merge(jm.pcb(0.3), BASE, MODELS))  # sums of exponentials, in numpy


@pytest.mark.parametrize("exact", [False, True])
def test_ranks_digit_by_digit(accelerator, exact):
    x = model(3)["a"]
    for count in (0, 1, 7, 600, 1200):
        mask = measures.largest(x, count, exact)
        order = np.argsort(-np.abs(np.asarray(x)).ravel(), kind="stable")
        if exact:
            np.testing.assert_array_equal(np.flatnonzero(mask), np.sort(order[:count]))
        elif count:
            least = np.abs(np.asarray(x)).ravel()[order[count - 1]]
            np.testing.assert_array_equal(mask, np.abs(np.asarray(x)) >= least)


def test_a_pass_scatters_nothing(accelerator):
    program = jax.make_jaxpr(lambda x: measures.ranked_magnitudes(x, np.array([3, 9])))(
        jnp.ones(99)
    )
    assert "scatter" not in str(program)


@pytest.mark.parametrize("tokens, keys", [(5, 5), (4, 4), (5, 8), (4, 7)])
@pytest.mark.parametrize("seen", ["all", "causal", "keep", "mask", "bias"])
def test_attention_over_an_even_number_of_tokens(tokens, keys, seen):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    arrays = draw(2, tokens, 3, 8), draw(2, keys, 3, 8), draw(2, keys, 3, 8)
    options = {
        "all": {},
        "causal": {"is_causal": True},
        "keep": {"mask": jnp.asarray(rng.random((2, 1, 1, keys)) < 0.7)},
        "mask": {"mask": jnp.asarray(rng.random((2, 1, tokens, keys)) < 0.7).at[..., 0].set(True)},
        "bias": {"bias": draw(1, 3, tokens, keys), "is_causal": True},
    }[seen]
    value = lambda f: lambda *arrays: (f(*arrays, **options) ** 2).sum()
    ours = jax.value_and_grad(value(even_attention), (0, 1, 2))(*arrays)
    theirs = jax.value_and_grad(value(jax.nn.dot_product_attention), (0, 1, 2))(*arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, theirs)
