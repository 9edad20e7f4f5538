"""Solvers against closed forms, numpy and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmerge as jm
from jaxmerge import solvers
from jaxmerge.training import checkpoint

RNG = np.random.default_rng(0)


def like(tree, spread=1.0):
    return {n: x + spread * RNG.normal(size=x.shape).astype("f") for n, x in tree.items()}


POOL = [like({"a": np.zeros(4, "f"), "b": np.zeros((2, 3), "f")}) for _ in range(5)]


def quadratic(target):
    def loss(params, batch):
        return sum(jnp.sum(jnp.square(params[n] - target[n])) for n in target) / 2

    return loss


@pytest.mark.parametrize("granularity", ["layer", "task"])
def test_frank_wolfe_gap_is_never_negative_and_falls_as_one_over_t(granularity):
    target = {n: 0.5 * POOL[1][n] + 0.5 * POOL[3][n] for n in POOL[0]}
    loss = quadratic(target)
    solver = solvers.frank_wolfe(loss, POOL, granularity=granularity)
    _, history = solvers.solve(solver, [None] * 200)
    gaps = np.array([h["gap"] for h in history])
    losses = np.array([h["loss"] for h in history])
    assert (gaps >= -1e-5).all()
    assert (losses <= gaps + 1e-5).all()  # the gap bounds the suboptimality; the optimum is 0
    diameter = max(
        sum(np.square(p[n] - q[n]).sum() for n in p) for p in POOL for q in POOL
    )  # curvature constant of this quadratic, times the number of blocks
    t = np.arange(1, 200)
    assert (losses[1:] <= 2 * 2 * diameter / (t + 2)).all()
    least = np.minimum.accumulate(gaps)  # Jaggi 2013, theorem 2: 27/4 of the curvature / (t + 2)
    assert (least[1:] <= 6.75 * 2 * diameter / (t + 2)).all()
    assert least[-1] < 0.02 * gaps[0]
    assert losses[-1] < 0.02 * losses[0]


def test_the_oracle_picks_the_planted_vertex():
    grad = {n: -POOL[2][n] for n in POOL[0]}
    big = [{n: (3 if m == 2 else 1) * x for n, x in p.items()} for m, p in enumerate(POOL)]
    for kind in ("inner", "cosine"):
        scores = solvers.oracle_scores(grad, big, kind)
        assert {n: int(np.argmin(s)) for n, s in scores.items()} == {"a": 2, "b": 2}
    inner = solvers.oracle_scores(grad, POOL, "inner")
    np.testing.assert_allclose(inner["a"], [np.vdot(grad["a"], p["a"]) for p in POOL], rtol=1e-5)


def test_a_frank_wolfe_step_is_the_formula():
    target = {n: x + 1 for n, x in POOL[0].items()}
    start = POOL[4]
    solver = solvers.frank_wolfe(
        quadratic(target), POOL, start=start, granularity="task", step_size=0.1, factor=0.3
    )
    state, info = solver.step(solver.init(), None)
    m = info["chosen"]["all"]
    grad = {n: start[n] - target[n] for n in start}
    assert m == int(np.argmin([sum(np.vdot(grad[n], p[n]) for n in grad) for p in POOL]))
    assert info["step_size"] == pytest.approx(0.1)
    for n in start:
        expected = start[n] + 0.1 * 0.3 * (POOL[m][n] - start[n])
        np.testing.assert_allclose(state.params[n], expected, rtol=1e-5)


def test_soft_frank_wolfe_reaches_a_point_inside_a_face():
    target = {n: 0.2 * POOL[0][n] + 0.5 * POOL[2][n] + 0.3 * POOL[3][n] for n in POOL[0]}
    solver = solvers.soft_frank_wolfe(quadratic(target), POOL, vertices=3, inner_steps=100)
    _, history = solvers.solve(solver, [None] * 12)
    assert history[-1]["loss_after"] < 1e-3 * history[0]["loss"]
    assert all(h["loss_after"] <= h["loss"] + 1e-5 for h in history)
    assert all(-1e-5 <= h["loss"] <= h["gap"] + 1e-5 for h in history)
    for h in history:
        assert sum(h["coefficients"]["all"]) == pytest.approx(1, abs=1e-5)


def test_frank_wolfe_reads_a_lazy_pool_one_leaf_at_a_time():
    class Lazy(dict):
        live, most = 0, 0

        def __getitem__(self, name):
            reads.append(name)
            return super().__getitem__(name)

    reads = []
    lazy = [Lazy(p) for p in POOL]
    target = {n: x + 1 for n, x in POOL[0].items()}
    eager = solvers.frank_wolfe(quadratic(target), POOL, start=POOL[0])
    stream = solvers.frank_wolfe(quadratic(target), lazy, start=POOL[0])
    a, _ = solvers.solve(eager, [None] * 3)
    b, _ = solvers.solve(stream, [None] * 3)
    assert len(reads) >= 3 * 2 * len(POOL)
    for n in a:
        np.testing.assert_array_equal(a[n], b[n])


def linear(params, x):
    return x @ params["w"] + params["b"]


def task_models(count=3):
    base = {"w": np.zeros((5, 3), "f"), "b": np.zeros(3, "f")}
    return base, [like(base) for _ in range(count)]


def entropy_numpy(coefficients, base, models, x):
    weighted = list(zip(coefficients, models, strict=True))
    params = {n: b + sum(c * (m[n] - b) for c, m in weighted) for n, b in base.items()}
    z = x @ params["w"] + params["b"]
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return -(p * np.log(p)).sum(-1).mean()


def test_adamerging_takes_adam_steps_on_the_entropy():
    base, models = task_models()
    x = RNG.normal(size=(16, 5)).astype("f")
    loss = solvers.entropy(linear)
    solver = solvers.adamerging(
        loss, base, models, granularity="task", init=0.3, optimizer=optax.sgd(0.1)
    )
    state, info = solver.step(solver.init(), x)
    assert info["loss"] == pytest.approx(entropy_numpy([0.3] * 3, base, models, x), rel=1e-5)
    eps = 1e-3
    for t in range(3):
        up, down = np.full(3, 0.3), np.full(3, 0.3)
        up[t] += eps
        down[t] -= eps
        rise = entropy_numpy(up, base, models, x) - entropy_numpy(down, base, models, x)
        slope = rise / (2 * eps)
        assert state.coefficients["all"][t] == pytest.approx(0.3 - 0.1 * slope, abs=1e-4)
    _, history = solvers.solve(solver, [x] * 30)
    assert history[-1]["loss"] < history[0]["loss"]


def test_adamerging_plus_plus_drops_what_disagrees():
    base, models = task_models(2)
    solver = solvers.adamerging(
        solvers.entropy(linear), base, models, granularity="task", init=1.0, disentangle=1.0
    )
    merged = solver.params(solver.init())
    taus = np.stack([m["w"] for m in models])
    agree = np.sign(taus) == np.where(taus.sum(0) >= 0, 1, -1)
    np.testing.assert_allclose(merged["w"], (taus * agree).sum(0), atol=1e-6)


def test_stitching_disjoint_masks_is_exact_and_overlaps_are_averaged():
    base = {"w": np.zeros(6, "f")}
    models = [{"w": np.arange(1, 7, dtype="f")}, {"w": -np.arange(1, 7, dtype="f")}]
    masks = [np.array([1, 1, 1, 0, 0, 0], bool), np.array([0, 0, 1, 1, 1, 0], bool)]
    out = jm.merge(jm.stitch(), base, models, extras=[{"mask": {"w": m}} for m in masks])
    np.testing.assert_array_equal(out["w"], [1, 2, 0, -4, -5, 0])


def test_dataless_localize_and_stitch_matches_numpy():
    base, models = task_models()
    out = jm.merge(jm.localize_and_stitch(0.25), base, models)
    flat = [np.concatenate([m["w"].ravel(), m["b"]]) for m in models]
    count = int(0.25 * len(flat[0]))  # floor(density n) entries, as the authors keep
    stitched = [np.where(np.abs(f) >= np.sort(np.abs(f))[-count], f, 0) for f in flat]
    expected = sum(stitched) / np.maximum(sum((k != 0).astype(int) for k in stitched), 1)
    np.testing.assert_allclose(
        np.concatenate([out["w"].ravel(), out["b"]]), expected, rtol=1e-5, atol=1e-7
    )


def test_learned_masks_find_the_entries_that_matter():
    base = {"w": np.zeros((20, 2), "f")}
    model = {"w": RNG.normal(size=(20, 2)).astype("f") * 0.3}
    model["w"][3], model["w"][7] = [1.0, -1.0], [-0.8, 0.8]  # also the largest
    model["w"][11] = [2.0, 2.0]  # large, but moves both classes alike: useless
    x = np.zeros((64, 20), "f")
    x[:, [3, 7]] = RNG.normal(size=(64, 2))
    x[:, 11] = RNG.normal(size=64)
    labels = np.argmax(x @ model["w"], -1)
    loss = solvers.cross_entropy(lambda p, x: x @ p["w"])
    solver = solvers.localize(
        loss, base, model, density=0.1, penalty=0.5, optimizer=optax.adam(0.3)
    )
    state = solver.init()
    batch = (jnp.asarray(x), jnp.asarray(labels))
    first = float(loss(solver.params(state), batch))
    for _ in range(200):
        state, _ = solver.step(state, batch)
    mask = np.asarray(solvers.mask(state, 0.1)["w"])
    assert mask.sum() == 4
    assert mask[3].all()
    assert mask[7].all()
    assert float(loss(solver.params(state), batch)) < first


def test_surgery_reduces_the_representation_bias():
    w = RNG.normal(size=(6, 6)).astype("f")
    single = lambda x: x @ w
    merged = lambda x: x @ w + 0.5 * jax.nn.relu(x @ w[:, ::-1])
    xs = [RNG.normal(size=(64, 6)).astype("f") for _ in range(8)]
    solver = solvers.surgery(
        merged, single, 6, rank=6, key=jax.random.key(0), optimizer=optax.adam(1e-2)
    )
    adapter, _ = solvers.solve(solver, xs * 40)
    mended = lambda x: solvers.operate(adapter, merged(x))
    assert solvers.bias(mended, single, xs) < 0.6 * solvers.bias(merged, single, xs)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_searches_find_the_optimum(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # one by one, together
    base, models = task_models(2)
    target = jm.merge(jm.linear([0.25, 0.75]), base, models)
    build = lambda c: jm.merge(jm.linear(c), base, models)
    score = lambda p: -sum(jnp.sum(jnp.square(p[n] - target[n])) for n in p)
    result = solvers.grid(build, score, [[0, 0.25, 0.5], [0.5, 0.75]], at_once=4)
    assert result.coefficients.tolist() == [0.25, 0.75]
    assert len(result.scores) == 6
    near = solvers.random(
        build, score, [0, 0], [1, 1], tries=200, key=jax.random.key(0), at_once=50
    )
    assert np.abs(near.coefficients - [0.25, 0.75]).max() < 0.15


def test_regmean_plus_equals_regmean_for_one_layer_and_helps_behind_it():
    base, models = task_models()
    data = [[RNG.normal(size=(40, 5)).astype("f")] for _ in models]
    grams = [jm.statistics.gram(linear, m, d) for m, d in zip(models, data, strict=True)]
    plain = jm.merge(jm.regmean(0.9), base, models, extras=[jm.statistics.extras(g) for g in grams])
    plus = solvers.regmean_plus(linear, base, models, data, off_diagonal=0.9)
    for n in base:
        np.testing.assert_allclose(plus[n], plain[n], atol=1e-5)

    def two(p, x):
        return jnp.tanh(x @ p["up"]) @ p["down"]

    shapes = {"up": (5, 8), "down": (8, 3)}
    start = like({n: np.zeros(s, "f") for n, s in shapes.items()})
    near = [like(start, 0.5) for _ in data]
    plus = solvers.regmean_plus(two, start, near, data, off_diagonal=1.0)
    x = [d[0] for d in data]
    inputs = [np.tanh(xi @ plus["up"]) for xi in x]
    targets = [h @ m["down"] for h, m in zip(inputs, near, strict=True)]
    expected = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets), rcond=None)[0]
    np.testing.assert_allclose(plus["down"], expected, atol=1e-4)


def test_bad_input_has_one_clear_error():
    base, models = task_models()
    loss = solvers.entropy(linear)
    with pytest.raises(ValueError, match="at least one"):
        solvers.frank_wolfe(loss, [])
    with pytest.raises(ValueError, match="does not fit"):
        solvers.frank_wolfe(loss, [base, {"w": base["w"]}])
    with pytest.raises(ValueError, match="expected one of layer, task"):
        solvers.frank_wolfe(loss, models, granularity="leaf")
    with pytest.raises(ValueError, match="no batch"):
        solvers.solve(solvers.adamerging(loss, base, models), [])
    with pytest.raises(ValueError, match="NaN or Inf"):
        solvers.solve(solvers.adamerging(loss, base, models), [np.full((2, 5), np.nan, "f")])
    with pytest.raises(ValueError, match="one each"):
        solvers.regmean_plus(linear, base, models, [[np.ones((2, 5), "f")]])


def test_settings_out_of_range_are_refused():
    base, models = task_models()
    loss, key = solvers.entropy(linear), jax.random.key(0)
    build, score = (lambda c: {"w": c}), (lambda p: p["w"].sum())
    wrong = {
        "init must be in": lambda: solvers.adamerging(loss, base, models, init=float("nan")),
        "factor must be a number": lambda: solvers.frank_wolfe(loss, models, factor="a"),
        "inner_steps must be": lambda: solvers.soft_frank_wolfe(loss, models, inner_steps=0),
        "penalty must be in": lambda: solvers.localize(loss, base, models[0], penalty=-1.0),
        "density must be in": lambda: solvers.top_share(base, 3),
        "needs low < high": lambda: solvers.random(build, score, [1], [0], tries=2, key=key),
        "at_once must be": lambda: solvers.grid(build, score, [[0.1]], at_once=0),
        "no example": lambda: solvers.bias(jnp.sin, jnp.cos, [np.ones((0, 5))]),
    }
    for says, make in wrong.items():
        with pytest.raises(ValueError, match=says):
            make()


def test_a_checkpoint_with_nan_is_named_instead_of_chosen():
    loss = quadratic(POOL[0])
    pool = [*POOL[:2], {**POOL[2], "b": np.full((2, 3), np.nan, "f")}]
    for make in (solvers.frank_wolfe, solvers.soft_frank_wolfe):
        with pytest.raises(ValueError, match=r"models \[2\] of the pool, leaf 'b'"):
            solvers.solve(make(loss, pool, start=POOL[0]), [None])


def test_frank_wolfe_with_ties_merges_the_vertex_by_ties():
    target = {n: x + 1 for n, x in POOL[0].items()}
    solver = solvers.frank_wolfe(
        quadratic(target), POOL, start=POOL[4], granularity="task", density=0.5, factor=0.3
    )
    state, info = solver.step(solver.init(), None)
    vertex = POOL[info["chosen"]["all"]]
    expected = jm.merge(jm.ties(0.5, 0.3), POOL[4], [vertex])
    for n in expected:
        np.testing.assert_allclose(state.params[n], expected[n], rtol=1e-6)


def test_cma_es_finds_the_optimum():
    pytest.importorskip("evosax")
    target = jnp.array([0.25, 0.75])
    score = lambda p: -jnp.square(p["w"] - target).sum()
    result = solvers.cma_es(
        lambda c: {"w": c}, score, [0.0, 0.0], generations=20, sigma=0.2, key=jax.random.key(0)
    )
    assert np.abs(result.coefficients - target).max() < 0.01


@pytest.mark.parametrize("kind", ["adamerging", "frank_wolfe", "soft", "localize"])
def test_a_solver_goes_on_from_a_file(kind, tmp_path):
    base, models = task_models()
    x = RNG.normal(size=(16, 5)).astype("f")
    batch = (x, RNG.integers(0, 3, 16))
    loss = solvers.cross_entropy(linear)
    solver = {
        "adamerging": lambda: solvers.adamerging(loss, base, models, optimizer=optax.adam(0.1)),
        "frank_wolfe": lambda: solvers.frank_wolfe(loss, models),
        "soft": lambda: solvers.soft_frank_wolfe(loss, models),
        "localize": lambda: solvers.localize(loss, base, models[0], optimizer=optax.adam(0.5)),
    }[kind]()
    whole, _ = solvers.solve(solver, [batch] * 4)
    state = solver.init()
    for _ in range(2):
        state, _ = solver.step(state, batch)
    checkpoint.save(tmp_path / "state.safetensors", state)
    state, _ = checkpoint.load(tmp_path / "state.safetensors", like=solver.init())
    rest, _ = solvers.solve(solver, [batch] * 2, state)
    for n in whole:
        np.testing.assert_array_equal(whole[n], rest[n])


def test_bad_proxy_data_has_one_clear_error():
    base, models = task_models()
    x = np.ones((2, 5), "f")
    makers = [
        lambda loss: solvers.adamerging(loss, base, models),
        lambda loss: solvers.frank_wolfe(loss, models),
        lambda loss: solvers.soft_frank_wolfe(loss, models),
        lambda loss: solvers.localize(loss, base, models[0]),
    ]
    loss = solvers.cross_entropy(linear)
    infinite_slope = lambda params, batch: jnp.sqrt(jnp.sum(jnp.square(0 * params["w"])))
    for make in makers:
        with pytest.raises(ValueError, match=r"Labels \[-1, 3\] are outside the head's 3 classes"):
            solvers.solve(make(loss), [(x, np.array([3, -1]))])
        with pytest.raises(ValueError, match="proxy set is empty"):
            solvers.solve(make(loss), [(x[:0], np.array([], int))])
        with pytest.raises(ValueError, match="NaN or Inf in the gradient"):
            solvers.solve(make(infinite_slope), [x])
        with pytest.raises(ValueError, match="must be a pair"):
            solvers.solve(make(loss), [x])
    plus = lambda *data, apply=linear: solvers.regmean_plus(apply, base, models, data)
    with pytest.raises(ValueError, match=r"Tasks \[0, 2\] have no data"):
        plus([], [x], [x[:0]])
    with pytest.raises(ValueError, match="NaN or Inf in the Gram matrices, leaves"):
        plus([x], [np.nan * x], [x])
    with pytest.raises(ValueError, match="No leaf with two axes"):
        plus([x], [x], [x], apply=lambda params, x: x)
