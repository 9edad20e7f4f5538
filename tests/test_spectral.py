"""Iso-C, Iso-CTS, TSV, WUDI, LiNeS: numpy transcriptions from the papers, and what must hold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmerge as jm
from jaxmerge.numerics.linalg import by_kernel, polar, thin_svd

seeds = st.integers(0, 2**31)
K = "block_0/mlp/kernel"


def draw(seed, count=3, shape=(9, 6), dtype=np.float64):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=shape)
    return [
        {
            K: (common + rng.normal(size=shape)).astype(dtype),
            "bias": rng.normal(size=4).astype(dtype),
        }
        for _ in range(count)
    ]


def zero(model):
    return {n: 0 * x for n, x in model.items()}


def merge(method, models):
    return jm.merge(method, zero(models[0]), models)


def transposed(models):
    return [{n: x.T for n, x in m.items()} for m in models]


def np_polar(x):
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return u @ vt


# ---- decompositions -----------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=seeds, shape=st.sampled_from([(4, 9), (9, 4), (5, 5), (1, 3)]))
def test_thin_svd(seed, shape):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    u, s, vt = thin_svd(jnp.asarray(x))
    k = min(shape)
    np.testing.assert_allclose((u * s[None, :]) @ vt, x, atol=1e-5)
    np.testing.assert_allclose(s, np.linalg.svd(x, compute_uv=False), atol=1e-5)
    np.testing.assert_allclose(u.T @ u, np.eye(k), atol=1e-5)
    np.testing.assert_allclose(vt @ vt.T, np.eye(k), atol=1e-5)


def test_squaring_in_float64_costs_no_digit_of_float32():
    """Against LAPACK in float32, on a spectrum over four decades; squared in float32 it costs."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 40)))[0] for n in (40, 120))
    s = np.logspace(0, -4, 40)
    x = ((u * s) @ v.T).astype(np.float32)
    exact = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    gap = lambda actual: np.abs(np.asarray(actual, np.float64) - exact).max()
    double, single = (thin_svd(jnp.asarray(x), double=d)[1] for d in (True, False))
    assert gap(double) < 1e-7
    assert gap(np.linalg.svd(x, compute_uv=False)) < 1e-6
    assert gap(single) > 1e-5
    (a, s, b), (c, _, d) = (
        np.linalg.svd(x.astype(np.float64), full_matrices=False),
        np.linalg.svd(x, full_matrices=False),
    )
    ours = [np.asarray(m, np.float64) for m in thin_svd(jnp.asarray(x))]
    projector = lambda u: u[:, :20] @ u[:, :20].T
    vectors = lambda u, vt: max(
        np.abs(projector(u) - projector(a)).max(), np.abs(projector(vt.T) - projector(b.T)).max()
    )
    assert vectors(ours[0], ours[2]) <= vectors(c, d)  # as accurate as a float32 SVD
    assert np.abs(polar(jnp.asarray(x)) - a @ b).max() <= np.abs(c @ d - a @ b).max()


@pytest.mark.parametrize("steep", [False, True])
@pytest.mark.parametrize("shape", [(40, 120), (120, 40)])
def test_leading_vectors_are_found_in_float32_where_that_does(steep, shape):
    """Down to a tenth of the largest value; below it they are those of float64 to the bit."""
    rng = np.random.default_rng(3)
    u, v = (np.linalg.qr(rng.normal(size=(n, 40)))[0] for n in shape)
    s = np.logspace(0, -6 if steep else -1.5, 40)
    x = jnp.asarray(((u * s) @ v.T).astype(np.float32))
    k = 20  # the last at 1e-3, or at 0.18
    default, double, single = (thin_svd(x, d, k) for d in (None, True, False))
    same = lambda other: all(np.array_equal(a, b) for a, b in zip(default, other, strict=True))
    assert (same(double), same(single)) == ((True, False) if steep else (False, True))
    gap = np.abs((default[0] * default[1][:k]) @ default[2] - (u[:, :k] * s[:k]) @ v[:, :k].T)
    assert gap.max() < (2e-6 if steep else 1e-6)
    leading = lambda x: thin_svd(x, None, k)
    for u, _, vt in (jax.jit(leading)(x), (y[1] for y in jax.vmap(leading)(jnp.stack([x, 2 * x])))):
        np.testing.assert_allclose(u @ u.T, default[0] @ default[0].T, atol=2e-6)
        np.testing.assert_allclose(vt.T @ vt, default[2].T @ default[2], atol=2e-6)


