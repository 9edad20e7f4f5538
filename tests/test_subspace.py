"""The halves of OPCM: projection off the subspace taken, and the mean norm; what must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmerge as jm

seeds = st.integers(0, 2**31)
SHAPES = {"block_0/mlp/kernel": (8, 5), "block_1/mlp/kernel": (8, 5), "bias": (3,), "token": (4, 3)}
K = "block_0/mlp/kernel"


def draw(seed, count=3, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [{n: rng.normal(size=s).astype(dtype) for n, s in SHAPES.items()} for _ in range(count)]


def norm(model):
    return np.sqrt(sum(np.sum(x**2) for x in model.values()))


ZERO = {n: np.zeros(s) for n, s in SHAPES.items()}


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9])
def test_the_result_has_the_mean_norm(x64, alpha):
    models = draw(0)
    mean = np.mean([norm(m) for m in models])
    assert abs(norm(jm.merge(jm.opcm(alpha=alpha), ZERO, models)) - mean) < 1e-12


def test_the_block_is_cleared_and_nothing_else(x64):
    one, two = draw(1, 2)
    for zero_diag in (False, True):
        state = jm.init(jm.opcm(alpha=0.5, zero_diag=zero_diag), ZERO)
        for m in (one, two):
            state = jm.update(jm.opcm(alpha=0.5, zero_diag=zero_diag), state, ZERO, m)
        entered = np.asarray(state.cells[K].inner) - one[K]
        u, s, vt = np.linalg.svd(one[K])
        r = np.argmax(np.cumsum(s) > 0.5 * s.sum())
        assert r >= 1
        seen, was = u.T @ entered @ vt.T, u.T @ two[K] @ vt.T  # in the full bases
        cleared = np.zeros(was.shape, bool)
        cleared[:r, :r] = True
        if zero_diag:
            cleared[np.arange(5), np.arange(5)] = True
        np.testing.assert_allclose(seen[cleared], 0, atol=1e-12)
        np.testing.assert_allclose(seen[~cleared], was[~cleared], atol=1e-12)
        for n in ("bias", "token"):  # added as they are
            np.testing.assert_allclose(state.cells[n].inner, one[n] + two[n], atol=1e-12)


def test_transposed_kernels_give_the_transposed_result(x64):
    models = draw(2)
    turned = [{n: x.T for n, x in m.items()} for m in models]
    start = {n: x.T for n, x in ZERO.items()}
    for zero_diag in (False, True):
        actual = jm.merge(jm.opcm(alpha=0.7, zero_diag=zero_diag), ZERO, models)
        other = jm.merge(jm.opcm(alpha=0.7, zero_diag=zero_diag), start, turned)
        for n in ZERO:
            np.testing.assert_allclose(other[n].T, actual[n], atol=1e-12)


@pytest.mark.parametrize("alpha", [0.5, 0.95])
def test_float32_against_float64(alpha):
    """Up to alpha 0.5 the Gram matrix is decomposed in float32, above in float64.

    Singular values fall so slowly that several directions are protected.
    """
    rng = np.random.default_rng(3)
    u, v = (np.linalg.qr(rng.normal(size=(n, 24)))[0] for n in (24, 60))
    first = ((u * np.linspace(2, 1, 24)) @ v.T).astype(np.float32)
    second = rng.normal(size=first.shape).astype(np.float32)
    a, s, b = np.linalg.svd(first.astype(np.float64), full_matrices=False)
    r = np.argmax(np.cumsum(s) > alpha * s.sum())
    assert r > 5
    a, b = a[:, :r], b[:r]
    expected = first + second - a @ (a.T @ second @ b.T) @ b
    models = [{K: first}, {K: second}]
    actual = jm.merge(jm.add_projected(alpha=alpha), {K: 0 * first}, models)[K]
    assert np.linalg.norm(actual - expected) < 1e-6 * np.linalg.norm(second)


@settings(max_examples=4, deadline=None)
@given(seed=seeds, gap=st.floats(1e-5, 0.7), wide=st.booleans())
def test_the_error_of_float32_is_that_of_the_gap_at_the_cut(seed, gap, wide):
    """eps * s_1^2 / (s_r^2 - s_(r+1)^2), with a quarter of the directions before the cut."""
    rng, k, r = np.random.default_rng(seed), 48, 12
    u, v = (np.linalg.qr(rng.normal(size=(n, k)))[0] for n in (k, 120))
    s = np.concatenate([np.linspace(4, 2, r), 2 * (1 - gap) * np.linspace(1, 0.9, k - r)])
    first, second = (((u * s) @ v.T).astype(np.float32), rng.normal(size=(k, 120)))
    first, second = (x if wide else x.T for x in (first, second.astype(np.float32)))
    a, s, b = np.linalg.svd(first.astype(np.float64), full_matrices=False)
    alpha = float((s[:r].sum() + s[r] / 2) / s.sum())
    a, b = a[:, :r], b[:r]
    expected = first + second - a @ (a.T @ second @ b.T) @ b
    method = jm.add_projected(alpha, double=False)
    actual = jm.merge(method, {K: 0 * first}, [{K: first}, {K: second}])[K]
    error = np.linalg.norm(actual - expected) / np.linalg.norm(second)
    assert error < np.finfo(np.float32).eps * s[0] ** 2 / (s[r - 1] ** 2 - s[r] ** 2)


def test_alpha_at_its_ends(x64):
    one, two = draw(4, 2)
    plain = jm.merge(jm.add_projected(alpha=0.0), {K: ZERO[K]}, [{K: one[K]}, {K: two[K]}])[K]
    np.testing.assert_allclose(plain, one[K] + two[K], atol=1e-12)
    full = jm.merge(jm.add_projected(alpha=1.0), {K: ZERO[K]}, [{K: one[K]}, {K: two[K]}])[K]
    u, _, vt = np.linalg.svd(one[K], full_matrices=False)
    np.testing.assert_allclose(u.T @ (full - one[K]) @ vt.T, 0, atol=1e-12)


def test_zero_and_low_rank_changes_stay_finite():
    zero = {K: np.zeros((8, 5), np.float32)}
    [model] = draw(5, 1, np.float32)
    only = {K: model[K]}
    for zero_diag in (False, True):
        method = jm.opcm(alpha=0.8, zero_diag=zero_diag)
        np.testing.assert_array_equal(jm.merge(method, zero, [zero, zero])[K], 0)
        actual = jm.merge(method, zero, [zero, only])[K]
        np.testing.assert_allclose(actual, only[K] / 2, atol=1e-6)  # the mean of norms 0 and |x|
        thin = {K: np.outer(np.ones(8), np.arange(5)).astype(np.float32)}
        assert np.isfinite(jm.merge(method, zero, [thin, thin, only])[K]).all()


@settings(max_examples=10, deadline=None)
@given(seed=seeds, scale=st.floats(0.1, 10))
def test_keep_mean_norm_of_a_sum(seed, scale):
    models = draw(seed, 3, np.float32)
    models[1] = {n: np.float32(scale) * x for n, x in models[1].items()}
    base = {n: x.astype(np.float32) for n, x in ZERO.items()}
    actual = jm.merge(jm.keep_mean_norm(jm.add()), base, models)
    total = {n: sum(m[n] for m in models) for n in base}
    factor = np.mean([norm(m) for m in models]) / norm(total)
    for n in base:
        np.testing.assert_allclose(actual[n], factor * total[n], atol=1e-4 * scale, rtol=1e-4)


def test_keep_mean_norm_wraps_what_it_says():
    models = draw(6, 3, np.float32)
    base = {n: x.astype(np.float32) for n, x in ZERO.items()}
    # transforms before the fold: the norm is that of what enters
    actual = jm.merge(jm.keep_mean_norm(jm.chain(jm.scale(2.0), jm.add())), base, models)
    plain = jm.merge(jm.keep_mean_norm(jm.add()), base, models)
    for n in base:
        np.testing.assert_allclose(actual[n], 2 * plain[n], rtol=1e-5)
    # a mean has the direction of the sum
    mean = jm.merge(jm.keep_mean_norm(jm.mean()), base, models)
    for n in base:
        np.testing.assert_allclose(mean[n], plain[n], rtol=1e-5)
    # leaves kept as in the base count for the norm of what entered, not of what is merged
    method = jm.keep_mean_norm(
        jm.partition({"x": jm.add(), "base": jm.keep_base()}, [("bias", "base"), (".*", "x")])
    )
    wrapped = jm.merge(method, base, models)
    np.testing.assert_array_equal(wrapped["bias"], 0)
    np.testing.assert_allclose(norm(wrapped), np.mean([norm(m) for m in models]), rtol=1e-5)
    for wrong in (jm.chain(jm.add(), jm.scale(2.0)), jm.model_stock(per="model")):
        with pytest.raises(ValueError, match="keep_mean_norm"):
            jm.keep_mean_norm(wrong)


def test_bad_arguments():
    with pytest.raises(ValueError, match="alpha must be in"):
        jm.opcm(alpha=1.5)
    with pytest.raises(ValueError, match="two axes"):
        jm.merge(jm.add_projected(), {"b": np.ones(3)}, [{"b": np.ones(3)}] * 2)
    with pytest.raises(ValueError, match="no merge"):
        jm.merge(jm.opcm(leaves=[("nothing", "matrix")]), ZERO, draw(7, 1))
