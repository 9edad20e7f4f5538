"""SLERP and its relatives, Karcher mean, Model Stock: closed forms, transcriptions, properties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmerge as jm

seeds = st.integers(0, 2**31)
SHAPE = {"kernel": (5, 4), "bias": (4,)}


def draw(seed, count, scale=1.0):
    rng = np.random.default_rng(seed)
    return [
        {n: scale * rng.normal(size=s).astype(np.float32) for n, s in SHAPE.items()}
        for _ in range(count)
    ]


def norms(model):
    return {n: np.linalg.norm(x) for n, x in model.items()}


def close(actual, expected, atol=1e-6):
    for n in expected:
        np.testing.assert_allclose(actual[n], expected[n], atol=atol, rtol=1e-5, err_msg=n)


def transpose(models):
    return [{n: x.T for n, x in m.items()} for m in models]


# ---- SLERP --------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=seeds, t=st.floats(0, 1))
def test_slerp_keeps_the_norm_of_equal_norms(seed, t):
    models = [{n: x / np.linalg.norm(x) for n, x in m.items()} for m in draw(seed, 2)]
    for n, length in norms(jm.merge(jm.slerp(t), None, models)).items():
        assert abs(length - 1) < 1e-5, n


@settings(max_examples=25, deadline=None)
@given(seed=seeds, t=st.floats(0, 1))
def test_slerp_is_the_textbook_formula(seed, t):
    a, b = draw(seed, 2)
    actual = jm.merge(jm.slerp(t), None, [a, b])
    for n in SHAPE:
        x, y = a[n].astype(np.float64), b[n].astype(np.float64)
        w = np.arccos(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))
        expected = (np.sin((1 - t) * w) * x + np.sin(t * w) * y) / np.sin(w)
        np.testing.assert_allclose(actual[n], expected, atol=2e-6)


def test_slerp_at_its_ends_and_on_degenerate_pairs():
    a, b = draw(0, 2)
    close(jm.merge(jm.slerp(0.0), None, [a, b]), a)
    close(jm.merge(jm.slerp(1.0), None, [a, b]), b)
    double = {n: 2 * x for n, x in a.items()}
    close(jm.merge(jm.slerp(0.25), None, [a, double]), {n: 1.25 * x for n, x in a.items()})
    opposite = {n: -x for n, x in a.items()}
    close(jm.merge(jm.slerp(0.25), None, [a, opposite]), {n: x / 2 for n, x in a.items()})
    zero = {n: 0 * x for n, x in a.items()}
    close(jm.merge(jm.slerp(0.25), None, [zero, a]), {n: x / 4 for n, x in a.items()})
    close(jm.merge(jm.nuslerp([3.0, 1.0]), None, [zero, zero]), zero)


def test_half_chords_keep_the_digits_that_arccos_loses():
    """At an angle of 1e-3 a float32 cosine is 1 - 5e-7: arccos has no digit left, the chord has."""
    a = {"w": np.array([1, 0], np.float32)}
    b = {"w": np.array([np.cos(1e-3), np.sin(1e-3)], np.float32)}
    actual = jm.merge(jm.nuslerp([1.0, 1.0]), None, [a, b])["w"]
    np.testing.assert_allclose(actual, [np.cos(5e-4), np.sin(5e-4)], atol=1e-7)


def test_rows_and_columns_and_their_transposes():
    models = draw(1, 2)
    by_row = jm.merge(jm.nuslerp([0.3, 0.7], per="row"), None, models)
    by_column = jm.merge(jm.nuslerp([0.3, 0.7], per="column"), None, transpose(models))
    close(transpose([by_column])[0], by_row)
    for i in range(5):
        row = [{"w": m["kernel"][i]} for m in models]
        np.testing.assert_allclose(
            by_row["kernel"][i], jm.merge(jm.slerp(0.7), None, row)["w"], atol=1e-6
        )
    whole = jm.merge(jm.nuslerp([0.3, 0.7]), None, models)
    np.testing.assert_allclose(by_row["bias"], whole["bias"], atol=1e-7)  # one vector always
    assert np.abs(by_row["kernel"] - whole["kernel"]).max() > 1e-3


def test_slerp_takes_traced_t():
    a, b = draw(2, 2)
    at = lambda t: jm.merge(jm.slerp(t), None, [a, b])["kernel"]
    many = jax.vmap(at)(jnp.array([0.0, 0.3, 1.0]))
    np.testing.assert_allclose(many[1], at(0.3), atol=1e-6)
    slope = jax.jacfwd(at)(0.3)
    np.testing.assert_allclose(slope, (at(0.301) - at(0.299)) / 2e-3, atol=1e-2)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: jm.nuslerp([1.0, -1.0]), "sum to zero"),
        (lambda: jm.nuslerp([1.0, 2.0, 3.0]), "two weights"),
        (lambda: jm.nuslerp([1.0, 2.0], per="model"), "per must be"),
        (lambda: jm.model_stock(average="mean"), "average must be"),
        (lambda: jm.karcher(max_iter=0), "max_iter"),
        (lambda: jm.merge(jm.slerp(0.5), None, draw(0, 3)), "at most 2"),
        (lambda: jm.merge(jm.model_stock(), draw(0, 1)[0], draw(1, 1)), "at least 2"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_interpolation():
    base, a, b = draw(3, 3)
    expected = {n: 0.75 * a[n] + 0.25 * b[n] for n in a}
    close(jm.merge(jm.interpolation(0.25), base, [a, b]), expected)
    close(jm.merge(jm.interpolation(0.25), None, [a, b]), expected)


# ---- means of directions ------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_multislerp_transcription(normalize):
    models, weights = draw(4, 3), [0.2, 0.5, 0.9]
    actual = jm.merge(jm.multislerp(weights, normalize), None, models)
    for n in SHAPE:
        xs = [m[n].astype(np.float64) for m in models]
        w = np.array(weights) / (sum(weights) if normalize else 1)
        direction = sum(v * x / np.linalg.norm(x) for v, x in zip(w, xs, strict=True))
        length = sum(v * np.linalg.norm(x) for v, x in zip(w, xs, strict=True))
        expected = length * direction / np.linalg.norm(direction)
        np.testing.assert_allclose(actual[n], expected, atol=1e-6)


def test_two_equal_weights_are_slerp_at_one_half():
    models = [{n: x / np.linalg.norm(x) for n, x in m.items()} for m in draw(5, 2)]
    expected = jm.merge(jm.slerp(0.5), None, models)
    close(jm.merge(jm.multislerp(), None, models), expected)
    close(jm.merge(jm.karcher(), None, models), expected, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_karcher_mean_has_no_pull_left(seed):
    """At the Karcher mean the logarithms of all directions cancel."""
    centre = np.ones(20)
    rng = np.random.default_rng(seed)
    models = [{"w": (centre + 0.5 * rng.normal(size=20)).astype(np.float32)} for _ in range(4)]
    actual = jm.merge(jm.karcher(max_iter=50, tol=0.0), None, models)["w"].astype(np.float64)
    u = actual / np.linalg.norm(actual)
    pull = np.zeros(20)
    for m in models:
        v = m["w"] / np.linalg.norm(m["w"])
        w = np.arccos(u @ v)
        pull += w / np.sin(w) * (v - np.cos(w) * u)
    assert np.linalg.norm(pull) < 1e-5
    lengths = [np.linalg.norm(m["w"]) for m in models]
    assert abs(np.linalg.norm(actual) - np.mean(lengths)) < 1e-5


def test_zero_vectors_do_not_count_for_karcher():
    a, b = draw(6, 2)
    zero = {n: 0 * x for n, x in a.items()}
    close(jm.merge(jm.karcher(), None, [a, zero, b]), jm.merge(jm.karcher(), None, [a, b]))
    close(jm.merge(jm.karcher(), None, [zero, zero]), zero)


# ---- Model Stock --------------------------------------------------------------------------------


def orthogonal(count, size=8):
    return [{"w": x} for x in np.eye(size, dtype=np.float32)[:count]]


@pytest.mark.parametrize("average", ["cosine", "angle"])
@pytest.mark.parametrize("per", ["leaf", "row", "model"])
@pytest.mark.parametrize("count", [2, 3])
def test_stock_is_the_base_at_cosine_0_and_the_mean_at_cosine_1(average, per, count):
    method = jm.model_stock(average, per)
    base = {"w": np.full(8, 3, np.float32)}
    apart = [{"w": base["w"] + m["w"]} for m in orthogonal(count)]
    np.testing.assert_allclose(jm.merge(method, base, apart)["w"], base["w"], atol=1e-6)
    lengths = [1.0, 3.0, 2.0][:count]
    along = [{"w": base["w"] + np.float32(s) * np.eye(8, dtype=np.float32)[0]} for s in lengths]
    mean = np.mean([m["w"] for m in along], 0)
    np.testing.assert_allclose(jm.merge(method, base, along)["w"], mean, atol=2e-3)


def stock(rows, average):
    """Model Stock of flat vectors, written from the formula."""
    rows = [r.astype(np.float64) for r in rows]
    count = len(rows)
    cosines = [
        rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])
        for i in range(count)
        for j in range(i)
    ]
    cos = np.mean(cosines) if average == "cosine" else np.cos(np.mean(np.arccos(cosines)))
    return count * cos / (1 + (count - 1) * cos) * np.mean(rows, 0)


@pytest.mark.parametrize("average", ["cosine", "angle"])
@pytest.mark.parametrize("per", ["leaf", "row", "column", "model"])
def test_stock_transcription(average, per):
    shared = draw(7, 1)[0]
    models = [{n: shared[n] + x for n, x in m.items()} for m in draw(8, 3)]
    zero = {n: 0 * x for n, x in shared.items()}
    actual = jm.merge(jm.model_stock(average, per), zero, models)
    if per == "model":
        flat = stock([np.concatenate([m[n].ravel() for n in SHAPE]) for m in models], average)
        expected = {"kernel": flat[:20].reshape(5, 4), "bias": flat[20:]}
    else:
        expected = {"bias": stock([m["bias"] for m in models], average)}
        kernels = [m["kernel"] for m in models]
        if per == "leaf":
            expected["kernel"] = stock([k.ravel() for k in kernels], average).reshape(5, 4)
        elif per == "row":
            expected["kernel"] = np.stack(
                [stock([k[i] for k in kernels], average) for i in range(5)]
            )
        else:
            expected["kernel"] = np.stack(
                [stock([k[:, j] for k in kernels], average) for j in range(4)], 1
            )
    close(actual, expected, atol=5e-6)


@pytest.mark.parametrize("average", ["cosine", "angle"])
def test_stock_of_small_changes_keeps_its_cosine(average):
    """The share of the mean does not depend on the size of the changes."""
    zero = {n: np.zeros(s, np.float32) for n, s in SHAPE.items()}
    shared = draw(9, 1)[0]
    large = [{n: shared[n] + x for n, x in m.items()} for m in draw(10, 3)]
    small = [{n: np.float32(1e-6) * x for n, x in m.items()} for m in large]
    expected = jm.merge(jm.model_stock(average), zero, large)
    actual = jm.merge(jm.model_stock(average), zero, small)
    close({n: 1e6 * x for n, x in actual.items()}, expected, atol=1e-5)


def test_stock_streams():
    base, *models = draw(11, 5)
    for per in ("row", "model"):
        method = jm.model_stock(per=per)
        state = jm.init(method, base)
        for m in models:
            state = jm.update(method, state, base, m)
        close(jm.merged(method, state, base), jm.merge(method, base, models))