@pytest.mark.parametrize("scale", [0, 1e-22, 1e-19, 1e19, 1e22])
def test_leading_vectors_of_matrices_whose_squares_float32_cannot_hold(scale):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 20)), jnp.float32) * scale
    for a, b in zip(thin_svd(x, None, 2), thin_svd(x, True, 2), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_directions_below_the_rank_are_zero(dtype, x64):
    rng = np.random.default_rng(1)
    x = (rng.normal(size=(7, 2)) @ rng.normal(size=(2, 5))).astype(dtype)
    u, s, vt = thin_svd(jnp.asarray(x))
    assert np.count_nonzero(np.abs(u).sum(0)) == 2
    assert np.count_nonzero(np.abs(vt).sum(1)) == 2
    np.testing.assert_allclose((u * s[None, :]) @ vt, x, atol=1e-5)
    for leaf in thin_svd(jnp.zeros((3, 2), dtype)):
        assert np.isfinite(leaf).all()
    assert np.linalg.matrix_rank(polar(jnp.asarray(x)), tol=1e-3) == 2


@pytest.mark.parametrize(
    "name, shape, label",
    [
        ("vision/block_00/attn/query/kernel", (4, 4), "matrix"),
        ("visual_projection.weight", (4, 4), "matrix"),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", (4, 4), "matrix"),
        ("tokenwise/kernel", (4, 4), "matrix"),
        ("vision/patch/kernel", (2, 2, 3, 4), "rest"),
        ("vision/position", (4, 4), "rest"),
        ("text/token", (4, 4), "rest"),
        ("embeddings.position_embedding.weight", (4, 4), "rest"),
        ("model.embed_tokens.weight", (4, 4), "rest"),
        ("shared.weight", (4, 4), "rest"),
        ("lm_head.weight", (4, 4), "rest"),
        ("norm/scale", (4,), "rest"),
    ],
)
def test_which_leaves_are_kernels(name, shape, label):
    assert by_kernel(name, np.zeros(shape)) == label


# ---- Iso ----------------------------------------------------------------------------------------


def test_iso_c(x64):
    models = draw(2)
    actual = merge(jm.iso_c(factor=1.5), models)
    total = sum(m[K] for m in models)
    u, s, vt = np.linalg.svd(total, full_matrices=False)
    np.testing.assert_allclose(actual[K], 1.5 * s.mean() * u @ vt, atol=1e-12)
    np.testing.assert_allclose(np.linalg.svd(actual[K])[1], 1.5 * s.mean(), atol=1e-12)  # flat
    np.testing.assert_allclose(actual["bias"], 1.5 * np.mean([m["bias"] for m in models], 0))
    flipped = merge(jm.iso_c(factor=1.5), transposed(models))
    np.testing.assert_allclose(flipped[K].T, actual[K], atol=1e-12)


def iso_cts(taus, common, rows_are_outputs):
    """Written from algorithm 2, for kernels [out, in]; the others are turned."""
    taus = taus if rows_are_outputs else [t.T for t in taus]
    rank, count = min(taus[0].shape), len(taus)
    own = round((rank - int(rank * common)) / count)
    shared = rank - own * count
    u, s, vt = np.linalg.svd(sum(taus), full_matrices=False)
    u, s, vt = u[:, :shared], s[:shared], vt[:shared]
    us, ss, vs = [], [], []
    for t in taus:
        a, b, c = np.linalg.svd(t - u @ u.T @ t, full_matrices=False)
        us, ss, vs = [*us, a[:, :own]], [*ss, b[:own]], [*vs, c[:own]]
    left, right = np.concatenate([*us, u], 1), np.concatenate([*vs, vt], 0)
    out = np.concatenate([*ss, s]).mean() * np_polar(left) @ np_polar(right)
    return out if rows_are_outputs else out.T


@pytest.mark.parametrize("shape", [(14, 10), (10, 14)])
@pytest.mark.parametrize("axis", [0, 1])
def test_iso_cts(x64, shape, axis):
    models = draw(3, shape=shape)
    actual = merge(jm.iso_cts(1.0, common=0.6, output_axis=axis), models)
    expected = iso_cts([m[K] for m in models], 0.6, rows_are_outputs=axis == 0)
    np.testing.assert_allclose(actual[K], expected, atol=1e-10)
    flipped = merge(jm.iso_cts(1.0, common=0.6, output_axis=1 - axis), transposed(models))
    np.testing.assert_allclose(flipped[K].T, actual[K], atol=1e-10)
    assert np.ptp(np.linalg.svd(actual[K])[1]) < 1e-10


def test_iso_cts_all_common_is_iso_c(x64):
    models = draw(4)
    one, two = merge(jm.iso_cts(common=1.0), models), merge(jm.iso_c(), models)
    np.testing.assert_allclose(one[K], two[K], atol=1e-12)


# ---- TSV ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(14, 10), (10, 14)])
def test_tsv_m(x64, shape):
    models = draw(5, shape=shape)
    k = 10 // 3
    parts = [np.linalg.svd(m[K], full_matrices=False) for m in models]
    u = np.concatenate([p[0][:, :k] for p in parts], 1)
    s = np.concatenate([p[1][:k] for p in parts])
    vt = np.concatenate([p[2][:k] for p in parts], 0)
    left, right = np_polar(u), np_polar(vt)
    np.testing.assert_allclose(left.T @ left, np.eye(3 * k), atol=1e-12)  # stacked and orthonormal
    actual = merge(jm.tsv_m(factor=0.7), models)
    np.testing.assert_allclose(actual[K], 0.7 * (left * s) @ right, atol=1e-10)
    spectrum = np.linalg.svd(actual[K])[1]
    np.testing.assert_allclose(spectrum[: 3 * k], 0.7 * np.sort(s)[::-1], atol=1e-10)
    assert spectrum[3 * k :].max() < 1e-10
    np.testing.assert_allclose(actual["bias"], 0.7 * np.mean([m["bias"] for m in models], 0))
    flipped = merge(jm.tsv_m(factor=0.7), transposed(models))
    np.testing.assert_allclose(flipped[K].T, actual[K], atol=1e-10)


def test_tsv_m_in_float32_and_of_equal_models():
    models = draw(6, dtype=np.float32)
    wide = [{n: x.astype(np.float64) for n, x in m.items()} for m in models]
    k, parts = 2, [np.linalg.svd(m[K], full_matrices=False) for m in wide]
    left = np_polar(np.concatenate([p[0][:, :k] for p in parts], 1))
    right = np_polar(np.concatenate([p[2][:k] for p in parts], 0))
    s = np.concatenate([p[1][:k] for p in parts])
    np.testing.assert_allclose(merge(jm.tsv_m(), models)[K], (left * s) @ right, atol=2e-5)
    # three times one model: the shares coincide, and its leading third remains three times over
    u, s, vt = parts[0]
    equal = merge(jm.tsv_m(), models[:1] * 3)[K]
    np.testing.assert_allclose(equal, (u[:, :k] * s[:k]) @ vt[:k], atol=2e-5)


def test_tsv_m_refuses_more_models_than_rank():
    with pytest.raises(
        ValueError, match=r"7 models cannot share the rank of a leaf of shape \(9, 6\)"
    ):
        merge(jm.tsv_m(), draw(7, 7))


def test_tsv_c(x64):
    [model] = draw(8, 1)
    actual = merge(jm.tsv_c(tasks=3), [model])
    u, s, vt = np.linalg.svd(model[K], full_matrices=False)
    np.testing.assert_allclose(actual[K], (u[:, :2] * s[:2]) @ vt[:2], atol=1e-12)
    np.testing.assert_array_equal(actual["bias"], model["bias"])
    lost = np.linalg.norm(actual[K] - model[K])
    np.testing.assert_allclose(lost, np.sqrt(np.sum(s[2:] ** 2)))  # Eckart and Young
    with pytest.raises(ValueError, match="at most 1"):
        merge(jm.tsv_c(tasks=3), draw(8, 2))
    with pytest.raises(ValueError, match="tasks must be"):
        jm.tsv_c(tasks=0)


# ---- WUDI ---------------------------------------------------------------------------------------


def wudi_loss(tau, taus):
    """The paper's loss, for kernels [out, in]."""
    return sum(np.sum(((tau - t) @ t.T) ** 2) / np.sum(t**2) for t in taus)


def wudi_adam(taus, steps, rate):
    tau, m, v = sum(taus), 0.0, 0.0
    for i in range(1, steps + 1):
        g = sum(2 * (tau - t) @ t.T @ t / np.sum(t**2) for t in taus)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        tau = tau - rate * (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8)
    return tau


@pytest.mark.parametrize("shape", [(8, 5), (12, 4)])
@pytest.mark.parametrize("axis", [0, 1])
def test_wudi(x64, axis, shape):
    models = draw(9, shape=shape)
    taus = [m[K] if axis == 0 else m[K].T for m in models]
    actual = merge(jm.wudi(steps=40, learning_rate=1e-2, output_axis=axis), models)
    ours = actual[K] if axis == 0 else actual[K].T
    np.testing.assert_allclose(ours, wudi_adam(taus, 40, 1e-2), atol=1e-10)
    np.testing.assert_allclose(actual["bias"], np.mean([m["bias"] for m in models], 0))
    best = merge(jm.wudi(steps=None, output_axis=axis), models)[K]
    best = best if axis == 0 else best.T
    losses = [wudi_loss(tau, taus) for tau in (sum(taus), ours, best)]
    assert losses[0] > losses[1] > losses[2]
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert wudi_loss(best + 1e-3 * rng.normal(size=best.shape), taus) > losses[2]


def test_wudi_of_one_model_or_no_change():
    [model] = draw(10, 1, dtype=np.float32)
    np.testing.assert_allclose(merge(jm.wudi(), [model])[K], model[K], atol=1e-6)
    nothing = zero(model)
    np.testing.assert_array_equal(merge(jm.wudi(steps=None), [nothing, nothing])[K], 0)
    with pytest.raises(ValueError, match="steps must be"):
        jm.wudi(steps=-1)
    with pytest.raises(ValueError, match="output_axis must be"):
        jm.wudi(output_axis=2)


# ---- LiNeS --------------------------------------------------------------------------------------


def test_lines():
    names = [
        "vision/patch/kernel",
        *(f"vision/block_{i:02d}/attn/kernel" for i in range(3)),
        *(f"text/block_{i:02d}/attn/kernel" for i in range(2)),
        "encoder.layers.0.fc.layer1.weight",
        "encoder.layers.1.fc.layer1.weight",
        "vision/projection/kernel",
    ]
    model = {n: np.ones(2, np.float32) for n in names}
    actual = jm.merge(jm.chain(jm.add(), jm.lines(0.2, 0.6)), None, [model])
    factors = [0.2, 0.2, 0.5, 0.8, 0.2, 0.8, 0.2, 0.8, 0.2]
    np.testing.assert_allclose([actual[n][0] for n in names], factors, rtol=1e-6)
    mine = jm.merge(jm.chain(jm.add(), jm.lines(0.2, 0.6, block=r"block_(\d+)")), None, [model])
    assert mine["encoder.layers.1.fc.layer1.weight"][0] == np.float32(0.2)
    for wrong in ("block", "("):
        with pytest.raises(ValueError, match="block"):
            jm.lines(block=wrong)


def test_lines_compiles_once_a_shape_and_takes_traced_factors():

    model = {f"block_{i}/w": jnp.ones(2) for i in range(3)}
    last = lambda beta: jm.merge(jm.chain(jm.add(), jm.lines(0.1, beta)), None, [model])[
        "block_2/w"
    ]
    np.testing.assert_allclose(jax.jacfwd(last)(0.5), 1)
    np.testing.assert_allclose(jax.vmap(last)(jnp.array([0.0, 0.9]))[:, 0], [0.1, 1.0])
