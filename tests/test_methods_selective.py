"""SCE, RAM, RAM+, NearSwap and Arcee Fusion against numpy transcriptions and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.methods.selective import share_of
from jaxmerge.transforms.sparsify import _divergence


def models_of(count=4, seed=0, moved=1.0):
    draw = np.random.default_rng(seed)
    base = {"w": draw.normal(size=(40, 30)), "b": draw.normal(size=50)}
    base = {n: x.astype(np.float32) for n, x in base.items()}
    step = lambda x: 0.1 * draw.normal(size=x.shape) * (draw.random(x.shape) < moved)
    return base, [{n: np.float32(x + step(x)) for n, x in base.items()} for _ in range(count)]


def taus(base, models, name):
    return np.stack([np.float64(m[name]) - np.float64(base[name]) for m in models])


@pytest.mark.parametrize("density", [1.0, 0.6, 0.1])
def test_sce(density):
    base, models = models_of()
    out = jm.merge(jm.sce(density=density), base, models)
    for n in base:
        tau = taus(base, models, n)
        spread = tau.var(0).ravel()
        mask = spread >= np.sort(spread)[::-1][int(density * spread.size) - 1]
        tau = tau * mask.reshape(base[n].shape)
        weight = (tau**2).reshape(4, -1).sum(1)
        weight = (weight / weight.sum()).reshape(-1, *[1] * base[n].ndim)
        agree = weight * (np.sign(tau) == np.sign(tau.sum(0)))
        share = agree.sum(0)
        want = (agree * tau).sum(0) / np.where(share == 0, 1, share)
        np.testing.assert_allclose(out[n], base[n] + want, atol=2e-6)


def test_sce_weighs_small_fine_tunes_too():
    """Changes of 3e-4 and 9e-4: weights 0.1 and 0.9, unless a floor makes them equal."""
    base = {"w": np.zeros(1000, np.float32)}
    models = [{"w": np.full(1000, v, np.float32)} for v in (3e-4, 9e-4)]
    np.testing.assert_allclose(jm.merge(jm.sce(), base, models)["w"], 8.4e-4, rtol=1e-5)
    floored = jm.merge(jm.sce(floor=1e-6), base, models)["w"]
    np.testing.assert_allclose(floored, 6e-4, rtol=1e-5)


def test_sce_of_one_model_is_that_model():
    base, models = models_of(1)
    out = jm.merge(jm.sce(), base, models)
    np.testing.assert_allclose(out["w"], models[0]["w"], atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 7, 10, 999, 2**24 + 1, 2**30 + 3])
def test_shares_are_counted_in_integers(count):
    for density, a, b in ((0.6, 3, 5), (0.1, 1, 10), (0.25, 1, 4)):
        assert int(share_of(density, jnp.int32(count))) == count * a // b


def test_ram():
    base, models = models_of(4, moved=0.4)
    out = jm.merge(jm.ram(), base, models)
    for n in base:
        tau = taus(base, models, n)
        moved = np.abs(tau) > 1e-5
        want = (tau * moved).sum(0) / np.maximum(moved.sum(0), 1)
        np.testing.assert_allclose(out[n], base[n] + want, atol=2e-6)


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_ram_plus(scope):
    base, models = models_of(3, moved=0.3)
    out = jm.merge(jm.ram_plus(r=0.5, alpha=0.9, scope=scope), base, models)
    tau = {n: taus(base, models, n).reshape(3, -1) for n in base}
    moved = {n: np.abs(x) > 1e-5 for n, x in tau.items()}
    alone = {n: m & (m.sum(0) == 1) for n, m in moved.items()}
    ratio = lambda names: (
        sum((moved[n] & ~alone[n]).sum(1) for n in names) / sum(alone[n].sum(1) for n in names)
    )
    for n in base:
        rho = ratio(base if scope == "global" else [n])
        grown = np.where(alone[n], (1 + 0.5 * np.clip(rho, 0, 0.9))[:, None], 1) * tau[n] * moved[n]
        want = grown.sum(0) / np.maximum(moved[n].sum(0), 1)
        np.testing.assert_allclose(out[n].ravel(), base[n].ravel() + want, atol=2e-6)


def test_ram_plus_without_growth_is_ram():
    base, models = models_of(3, moved=0.3)
    plain, grown = jm.merge(jm.ram(), base, models), jm.merge(jm.ram_plus(r=0.0), base, models)
    for n in base:
        np.testing.assert_allclose(plain[n], grown[n], atol=1e-6)


def test_nearswap():
    base, models = models_of(1)
    out = jm.merge(jm.nearswap(t=0.05), base, models)
    for n in base:
        distance = np.abs(models[0][n] - base[n])
        w = np.clip(0.05 / distance, 0, 1)
        np.testing.assert_allclose(out[n], w * models[0][n] + (1 - w) * base[n], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 5.0])
def test_the_divergence_is_exact(scale):
    draw = np.random.default_rng(0)
    base, x = draw.normal(size=(6, 50)), scale * draw.normal(size=(6, 50))
    softmax = lambda v: (
        np.exp(v.astype(np.longdouble)) / np.exp(v.astype(np.longdouble)).sum(-1)[:, None]
    )
    p, q = softmax(base + x), softmax(base)
    want = (p * np.log(p / q)).sum(-1)[:, None].astype(float)
    actual = _divergence(jnp.float32(x), jnp.float32(base), -1)
    np.testing.assert_allclose(actual, want, rtol=2e-5)


def test_arcee_fusion_adopts_all_of_a_leaf_with_one_entry_a_row():
    base, model = {"w": np.zeros((5, 1), np.float32)}, {"w": np.ones((5, 1), np.float32)}
    np.testing.assert_array_equal(jm.merge(jm.arcee_fusion(), base, [model])["w"], model["w"])


@pytest.mark.parametrize("method", [lambda: jm.nearswap(t=0.1), jm.arcee_fusion])
def test_one_model_beside_the_base(method):
    base, models = models_of(2)
    with pytest.raises(ValueError, match="at most 1"):
        jm.merge(method(), base, models)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jm.sce(density=-0.1),
        lambda: jm.sce(floor=-1.0),
        lambda: jm.ram(epsilon=-1e-5),
        lambda: jm.ram_plus(scope="layer"),
        lambda: jm.ram_plus(r=-0.1),
        lambda: jm.nearswap(t=-1.0),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
