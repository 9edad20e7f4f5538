"""The drivers: any pytree, any kind of array, streams that can be asked at any time."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.drivers import leaf

pytestmark = pytest.mark.usefixtures("strict")

BASE = laws.model(0)
MODELS = [laws.model(1 + t, BASE) for t in range(3)]


def test_a_merge_by_hand():
    base = {"w": np.float32([1, 1, 1])}
    models = [{"w": np.float32([2, 0, 1])}, {"w": np.float32([0, -3, 1])}]
    assert jm.merge(jm.task_arithmetic(0.5), base, models)["w"].tolist() == [1, -1.5, 1]
    assert jm.merge(jm.magmax(0.5), base, models)["w"].tolist() == [0.5, -1, 1]
    assert jm.merge(jm.mean(), None, models)["w"].tolist() == [1, -1.5, 1]


def test_any_pytree_comes_back_in_its_own_form():
    tree = {"layers": [{"w": np.ones((2, 2), np.float32)}, (jnp.zeros(3), 2.0)], "n": None}
    model = jax.tree.map(lambda x: x + 1, tree)
    out = jm.merge(jm.mean(), tree, [model, tree])
    assert jax.tree.structure(out) == jax.tree.structure(tree)
    assert isinstance(out["layers"][0]["w"], np.ndarray)
    assert isinstance(out["layers"][1][0], jax.Array)
    assert float(out["layers"][1][1]) == 2.5


def test_models_may_be_named_or_generated():
    expected = jm.merge(jm.mean(), BASE, MODELS)
    laws.same(jm.merge(jm.mean(), BASE, dict(zip("abc", MODELS, strict=True))), expected)
    laws.same(jm.merge(jm.mean(), BASE, iter(MODELS)), expected)


def test_numpy_keeps_its_dtype_where_jax_has_none():
    assert not jax.config.jax_enable_x64
    base = {"w": np.zeros(2, np.float64)}
    out = jm.merge(jm.add(), base, [{"w": np.ones(2, np.float64)}])
    assert out["w"].dtype == np.float64


def test_a_stream_may_be_asked_at_any_time_and_goes_on():
    state = jm.init(jm.ties(0.5), BASE)
    for t, model in enumerate(MODELS):
        state = jm.update(jm.ties(0.5), state, BASE, model)
        asked = jm.merged(jm.ties(0.5), state, BASE)
        laws.same(asked, jm.merge(jm.ties(0.5), BASE, MODELS[: t + 1]))
    assert int(state.step) == 3


def test_a_donated_state_leaves_base_and_models_alone():
    method = jm.magmax()
    base, models = laws.on_device(BASE), laws.on_device(MODELS)
    absorb = jax.jit(functools.partial(jm.update, method), donate_argnums=0)
    state = jm.init(method, base)
    for model in models:
        old, state = state, absorb(state, base, model)
        assert all(x.is_deleted() for x in jax.tree.leaves(old.cells))
    laws.same(jm.merged(method, state, base), jm.merge(method, BASE, MODELS))


def test_twenty_factors_in_one_call_and_one_compilation():
    factors = jnp.linspace(0.05, 1, 20)
    floats = lambda tree: {n: jnp.asarray(tree[n]) for n in laws.SHAPES}
    base, models = floats(BASE), [floats(m) for m in MODELS]
    many = jax.vmap(lambda f: jm.merge(jm.ties(0.3, factor=f), base, models))(factors)
    for i in (0, 7, 19):
        one = jm.merge(jm.ties(0.3, factor=float(factors[i])), base, models)
        laws.close({n: x[i] for n, x in many.items()}, one)


def test_another_factor_compiles_nothing():
    for factor in (0.1, 0.2, 0.3):
        jm.merge(jm.magmax(factor), BASE, MODELS)
        if factor == 0.1:
            before = leaf.merge_leaf._cache_size()
    assert leaf.merge_leaf._cache_size() == before


def test_the_gradient_of_a_coefficient():
    base, models = {"w": jnp.ones(3)}, [{"w": jnp.array([2.0, 1.0, 4.0])}]
    loss = lambda factor: jnp.sum(jm.merge(jm.task_arithmetic(factor), base, models)["w"])
    assert float(jax.grad(loss)(0.3)) == 4.0  # the sum of the task vector


def test_transforms_after_the_merge_may_measure_the_result():
    method = jm.chain(jm.add(), jm.trim(0.5))
    out = jm.merge(method, BASE, MODELS)
    total = jm.merge(jm.add(), BASE, MODELS)
    change = np.concatenate([np.abs(out[n] - BASE[n]).ravel() for n in laws.SHAPES])
    whole = np.concatenate([np.abs(total[n] - BASE[n]).ravel() for n in laws.SHAPES])
    mask = change > 0
    assert abs(mask.sum() - len(whole) / 2) <= 1
    assert whole[mask].min() >= whole[~mask].max()


def test_joined_states_add_their_counts():
    method = jm.mean()
    states = [jm.update(method, jm.init(method, BASE), BASE, m) for m in MODELS]
    state = functools.reduce(lambda a, b: jm.join(method, a, b, BASE), states)
    assert int(state.step) == 3
    laws.close(jm.merged(method, state, BASE), jm.merge(method, BASE, MODELS))


def test_a_base_without_floats_comes_back():
    base = {"ids": np.arange(3)}
    assert jm.merge(jm.mean(), base, [{"ids": np.arange(3) + 1}])["ids"] is base["ids"]
