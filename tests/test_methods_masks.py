"""Consensus, TALL masks, EMR and PCB against numpy transcriptions of their formulas."""

import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.methods import pcb_merging


def models_of(count=3, seed=0):
    draw = np.random.default_rng(seed)
    base = {"w": draw.normal(size=(30, 20)), "b": draw.normal(size=50)}
    base = {n: x.astype(np.float32) for n, x in base.items()}
    step = lambda x: 0.1 * draw.normal(size=x.shape)
    return base, [{n: np.float32(x + step(x)) for n, x in base.items()} for _ in range(count)]


def matrix(base, models):
    return np.stack(
        [np.concatenate([(m[n] - base[n]).ravel() for n in base]) for m in models]
    ).astype(float)


def changes(base, out):
    return matrix(base, [out])[0]


@pytest.mark.parametrize("at_least", [0, 1, 2, 3])
@pytest.mark.parametrize("tall", [0.4, [0.2, 0.5, 1.0]])
def test_consensus(at_least, tall):
    base, models = models_of()
    tau = matrix(base, models)
    total = tau.sum(0)
    claims = np.abs(tau) >= np.broadcast_to(tall, 3)[:, None] * np.abs(total - tau)
    want = 0.3 * total * (claims.sum(0) >= at_least)
    out = jm.merge(jm.consensus(tall=tall, at_least=at_least), base, models)
    np.testing.assert_allclose(changes(base, out), want, atol=1e-6)


def test_consensus_of_all_is_task_arithmetic():
    base, models = models_of()
    out = jm.merge(jm.consensus(at_least=0, factor=0.4), base, models)
    want = jm.merge(jm.task_arithmetic(0.4), base, models)
    np.testing.assert_allclose(changes(base, out), changes(base, want), atol=1e-6)


def test_the_mask_compares_task_vectors_not_weights():
    """Large base weights, one small and one large change: only the large one stands out."""
    base = {"w": np.full(2, 50.0, np.float32)}
    models = [{"w": np.float32([51.0, 50.0])}, {"w": np.float32([50.0, 50.1])}]
    out = jm.merge(jm.tall_task(task=0, tall=0.5), base, models)["w"]
    np.testing.assert_allclose(out, [51.0, 50.0], atol=1e-5)


@pytest.mark.parametrize("task", [0, 2])
def test_tall_task(task):
    base, models = models_of()
    tau = matrix(base, models)
    total = tau.sum(0)
    want = total * (np.abs(tau[task]) >= 0.4 * np.abs(total - tau[task]))
    out = jm.merge(jm.tall_task(task=task), base, models)
    np.testing.assert_allclose(changes(base, out), want, atol=1e-6)


def emr_numpy(tau):
    sign = np.sign(tau.sum(0))
    unified = sign * np.where(np.sign(tau) == sign, np.abs(tau), 0).max(0)
    masks = tau * unified > 0
    return unified, masks, np.abs(tau).sum(1) / np.abs(masks * unified).sum(1)


def test_emr():
    base, models = models_of()
    unified, masks, rescalers = emr_numpy(matrix(base, models))
    shared = jm.merge(jm.emr(), base, models)
    np.testing.assert_allclose(changes(base, shared), unified, atol=1e-6)
    for t, model in enumerate(models):
        want = rescalers[t] * masks[t] * unified
        out = jm.merge(jm.emr_task(task=t), base, models)
        np.testing.assert_allclose(changes(base, out), want, atol=1e-6)
        own = jm.modulator(base, shared, model)
        np.testing.assert_allclose(own.rescaler, rescalers[t], rtol=1e-5)
        np.testing.assert_allclose(changes(base, jm.modulate(base, shared, own)), want, atol=1e-6)


def test_emr_with_one_model_is_that_model():
    base, models = models_of(1)
    for method in (jm.emr(), jm.emr_task(task=0)):
        np.testing.assert_allclose(
            changes(base, jm.merge(method, base, models)), matrix(base, models)[0], atol=1e-6
        )


