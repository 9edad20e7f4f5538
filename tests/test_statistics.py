"""Fisher, Gram matrices, and the merges that read them, against closed forms and numpy."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge import statistics
from jaxmerge.core import names
from jaxmerge.errors import UserError
from jaxmerge.statistics.capture import dense_inputs

RNG = np.random.default_rng(0)


def mlp(params, x):
    return jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]


def params_of(seed):
    rng = np.random.default_rng(seed)
    shapes = {"up": (5, 7), "bias": (7,), "down": (7, 3)}
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


X = RNG.normal(size=(11, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 11)


def example_grads(params, x, label):
    return jax.grad(lambda p: jax.nn.log_softmax(mlp(p, x[None])[0])[label])(params)


def test_empirical_fisher_is_the_mean_of_squared_example_gradients():
    params = params_of(1)
    grads = [example_grads(params, x, y) for x, y in zip(X, Y, strict=True)]
    statistic = statistics.fisher(mlp, params, [(X[:6], Y[:6]), (X[6:], Y[6:])], kind="empirical")
    assert statistic.samples == 11
    for n in params:
        expected = np.mean([np.square(g[n]) for g in grads], 0)
        np.testing.assert_allclose(statistic.values[n], expected, rtol=2e-5, atol=1e-7)


def test_true_fisher_is_the_expectation_over_labels():
    params = params_of(2)
    p = np.asarray(jax.nn.softmax(mlp(params, X)))
    statistic = statistics.fisher(mlp, params, [(X, None)], kind="true", chunk=4)
    for n in params:
        squares = lambda i, c, n=n: p[i, c] * np.square(example_grads(params, X[i], c)[n])
        expected = np.mean([sum(squares(i, c) for c in range(3)) for i in range(11)], 0)
        np.testing.assert_allclose(statistic.values[n], expected, rtol=2e-5, atol=1e-7)


def test_sampled_fisher_approaches_the_true_one():
    params = params_of(3)
    many = np.repeat(X, 200, 0)
    true = statistics.fisher(mlp, params, [(X, None)], kind="true")
    drawn = statistics.fisher(
        mlp, params, [(many, None)], kind="sampled", key=jax.random.key(0), chunk=64
    )
    for n in params:
        np.testing.assert_allclose(drawn.values[n].mean(), true.values[n].mean(), rtol=0.1)


def test_fisher_merging_matches_numpy_and_equal_fishers_give_the_mean():
    base, models = params_of(0), [params_of(s) for s in (1, 2, 3)]
    fishers = [{n: np.square(v) for n, v in params_of(s).items()} for s in (7, 8, 9)]
    out = jm.merge(
        jm.fisher_merging(weights=[1.0, 2.0, 0.5], floor=0.0), base, models,
        extras=[{"fisher": f} for f in fishers],
    )  # fmt: skip
    for n in base:
        top = sum(c * f[n] * m[n] for c, f, m in zip((1, 2, 0.5), fishers, models, strict=True))
        low = sum(c * f[n] for c, f in zip((1, 2, 0.5), fishers, strict=True))
        np.testing.assert_allclose(out[n], top / low, rtol=2e-4, atol=2e-5)
    same = [{"fisher": {n: np.full_like(v, 0.3) for n, v in base.items()}}] * 3
    mean = jm.merge(jm.fisher_merging(), base, models, extras=same)
    for n in base:
        np.testing.assert_allclose(mean[n], np.mean([m[n] for m in models], 0), atol=1e-6)


def test_normalised_fisher_has_norm_one():
    statistic = statistics.fisher(mlp, params_of(1), [(X, Y)], kind="empirical")
    unit = statistics.normalised(statistic)
    assert sum(np.vdot(v, v) for v in unit.values.values()) == pytest.approx(1, rel=1e-5)


def test_normalised_fishers_are_the_weights_of_one_over_the_norm():
    base, models = params_of(0), [params_of(s) for s in (1, 2)]
    fishers = [statistics.fisher(mlp, m, [(X, None)]) for m in models]
    norms = [sum(np.vdot(v, v) for v in f.values.values()) ** 0.5 for f in fishers]
    merge = lambda weights, actual: jm.merge(
        jm.fisher_merging(weights, floor=0.0), base, models,
        extras=[statistics.extras(f) for f in actual],
    )  # fmt: skip
    unit = merge(1.0, map(statistics.normalised, fishers))
    weighted, plain = merge([1 / n for n in norms], fishers), merge(1.0, fishers)
    for n in base:
        np.testing.assert_allclose(unit[n], weighted[n], rtol=1e-4, atol=1e-5)
    assert any(np.abs(unit[n] - plain[n]).max() > 1e-2 for n in base)


def linear_apply(params, x):
    return x @ params["w"]


def test_regmean_is_least_squares_on_the_stacked_data():
    rng = np.random.default_rng(4)
    xs = [rng.normal(size=(20, 6)) for _ in range(3)]
    models = [{"w": rng.normal(size=(6, 4)).astype(np.float32)} for _ in xs]
    base = {"w": rng.normal(size=(6, 4)).astype(np.float32)}
    grams = [
        statistics.gram(linear_apply, m, [x[:8], x[8:]]) for m, x in zip(models, xs, strict=True)
    ]
    out = jm.merge(
        jm.regmean(off_diagonal=1.0), base, models, extras=[statistics.extras(g) for g in grams]
    )
    targets = np.concatenate([x @ m["w"] for x, m in zip(xs, models, strict=True)])
    expected = np.linalg.lstsq(np.concatenate(xs), targets, rcond=None)[0]
    np.testing.assert_allclose(out["w"], expected, atol=2e-5)


@pytest.mark.parametrize("off_diagonal", [0.0, 0.5, 0.9])
def test_regmean_matches_numpy_in_both_layouts(off_diagonal):
    rng = np.random.default_rng(5)
    grams = [np.cov(rng.normal(size=(6, 30))) for _ in range(3)]
    models = [rng.normal(size=(6, 4)) for _ in grams]
    scaled = [np.where(np.eye(6), g, off_diagonal * g) for g in grams]
    expected = np.linalg.solve(sum(scaled), sum(g @ w for g, w in zip(scaled, models, strict=True)))
    base = {"w": np.zeros((6, 4), np.float32)}
    extras = [{"gram": {"w": g.astype(np.float32)}} for g in grams]
    out = jm.merge(
        jm.regmean(off_diagonal), base, [{"w": w.astype(np.float32)} for w in models], extras=extras
    )
    np.testing.assert_allclose(out["w"], expected, atol=1e-5)
    turned = jm.merge(
        jm.regmean(off_diagonal, axis=1), {"w": base["w"].T},
        [{"w": w.T.astype(np.float32)} for w in models], extras=extras,
    )  # fmt: skip
    np.testing.assert_allclose(turned["w"], expected.T, atol=1e-5)


def test_ridge_pulls_towards_the_mean():
    rng = np.random.default_rng(7)
    grams = [np.cov(rng.normal(size=(6, 30))) for _ in range(3)]
    models = [rng.normal(size=(6, 4)) for _ in grams]
    mean, total = sum(models) / 3, sum(grams)
    ridge = 0.3 * np.trace(total) / 6 * np.eye(6)
    moment = sum(g @ w for g, w in zip(grams, models, strict=True))
    expected = np.linalg.solve(total + ridge, moment + ridge @ mean)
    out = jm.merge(
        jm.regmean(1.0, ridge=0.3), {"w": np.zeros((6, 4), np.float32)},
        [{"w": w.astype(np.float32)} for w in models],
        extras=[{"gram": {"w": g.astype(np.float32)}} for g in grams],
    )  # fmt: skip
    np.testing.assert_allclose(out["w"], expected, atol=1e-5)


def test_regmean_of_equal_models_is_that_model_and_unseen_directions_are_averaged():
    rng = np.random.default_rng(6)
    w = rng.normal(size=(6, 4)).astype(np.float32)
    thin = [np.outer(v, v).astype(np.float32) for v in rng.normal(size=(2, 6))]
    out = jm.merge(
        jm.regmean(1.0), {"w": 0 * w}, [{"w": w}] * 2, extras=[{"gram": {"w": g}} for g in thin]
    )
    np.testing.assert_allclose(out["w"], w, atol=1e-6)
    other = rng.normal(size=(6, 4)).astype(np.float32)
    out = jm.merge(
        jm.regmean(1.0), {"w": 0 * w}, [{"w": w}, {"w": other}],
        extras=[{"gram": {"w": 0 * thin[0]}}] * 2,
    )  # fmt: skip
    np.testing.assert_allclose(out["w"], (w + other) / 2, atol=1e-6)


def test_gram_sees_kernels_through_reshapes_concatenation_and_transposition():
    params = {
        n: RNG.normal(size=s).astype(np.float32)
        for n, s in {"q": (6, 6), "k": (6, 6), "o": (6, 6), "t": (3, 6), "e": (9, 6)}.items()
    }

    def apply(p, ids):
        x = p["e"][ids]
        q, k = jnp.split(x @ jnp.concatenate([p["q"], p["k"]], 1), 2, -1)
        mixed = (q * k).reshape(*ids.shape, 2, 3)
        x = x + jnp.einsum("blhd,hdo->blo", mixed, p["o"].reshape(2, 3, 6))
        return x @ p["t"].T

    ids = np.array([[1, 2], [3, 4], [5, 8]])
    statistic = statistics.gram(apply, params, [ids])
    assert set(statistic.values) == {"q", "k", "o", "t"}
    assert statistic.about["axis"] == {"q": 0, "k": 0, "o": 0, "t": 1}
    x = params["e"][ids].reshape(-1, 6)
    np.testing.assert_allclose(statistic.values["q"], x.T @ x / 3, rtol=1e-5)
    mixed = (x @ params["q"]) * (x @ params["k"])
    np.testing.assert_allclose(statistic.values["o"], mixed.T @ mixed / 3, rtol=1e-4)
    last = x + mixed @ params["o"]
    np.testing.assert_allclose(statistic.values["t"], last.T @ last / 3, rtol=1e-4)


def test_every_dense_kernel_of_an_nnx_model():
    nnx = pytest.importorskip("flax.nnx")

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(5, 8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 8, rngs=rngs, decode=False)
            self.down = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.down(self.attention(self.up(x)[:, None])[:, 0])

    models = [Model(nnx.Rngs(seed)) for seed in range(2)]
    graph = nnx.graphdef(models[0])
    states = [nnx.state(m, nnx.Param) for m in models]
    flats = [names.flatten(s)[0] for s in states]
    back = names.flatten(states[0])[1]
    apply = lambda params, x: nnx.merge(graph, back(params))(x)
    grams = [statistics.gram(apply, f, [X]) for f in flats]
    fishers = [statistics.fisher(apply, f, [(X, None)]) for f in flats]
    assert set(grams[0].values) == {n for n in flats[0] if "kernel" in n}
    assert set(grams[0].about["axis"].values()) == {0}
    extras = [
        statistics.extras(g, f, params=p) for g, f, p in zip(grams, fishers, flats, strict=True)
    ]
    merged = jm.merge(jm.regmean(1.0), states[0], states, extras=extras)
    assert isinstance(merged, nnx.State)
    assert nnx.merge(graph, merged)(X).shape == (11, 3)
    name = next(n for n in flats[0] if "query/kernel" in n)  # [in, heads, size]
    g, w = [np.asarray(x.values[name]) for x in grams], [np.asarray(f[name]) for f in flats]
    mid = np.tensordot(np.linalg.pinv(g[0] + g[1], rcond=1e-6, hermitian=True), sum(
        np.tensordot(a, b - (w[0] + w[1]) / 2, 1) for a, b in zip(g, w, strict=True)
    ), 1)  # fmt: skip
    content = names.flatten(merged)[0][name]
    np.testing.assert_allclose(content, mid + (w[0] + w[1]) / 2, atol=1e-3)


def test_stacked_kernels_with_an_input_each_are_left_out():
    params = {"many": np.ones((2, 4, 5), "f"), "w": np.ones((5, 3), "f")}
    apply = lambda p, x: jnp.einsum("bi,eoi->beo", x, p["many"]).sum((1, 2)) + (x @ p["w"]).sum()
    separate = lambda p, x: jnp.einsum("bei,eoi->beo", x, p["many"]).sum((1, 2)) + p["w"].sum()
    statistic = statistics.gram(apply, params, [X])  # one input for all: they are one kernel
    assert (statistic.about["axis"], statistic.values["many"].shape) == (
        {"many": 1, "w": 0},
        (5, 5),
    )
    with pytest.raises(ValueError, match="No leaf"):
        statistics.gram(separate, params, [np.stack([X, X], 1)])


def test_gram_leaves_padding_out():
    params = {"e": RNG.normal(size=(9, 6)).astype("f"), "w": RNG.normal(size=(6, 2)).astype("f")}
    apply = lambda p, ids: p["e"][ids] @ p["w"]
    keep = lambda ids: (ids != 0).ravel()
    padded = statistics.gram(apply, params, [np.array([[3, 4, 0, 0], [5, 0, 0, 0]])], keep=keep)
    x = params["e"][[3, 4, 5]]
    np.testing.assert_allclose(padded.values["w"], x.T @ x / 2, rtol=1e-5, atol=1e-7)


def test_statistics_are_stored_and_refused_for_other_weights(tmp_path):
    params = params_of(1)
    statistic = statistics.gram(mlp, params, [X], about={"data": "normal"})
    path = tmp_path / "gram.safetensors"
    statistics.save(statistic, path)
    back = statistics.load(path, params)
    assert back.samples == 11
    assert back.about["data"] == "normal"
    np.testing.assert_array_equal(back.values["up"], statistic.values["up"])
    with pytest.raises(UserError, match="was measured for weights"):
        statistics.load(path, params_of(2))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read"):
        statistics.load(path)


def test_extras_belong_to_one_model():
    params = params_of(1)
    content = statistics.gram(mlp, params, [X]), statistics.fisher(mlp, params, [(X, None)])
    assert set(statistics.extras(*content, params=params)) == {"gram", "fisher"}
    with pytest.raises(UserError, match="was measured for weights"):
        statistics.extras(*content, params=params_of(2))
    with pytest.raises(UserError, match="several statistics of kind 'gram'"):
        statistics.extras(content[0], content[0])
    with pytest.raises(ValueError, match="got Statistic; a measured one is"):
        jm.merge(jm.fisher_merging(), params, [params], extras=[content[1]])


@pytest.mark.parametrize("wrong", [None, "a", -1.0, float("nan")])
@pytest.mark.parametrize("setting", ["weights", "floor", "ridge", "off_diagonal", "axis"])
def test_settings_are_numbers_in_their_range(setting, wrong):
    make = jm.fisher_merging if setting in ("weights", "floor") else jm.regmean
    with pytest.raises(ValueError, match=f"{setting} must be"):
        make(**{setting: wrong})


def test_fisher_weights_are_one_for_each_model():
    params = params_of(1)
    extras = [{"fisher": params}] * 3
    with pytest.raises(ValueError, match="takes at most 2 models, got 3"):
        jm.merge(jm.fisher_merging([1.0, 2.0]), params, [params] * 3, extras=extras)
    with pytest.raises(ValueError, match="add up to 0"):
        jm.fisher_merging(0.0)


def test_side_information_has_the_shape_of_its_leaf():
    params = params_of(1)
    for method, kind in ((jm.fisher_merging(), "fisher"), (jm.stitch(), "mask")):
        row = {"up": np.ones((1, 7), np.float32)}  # would broadcast
        with pytest.raises(ValueError, match=rf"{kind} of a leaf has shape \[1, 7\].*\[5, 7\]"):
            jm.merge(method, params, [params], extras=[{kind: row}])
    other = params_of(2)
    out = jm.merge(jm.stitch(), params, [other], extras=[{"mask": {}}])  # no leaf has one
    np.testing.assert_allclose(out["up"], other["up"], rtol=1e-6)


def test_bad_data_is_refused():
    params = params_of(1)
    with pytest.raises(ValueError, match=r"Labels \[3\] are outside the head's 3 classes"):
        statistics.fisher(mlp, params, [(X, np.full(11, 3))], kind="empirical")
    for labels, says in (
        (np.eye(3)[Y], r"labels of shape \[11, 3\] for 11 examples"),
        (Y + 0.5, "whole numbers, got float64"),
        (None, "needs labels"),
    ):
        with pytest.raises(ValueError, match=says):
            statistics.fisher(mlp, params, [(X, labels)], kind="empirical")
    with pytest.raises(ValueError, match=r"must be a pair \(inputs, labels\)"):
        statistics.fisher(mlp, params, [X])
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        statistics.fisher(mlp, params, [(X, None)], chunk=0)
    with pytest.raises(ValueError, match=r"logits \[B, C\], got shape \[11\]"):
        statistics.fisher(lambda p, x: mlp(p, x)[:, 0], params, [(X, None)])
    for empty in ([], [(X[:0], Y[:0])]):
        with pytest.raises(ValueError, match="needs data"):
            statistics.fisher(mlp, params, empty)
    with pytest.raises(ValueError, match="need data"):
        statistics.gram(mlp, params, [])
    with pytest.raises(ValueError, match="need data"):
        statistics.gram(mlp, params, [X[:0]])
    bad = {**params, "up": np.full_like(params["up"], np.nan)}
    with pytest.raises(ValueError, match="NaN or Inf in the Fisher information"):
        statistics.fisher(mlp, bad, [(X, Y)], kind="empirical")
    with pytest.raises(ValueError, match=r"shape \[2, 2\].*shape \[5, 7\]"):
        jm.merge(
            jm.regmean(), params, [params], extras=[{"gram": {"up": np.eye(2, dtype=np.float32)}}]
        )
    with pytest.raises(ValueError, match="needs side information"):
        jm.merge(jm.fisher_merging(), params, [params])


def test_kernels_in_a_scan_and_of_convolutions_are_seen():
    rng = np.random.default_rng(0)
    params = {
        "layers": rng.normal(size=(3, 4, 4)).astype(np.float32),
        "shared": rng.normal(size=(4, 4)).astype(np.float32),
        "conv": rng.normal(size=(3, 2, 2, 5)).astype(np.float32),
    }
    images, x = rng.normal(size=(2, 6, 5, 2)).astype(np.float32), np.ones((7, 4), np.float32)

    def apply(params, images, x):
        out = jax.lax.conv_general_dilated(
            images, params["conv"], (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        layer = lambda h, w: (jnp.tanh(h @ w) @ params["shared"], jnp.sum(h))
        return out, *jax.lax.scan(layer, x, params["layers"])

    plain = apply(params, images, x)
    actual, inputs = dense_inputs(apply, params, images, x, every=True)
    jax.tree.map(np.testing.assert_array_equal, actual, plain)
    assert inputs["layers"].x.shape == (3, 7, 4)
    assert inputs["shared"].x.shape == (21, 4)
    np.testing.assert_array_equal(inputs["layers"].x[0], x)
    after = jnp.tanh(inputs["layers"].x @ params["layers"]).reshape(-1, 4)
    np.testing.assert_allclose(after, inputs["shared"].x, rtol=1e-5)
    again = inputs["conv"].x @ params["conv"].reshape(-1, 5)
    np.testing.assert_allclose(again.reshape(plain[0].shape), plain[0], rtol=1e-4, atol=1e-5)
    assert "conv" not in dense_inputs(apply, params, images, x)[1]


def test_hashes_of_weights_are_those_of_files_on_disk():
    """A scalar counts as of shape (1,), as in all statistics written so far."""
    text = b"scale:float32:(1,);" + np.float32(2).tobytes() + b"w:float32:(2,);"
    digest = hashlib.sha256(text + np.ones(2, np.float32).tobytes()).hexdigest()
    leaves = {"w": np.ones(2, np.float32), "scale": np.float32(2)}
    assert statistics.weights_hash(leaves) == digest
