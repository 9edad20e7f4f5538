"""TIES and its relatives against numpy transcriptions of their formulas, and their properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmerge as jm
from jaxmerge.numerics import hash_rng

KEY = jax.random.key(0)


def models_of(count=3, seed=0, scale=0.1):
    draw = np.random.default_rng(seed)
    base = {"a/w": draw.normal(size=(40, 30)), "b": draw.normal(size=50), "c": draw.normal(size=1)}
    base = {n: x.astype(np.float32) for n, x in base.items()}
    move = lambda x: (x + scale * draw.normal(size=x.shape)).astype(np.float32)
    return base, [{n: move(x) for n, x in base.items()} for _ in range(count)]


def rows(base, models):
    """Task vectors as one matrix [T, d] in float64, and the way back to a model."""
    flat = np.stack([np.concatenate([(m[n] - base[n]).ravel() for n in base]) for m in models])

    def back(row):
        parts = np.split(row, np.cumsum([x.size for x in base.values()])[:-1])
        return {n: base[n] + p.reshape(base[n].shape) for n, p in zip(base, parts, strict=True)}

    return flat.astype(np.float64), back


def close(out, want, atol=2e-6):
    for n in want:
        np.testing.assert_allclose(out[n], want[n], atol=atol, err_msg=n)


def ties_numpy(tau, density, merge="mean", elect="mass", weights=None):
    keep = min(tau.shape[1], int(density * tau.shape[1]) + 1)
    least = np.sort(np.abs(tau), axis=1)[:, -keep][:, None]
    tau = np.where(np.abs(tau) >= least, tau, 0)
    weights = np.ones(len(tau)) if weights is None else np.asarray(weights)
    tau = weights[:, None] * tau
    votes = {
        "mass": lambda: tau,
        "count": lambda: np.sign(tau),
        "fraction": lambda: np.sign(tau) * tau**2 / np.sum(tau**2, axis=1, keepdims=True),
    }[elect]()
    sign = np.sign(votes.sum(0))
    sign[sign == 0] = 1 if sign.sum() >= 0 else -1
    agree = np.sign(tau) == sign
    elected = np.where(agree, tau, 0)
    if merge == "sum":
        return elected.sum(0)
    if merge == "max":
        return sign * np.abs(elected).max(0)
    share = (agree * weights[:, None]).sum(0)
    return elected.sum(0) / np.where(share == 0, 1, share)


@pytest.mark.parametrize("merge", ["mean", "sum", "max"])
@pytest.mark.parametrize("elect", ["mass", "count", "fraction"])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 1.5]])
def test_ties(merge, elect, weights):
    base, models = models_of(4)
    tau, back = rows(base, models)
    method = jm.ties(density=0.4, factor=0.7, merge=merge, elect=elect, weights=weights)
    want = back(0.7 * ties_numpy(tau, 0.4, merge, elect, weights))
    close(jm.merge(method, base, models), want)


def test_ties_of_one_model_at_full_density_is_that_model():
    base, models = models_of(1)
    close(jm.merge(jm.ties(density=1.0), base, models), models[0], atol=1e-7)


def test_ties_break_to_the_majority_or_to_plus():
    base = {"w": np.zeros(4, np.float32)}
    models = [{"w": np.float32([1, -1, -1, -1])}, {"w": np.float32([-1, -1, -1, 1])}]
    majority = jm.merge(jm.ties(density=1.0), base, models)["w"]
    positive = jm.merge(jm.ties(density=1.0, tie="positive"), base, models)["w"]
    np.testing.assert_array_equal(majority, [-1, -1, -1, -1])
    np.testing.assert_array_equal(positive, [1, -1, -1, 1])


def test_global_and_leaf_scope_differ_where_leaves_have_other_scales():
    base = {"big": np.zeros(100, np.float32), "small": np.zeros(100, np.float32)}
    draw = np.random.default_rng(0)
    model = {
        n: (s * draw.normal(size=100)).astype(np.float32) for n, s in [("big", 1), ("small", 0.01)]
    }
    counts = lambda out: [np.count_nonzero(out[n]) for n in base]
    assert counts(jm.merge(jm.ties(density=0.3, scope="leaf"), base, [model])) == [30, 30]
    assert counts(jm.merge(jm.ties(density=0.3, inclusive=False), base, [model])) == [60, 0]
    assert sum(counts(jm.merge(jm.ties(density=0.3), base, [model]))) == 61


@pytest.mark.parametrize("scope", ["global", "leaf"])
def test_densities_and_factors_may_be_traced(scope):
    base, models = models_of(3)

    def at(density, factor):
        return jm.merge(jm.ties(density=density, factor=factor, scope=scope), base, models)

    densities, factors = jnp.array([0.1, 0.5, 1.0]), jnp.array([0.3, 1.0, 2.0])
    many = jax.vmap(at)(densities, factors)
    for i, (d, f) in enumerate([(0.1, 0.3), (0.5, 1.0), (1.0, 2.0)]):
        close({n: x[i] for n, x in many.items()}, at(d, f), atol=1e-6)
    grad = jax.grad(lambda f: at(0.5, f)["b"].sum())(1.0)
    np.testing.assert_allclose(grad, (at(0.5, 2.0)["b"] - at(0.5, 1.0)["b"]).sum(), rtol=1e-4)


def test_jit_equals_eager():
    base, models = models_of(3)
    method = jm.ties(density=0.3)
    close(
        jax.jit(lambda b, m: jm.merge(method, b, m))(base, models),
        jm.merge(method, base, models),
        0,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 1.0))
def test_ties_for_any_density(seed, density):
    base, models = models_of(3, seed)
    tau, back = rows(base, models)
    close(jm.merge(jm.ties(density=density), base, models), back(ties_numpy(tau, density)))


def breadcrumbs_numpy(x, density, gamma):
    order = np.argsort(np.abs(x.ravel()))[::-1]
    keep = max(1, int(density * x.size))
    drop = min(int(gamma * x.size), x.size - keep)
    places, out = order[drop : drop + keep], np.zeros(x.size)
    out[places] = x.ravel()[places]
    return out.reshape(x.shape)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 1.0), st.floats(0, 1.0))
def test_breadcrumbs(seed, density, gamma):
    base, models = models_of(2, seed)
    method = jm.breadcrumbs(density=density, gamma=gamma, factor=0.5)
    want = {
        n: base[n] + 0.5 * sum(breadcrumbs_numpy(m[n] - base[n], density, gamma) for m in models)
        for n in base
    }
    close(jm.merge(method, base, models), want)


def test_hyperparameters_for_each_model():
    base, models = models_of(2)
    lists = jm.breadcrumbs(density=[0.5, 0.2], gamma=[0.1, 0.0], factor=1.0)
    one = lambda d, g: jm.breadcrumbs(density=d, gamma=g, factor=1.0)
    first = jm.merge(one(0.5, 0.1), base, models[:1])
    second = jm.merge(one(0.2, 0.0), base, models[1:])
    want = {n: first[n] + second[n] - base[n] for n in base}
    close(jm.merge(lists, base, models), want)
    want = {
        n: models[0][n] + jm.merge(jm.dare(0.5, 1.0), base, models, key=KEY)[n] * 0 for n in base
    }
    close(jm.merge(jm.dare([1.0], 1.0), base, models[:1], key=KEY), want)


def test_dare_is_unbiased_and_drops_the_right_share():
    base = {"w": np.zeros((200, 100), np.float32)}
    model = {"w": np.ones((200, 100), np.float32)}
    for density in (0.1, 0.5, 0.9):
        out = jm.merge(jm.dare(density=density, factor=1.0), base, [model], key=KEY)["w"]
        np.testing.assert_allclose(np.unique(out), [0, 1 / density], rtol=1e-6)
        spread = np.sqrt((1 - density) / density / out.size)
        assert abs(out.mean() - 1) < 4 * spread


def test_dare_at_density_one_is_task_arithmetic():
    base, models = models_of(3)
    out = jm.merge(jm.dare(density=1.0, factor=0.4), base, models, key=KEY)
    close(out, jm.merge(jm.task_arithmetic(0.4), base, models), atol=1e-7)


def test_dare_l1_keeps_the_norm_of_every_leaf():
    base, models = models_of(1)
    out = jm.merge(jm.dare(density=0.4, factor=1.0, rescale="l1"), base, models, key=KEY)
    for n in ("a/w", "b"):
        size = lambda m, n=n: np.abs(m[n] - base[n]).sum()
        np.testing.assert_allclose(size(out), size(models[0]), rtol=1e-5)
        share_kept = np.count_nonzero(out[n] != base[n]) / out[n].size
        assert abs(share_kept - 0.4) < 0.25


def test_masks_follow_names_not_the_order_of_leaves():
    base, models = models_of(2)
    method = jm.dare_ties(density=0.5)
    turn = lambda m: dict(reversed(m.items()))
    out = jm.merge(method, base, models, key=KEY)
    again = jm.merge(method, turn(base), [turn(m) for m in models], key=KEY)
    close(again, out, atol=0)


def test_dare_ties_is_drop_elect_mean():
    base, models = models_of(3)
    _, back = rows(base, models)
    add = jm.chain(jm.drop_random(0.5), jm.add())
    state, sums = jm.init(add, base, key=KEY), []
    for model in models:
        state = jm.update(add, state, base, model)
        sums.append(np.concatenate([np.asarray(state.cells[n]).ravel() for n in base]))
    dropped = np.diff(np.stack(sums).astype(float), axis=0, prepend=0)
    dropped[np.abs(dropped) < 1e-6] = 0
    want = back(ties_numpy(dropped, 1.0))
    close(jm.merge(jm.dare_ties(density=0.5), base, models, key=KEY), want, atol=1e-5)


@pytest.mark.parametrize("axis", [-1, 0])
def test_della_keeps_large_entries_more_often(axis):
    rows_, n = 400, 50
    tau = np.random.default_rng(0).permuted(np.tile(np.arange(1.0, n + 1), (rows_, 1)), axis=1)
    tau = np.float32(tau if axis == -1 else tau.T)
    base, model = {"w": np.zeros_like(tau)}, {"w": tau}
    method = jm.della_linear(density=0.5, epsilon=0.6, factor=1.0, rescale=None, axis=axis)
    out = jm.merge(method, base, [model], key=KEY)["w"]
    share_kept = np.array([np.mean(out[tau == v] != 0) for v in range(1, n + 1)])
    chance = 0.2 + 0.6 * np.arange(n) / (n - 1)
    assert np.abs(share_kept - chance).max() < 5 * 0.5 / np.sqrt(rows_)
    assert abs(share_kept.mean() - 0.5) < 5 * 0.5 / np.sqrt(tau.size)


def test_della_is_unbiased():
    base = {"w": np.zeros((1000, 40), np.float32)}
    model = {"w": np.tile(np.linspace(1, 2, 40, dtype=np.float32), (1000, 1))}
    out = jm.merge(jm.della_linear(density=0.5, factor=1.0), base, [model], key=KEY)["w"]
    np.testing.assert_allclose(out.mean(0), model["w"][0], rtol=0.15)
    assert abs(out.mean() / model["w"].mean() - 1) < 0.02


def test_della_of_a_leaf_with_one_column():
    base = {"w": np.zeros((64, 1), np.float32)}
    out = jm.merge(jm.della(density=0.5), base, [{"w": np.ones((64, 1), np.float32)}], key=KEY)
    assert set(np.unique(out["w"])) == {0.0, 2.0}


def test_randmix_picks_every_model_equally_often():
    base = {"w": np.zeros(40000, np.float32)}
    models = [{"w": np.full(40000, t, np.float32)} for t in (1, 2, 3, 4)]
    out = jm.merge(jm.randmix(), base, models, key=KEY)["w"]
    shares = np.bincount(out.astype(int), minlength=5)[1:] / out.size
    assert np.abs(shares - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / out.size)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jm.ties(density=-0.1),
        lambda: jm.ties(density=1.5),
        lambda: jm.ties(density=[0.5, -0.1]),
        lambda: jm.ties(scope="layer"),
        lambda: jm.ties(merge="median"),
        lambda: jm.ties(elect="vote"),
        lambda: jm.ties(tie="minus"),
        lambda: jm.dare(density=-0.1),
        lambda: jm.dare(rescale="l2"),
        lambda: jm.dare_ties(density=2),
        lambda: jm.della(density=0.1, epsilon=0.5),
        lambda: jm.della(density=[0.5, 0.9], epsilon=0.3),
        lambda: jm.breadcrumbs(density=-1),
        lambda: jm.breadcrumbs_ties(gamma=1.2),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match=r"must (be|lie)"):
        make()


def test_a_stochastic_method_asks_for_a_key():
    base, models = models_of(1)
    for method in (jm.dare(), jm.dare_ties(), jm.della(), jm.della_linear(), jm.randmix()):
        with pytest.raises(ValueError, match="key"):
            jm.merge(method, base, models)


def test_the_generator_is_the_one_tested():
    x = hash_rng.coin(KEY, jnp.float32(0.3), (5, 7))
    assert x.shape == (5, 7)
    assert x.dtype == bool
