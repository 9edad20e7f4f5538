"""Merges that depend on the order of models, against numpy: averages, continual TIES, DOP."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.drivers import batch_merge
from jaxmerge.drivers.leaf import update_donated

K = "block_0/mlp/kernel"


def draw(seed, count=4, shape=(8, 5)):
    rng = np.random.default_rng(seed)
    return [{K: rng.normal(size=shape), "bias": rng.normal(size=shape[1])} for _ in range(count)]


def zero(model):
    return {n: 0 * x for n, x in model.items()}


def merge(method, models):
    return jm.merge(method, zero(models[0]), models)


def close(actual, expected, atol=1e-12):
    for n in expected:
        np.testing.assert_allclose(actual[n], expected[n], atol=atol, err_msg=n)


def test_averages(x64):
    models = draw(0)
    ema, three, last = models[0], models[0], models[0]
    for m in models[1:]:
        ema = {n: 0.7 * ema[n] + 0.3 * m[n] for n in m}
        three = {n: 0.9 * three[n] + 0.05 * m[n] + 0.05 * last[n] for n in m}
        last = m
    close(merge(jm.ema(decay=0.7), models), ema)
    close(merge(jm.ema(decay=[0.0, 0.7, 0.7, 0.7]), models), ema, 1e-7)  # float32 lists
    close(merge(jm.three_way_ema(momentum=0.9), models), three)
    close(merge(jm.mean(), models), {n: np.mean([m[n] for m in models], 0) for n in last})
    close(
        merge(jm.task_arithmetic(factor=0.1), models),
        {n: 0.1 * sum(m[n] for m in models) for n in last},
    )


def test_running_mean_is_an_ema_of_falling_weight(x64):
    models = draw(1)
    close(
        merge(jm.ema([0, 1 / 2, 2 / 3, 3 / 4]), models),
        merge(jm.mean(), models),
        1e-7,
    )


def np_ties_step(total, x, density, factor):
    rows = []
    for row in (total, x):
        k = min(int(density * row.size) + 1, row.size)
        least = np.sort(np.abs(row).ravel())[-k]
        rows.append(np.where(np.abs(row) >= least, row, 0))
    sign = np.where(rows[0] + rows[1] >= 0, 1, -1)
    return total + factor * sum(np.where(np.sign(r) == sign, r, 0) for r in rows)


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_continual_ties_leaf_by_leaf(x64, density):
    models = draw(2)
    expected = {n: 0.3 * x for n, x in models[0].items()}
    for m in models[1:]:
        expected = {n: np_ties_step(expected[n], m[n], density, 0.3) for n in m}
    method = jm.continual_ties(density=density, factor=0.3, scope="leaf")
    close(merge(method, models), expected)


def continual_ties_by_hand(models, density=0.2, factor=0.3):
    """The recursion on flattened models."""
    cuts = np.cumsum([x.size for x in models[0].values()])[:-1]
    flat = [np.concatenate([x.ravel() for x in m.values()]) for m in models]
    total = factor * flat[0]
    for x in flat[1:]:
        total = np_ties_step(total, x, density, factor)
    parts = zip(models[0].items(), np.split(total, cuts), strict=True)
    return {n: part.reshape(x.shape) for (n, x), part in parts}


@pytest.mark.parametrize("density", [0.2, 1.0])
def test_continual_ties_over_the_whole_model(x64, density):
    models = draw(4)
    method = jm.continual_ties(density)
    expected = continual_ties_by_hand(models, density)
    close(merge(method, models), expected)
    base = {n: jnp.asarray(x) for n, x in zero(models[0]).items()}
    close(jax.jit(lambda base, models: jm.merge(method, base, models))(base, models), expected)


def test_a_merge_folds_in_the_memory_of_its_cells(monkeypatch):
    models = [{n: jnp.asarray(x) for n, x in m.items()} for m in draw(5, shape=(80, 50))]
    method, folded = jm.continual_ties(0.3), []

    def fold(specs, cell, inputs, zero):
        out = update_donated(specs, cell, inputs, zero)
        folded.append(cell)
        return out

    monkeypatch.setattr(batch_merge, "update_donated", fold)
    ours = merge(method, models)
    assert len(folded) == len(models) * len(models[0])
    assert all(cell.is_deleted() for cell in folded)
    state = jm.init(method, zero(models[0]))
    for model in models:  # whose caller keeps each state
        state = jm.update(method, state, zero(model), model)
    close(ours, jm.merged(method, state, zero(models[0])), atol=0)


def test_continual_ties_is_ties_in_steps(x64):
    models = draw(3)
    base = zero(models[0])
    merged = {n: 0.3 * x for n, x in models[0].items()}
    for m in models[1:]:
        step = jm.merge(jm.ties(0.2, 0.3, merge="sum"), base, [merged, m])
        merged = {n: merged[n] + step[n] - base[n] for n in base}
    close(merge(jm.continual_ties(), models), merged)


def test_continual_ties_from_files(tmp_path):
    models = [{n: x.astype(np.float32) for n, x in m.items()} for m in draw(4)]
    paths = [tmp_path / f"{t}.safetensors" for t in range(5)]
    for path, tree in zip(paths, (zero(models[0]), *models), strict=True):
        save_file(tree, path)
    out = tmp_path / "out"
    report = jm.merge_files(jm.continual_ties(), base=paths[0], models=paths[1:], out=out)
    assert report.passes == 1 + len(models)  # one over the rows, one before every model
    close(load_file(out / "model.safetensors"), merge(jm.continual_ties(), models), 0)


def np_dop(taus, alpha, steps, rate, decay, epsilon):
    """Written from the paper's losses and the two-task form of multiple gradient descent."""
    merged = taus[0]
    for new in taus[1:]:
        goals, bases = (merged, new), []
        for g in goals:
            u, s, vt = np.linalg.svd(g, full_matrices=False)
            r = np.searchsorted(np.cumsum(s) / s.sum(), epsilon)
            bases.append((u[:, :r], s[:r], vt[:r]))
        w, a, m, v = (merged + new) / 2, np.array([alpha, 1 - alpha]), 0.0, 0.0
        for i in range(1, steps + 1):
            losses, grads = [], []
            for g, (u, s, vt) in zip(goals, bases, strict=True):
                one, two = s[:, None] * (u.T @ (w - g)), (w - g) @ vt.T * s
                losses.append(np.sum(one**2) + np.sum(two**2))
                grads.append(2 * (u * s) @ one + 2 * (two * s) @ vt)
            g1, g2 = (g / x for g, x in zip(grads, losses, strict=True))
            first = np.clip(np.vdot(g2 - g1, g2) / np.sum((g1 - g2) ** 2), 0, 1)
            a = decay * a + (1 - decay) * np.array([first, 1 - first])
            g = a[0] * grads[0] + a[1] * grads[1]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            w = w - rate * (m / (1 - 0.9**i)) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8)
        merged = w
    return merged


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (3, 8)])
@pytest.mark.parametrize("decay, epsilon", [(0.9, 0.99999), (1.0, 0.8)])
def test_dop(x64, shape, decay, epsilon):
    models = draw(4, 3, shape)
    actual = merge(jm.dop(0.8, 30, 1e-2, decay, epsilon), models)
    expected = np_dop([m[K] for m in models], 0.8, 30, 1e-2, decay, epsilon)
    np.testing.assert_allclose(actual[K], expected, atol=1e-9)
    halves = (models[0]["bias"] / 2 + models[1]["bias"] / 2) / 2 + models[2]["bias"] / 2
    np.testing.assert_allclose(actual["bias"], halves, atol=1e-12)
    turned = [{n: x.T for n, x in m.items()} for m in models]
    other = merge(jm.dop(0.8, 30, 1e-2, decay, epsilon), turned)
    np.testing.assert_allclose(other[K].T, actual[K], atol=1e-9)


def test_no_step_of_dop_is_the_mean_and_no_change_stays_finite():
    models = [{n: x.astype(np.float32) for n, x in m.items()} for m in draw(5, 2)]
    halves = {n: (models[0][n] + models[1][n]) / 2 for n in models[0]}
    close(merge(jm.dop(steps=0), models), halves, 1e-6)
    nothing = zero(models[0])
    for actual in (merge(jm.dop(), [nothing, nothing]), merge(jm.dop(steps=3), [models[0]] * 2)):
        assert all(np.isfinite(x).all() for x in actual.values())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: jm.ema(1.5), "decay"),
        (lambda: jm.three_way_ema(-0.1), "momentum"),
        (lambda: jm.continual_ties(density=0.0), "density"),
        (lambda: jm.dop(alpha=2.0), "alpha"),
        (lambda: jm.dop(steps=-1), "steps"),
        (lambda: jm.dop(epsilon=1.1), "epsilon"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=f"{words} must be"):
        make()