def test_emr_in_a_stream():
    base, models = models_of()
    method = jm.emr_task(task=1)
    state = jm.init(method, base)
    for model in models:
        state = jm.update(method, state, base, model)
    want = jm.merge(method, base, models)
    np.testing.assert_allclose(changes(base, jm.merged(method, state, base)), changes(base, want))


def pcb_numpy(tau, density):
    norm = lambda x: (x - x.min()) / (x.max() - x.min())
    soft = lambda x: np.exp(x) / np.exp(x).sum()
    count, size = tau.shape
    keep = max(1, int(density * size))
    scores = []
    for own in tau:
        beta = soft(count * norm(own * own)) * sum(soft(norm(own * other)) for other in tau)
        scores.append(np.where(beta >= np.sort(beta)[-keep], beta, 0))
    scores = np.stack(scores)
    total = scores.sum(0)
    return (scores * tau).sum(0) / np.where(total > 0, total, 1)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_pcb(density):
    base, models = models_of()
    tau = matrix(base, models)
    out = jm.merge(jm.pcb(density=density, factor=0.8), base, models)
    np.testing.assert_allclose(changes(base, out), 0.8 * pcb_numpy(tau, density), atol=2e-6)
    out = jm.merge(jm.pcb(density=density, factor=0.8, scope="leaf"), base, models)
    for n in base:
        alone = matrix({n: base[n]}, models)
        want = 0.8 * pcb_numpy(alone, density)
        np.testing.assert_allclose((out[n] - base[n]).ravel(), want, atol=2e-6)


def test_pcb_of_tasks_whose_ranks_are_found_after_different_passes(monkeypatch):
    """Most scores of one task are equal, so its bracket is one value before the others' are."""
    passes = []
    near = pcb_merging._near_enough
    look = lambda best, many: passes.append(near(best, many)["rank"] is None) or near(best, many)
    monkeypatch.setattr(pcb_merging, "_near_enough", look)
    rng = np.random.default_rng(0)
    tau = rng.uniform(-1, 1, size=(3, 40_000)).astype(np.float32)
    tau[0] *= rng.random(40_000) < 0.1
    base = {"a": np.zeros(25_000, np.float32), "b": np.zeros(15_000, np.float32)}
    models = [{"a": x[:25_000], "b": x[25_000:]} for x in tau]
    out = jm.merge(jm.pcb(0.5), base, models)
    rounds = [passes[i : i + 3] for i in range(0, len(passes), 3)]
    assert [True, False, False] in rounds
    assert rounds[-1] == [True] * 3
    got = np.concatenate([out["a"], out["b"]])
    gap = np.abs(got - pcb_numpy(tau.astype(np.float64), 0.5))
    assert np.mean(gap > 1e-5) < 1e-3  # but for ties by rounding


def test_pcb_in_float64(x64):
    base, models = models_of()
    wide = lambda m: {n: x.astype(np.float64) for n, x in m.items()}
    base, models = wide(base), [wide(m) for m in models]
    out = jm.merge(jm.pcb(density=0.3), base, models)
    want = pcb_numpy(matrix(base, models), 0.3)
    np.testing.assert_allclose(changes(base, out), want, atol=1e-12)


def test_pcb_of_one_model_at_full_density_is_that_model():
    base, models = models_of(1)
    out = jm.merge(jm.pcb(density=1.0), base, models)
    np.testing.assert_allclose(changes(base, out), matrix(base, models)[0], atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: jm.consensus(tall=-0.1),
        lambda: jm.consensus(at_least=-1),
        lambda: jm.tall_task(task=-1),
        lambda: jm.emr_task(task=-2),
        lambda: jm.pcb(density=0.0),
        lambda: jm.pcb(scope="layer"),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_a_task_must_be_among_the_models():
    base, models = models_of(2)
    for method in (jm.emr_task(task=2), jm.tall_task(task=5)):
        with pytest.raises(ValueError, match="at least"):
            jm.merge(method, base, models)
