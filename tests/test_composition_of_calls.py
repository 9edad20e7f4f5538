"""Methods as values, stacked models, scans over update, and what is said of calls gone wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxmerge as jm

BASE = {"w": np.ones((4, 3), np.float32), "n": np.arange(2)}
MODELS = [{"w": BASE["w"] * t, "n": BASE["n"]} for t in (2.0, 3.0, -1.0)]
STACKED = {n: np.stack([m[n] for m in MODELS]) for n in BASE}


def test_methods_of_one_call_are_equal():
    assert jm.magmax(0.5) == jm.magmax(0.5)
    assert jm.magmax(0.5) != jm.magmax(0.4)
    assert jm.magmax(0.5) != jm.average(0.5)
    assert jm.ties(0.2, scope="leaf") == jm.ties(density=0.2, scope="leaf")
    assert jm.trim(0.3) == jm.trim(0.3)
    assert {jm.opcm(), jm.opcm(), jm.opcm(0.8)} == {jm.opcm(), jm.opcm(0.8)}
    own = jm.stacked(lambda rows, ctx: rows[0])
    assert own == own
    assert own != jm.stacked(lambda rows, ctx: rows[0])
    assert jm.analogy() != jm.analogy()._replace(models=(1, None))


def test_a_method_is_a_static_and_an_ordinary_argument_of_jit():
    expected = jm.merge(jm.magmax(0.5), BASE, MODELS)
    calls = []

    def run(method):
        calls.append(method)
        return jm.merge(method, BASE, MODELS)["w"]

    static, traced = jax.jit(run, static_argnums=0), jax.jit(run)
    for _ in range(2):
        np.testing.assert_array_equal(static(jm.magmax(0.5)), expected["w"])
    assert len(calls) == 1
    np.testing.assert_array_equal(traced(jm.magmax(0.5)), expected["w"])
    np.testing.assert_array_equal(
        traced(jm.magmax(0.25)), jm.merge(jm.magmax(0.25), BASE, MODELS)["w"]
    )
    assert len(calls) == 2  # a factor is a number of the program, not another program


def test_map_and_differentiate_over_a_method():
    both = jax.tree.map(lambda *x: jnp.stack(x), jm.magmax(0.1), jm.magmax(0.5))
    actual = jax.vmap(lambda m: jm.merge(m, BASE, MODELS)["w"][0, 0])(both)
    np.testing.assert_allclose(actual, [0.8, 0.0], atol=1e-6)
    slope = jax.grad(lambda m: jm.merge(m, BASE, MODELS)["w"].sum())(jm.magmax(0.5))
    assert jax.tree.leaves(slope) == [-24.0]


@pytest.mark.parametrize("name", ["iso_cts", "tsv_c", "split_subspaces"])
def test_a_number_that_decides_a_shape_says_so_where_it_is_traced(name):
    argument = "tasks" if name == "tsv_c" else "common"
    with pytest.raises(TypeError, match=f"{argument} decides a shape"):
        jax.vmap(lambda c: jm.get(name)(**{argument: c}).models[0])(jnp.array([0.5, 0.8]))


@pytest.mark.parametrize("name", ["sce", "low_rank", "opcm"])
def test_shares_may_be_traced(name):
    argument = {"low_rank": "share", "opcm": "alpha"}.get(name, "density")
    rng = np.random.default_rng(0)
    base = {"fc/kernel": rng.normal(size=(6, 4)).astype(np.float32)}
    models = [{n: x + rng.normal(size=x.shape).astype(np.float32) for n, x in base.items()}] * 2
    models[1] = {n: 2 * x for n, x in models[0].items()}

    def run(share):
        stage = jm.get(name)(**{argument: share})
        method = jm.chain(jm.add(), stage) if name == "low_rank" else stage
        return jm.merge(method, base, models)["fc/kernel"]

    shares = [0.3, 0.5, 1.0]
    for actual, share in zip(jax.vmap(run)(jnp.array(shares)), shares, strict=True):
        np.testing.assert_allclose(actual, run(share), atol=2e-5)


@pytest.mark.parametrize("name", ["magmax", "ties", "karcher", "sce", "regmean"])
def test_one_tree_of_stacked_models(name):
    extras = None
    if name == "regmean":
        extras = [{"gram": {"w": np.eye(4, dtype=np.float32) * (1 + t)}} for t in range(3)]
    method = jm.get(name)()
    actual = jm.merge(method, BASE, STACKED, extras=extras)
    expected = jm.merge(method, BASE, MODELS, extras=extras)
    for n in BASE:
        np.testing.assert_array_equal(actual[n], expected[n])
    named = jm.merge(method, BASE, dict(zip("abc", MODELS, strict=True)), extras=extras)
    np.testing.assert_array_equal(named["w"], expected["w"])


@pytest.mark.parametrize("name", ["magmax", "karcher", "sce", "pcb", "iso_cts", "ties", "dare"])
def test_scan_over_update(name):
    method, key = jm.get(name)(), jax.random.key(3)
    base = {n: jnp.asarray(x) for n, x in BASE.items()}
    state = jm.init(method, base, key=key, models=3)
    step = lambda state, model: (jm.update(method, state, base, model), None)
    actual = jm.merged(method, jax.lax.scan(step, state, STACKED)[0], base)
    expected = jm.merge(method, BASE, MODELS, key=key)
    np.testing.assert_allclose(actual["w"], expected["w"], atol=1e-6)


@pytest.mark.parametrize("name", ["karcher", "sce", "iso_cts", "regmean"])
def test_a_state_that_grows_is_refused_by_name_in_a_loop(name):
    base = {n: jnp.asarray(x) for n, x in BASE.items()}
    method = jm.get(name)()
    extra = {"gram": {"w": np.eye(4, dtype=np.float32)}} if name == "regmean" else {}
    step = lambda state, model: jm.update(method, state, base, model, **extra)
    for loop in (
        lambda s: jax.lax.scan(lambda s, m: (step(s, m), None), s, STACKED),
        lambda s: jax.lax.fori_loop(0, 3, lambda i, s: step(s, MODELS[0]), s),
    ):
        with pytest.raises(ValueError, match=r"keeps more with every model \(leaf 'w'\).*models="):
            loop(jm.init(method, base))
    jax.jit(step)(jm.init(method, base), MODELS[0])  # one model in jit is no loop


def test_room_for_models_is_filled_one_by_one():
    method = jm.karcher()
    state = jm.init(method, BASE, models=2)
    state = jm.update(method, state, BASE, MODELS[0])
    alone = jm.merge(method, BASE, MODELS[:1])["w"]
    np.testing.assert_allclose(jm.merged(method, state, BASE)["w"], alone, atol=1e-6)
    state = jm.update(method, state, BASE, MODELS[1])
    with pytest.raises(ValueError, match="made for 2 models"):
        jm.update(method, state, BASE, MODELS[2])


def test_a_fold_whose_first_model_decides_its_form_is_refused_by_name():
    with pytest.raises(ValueError, match=r"regmean.*update once before lax\.scan"):
        jm.init(jm.regmean(), BASE, models=3)


def test_a_bfloat16_base_with_float32_models(tmp_path):
    from safetensors.numpy import load_file, save_file

    base = {"w": np.float32([1, 2, 3]).astype(ml_dtypes.bfloat16)}
    models = [{"w": np.float32([1.25, 2, -4])}, {"w": np.float32([1, 8.5, 3.003])}]
    save_file(base, tmp_path / "base.safetensors")
    paths = []
    for t, m in enumerate(models):
        paths.append(tmp_path / f"{t}.safetensors")
        save_file(m, paths[-1])
    jm.merge_files(
        jm.magmax(1.0), base=tmp_path / "base.safetensors", models=paths, out=tmp_path / "out"
    )
    actual = jm.merge(jm.magmax(1.0), base, models)["w"]
    assert actual.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(actual, load_file(tmp_path / "out" / "model.safetensors")["w"])
    with pytest.raises(ValueError, match="found int32"):
        jm.merge(jm.magmax(), base, [{"w": np.arange(3, dtype=np.int32)}])


STATE = jm.init(jm.disjoint_mean(), BASE)
WRONG = {
    "base first": (lambda: jm.merge(BASE, jm.magmax(), MODELS), "The method comes first"),
    "models before the base": (lambda: jm.merge(jm.magmax(), MODELS, BASE), "the order is"),
    "base before the state": (lambda: jm.merged(jm.magmax(), BASE, STATE), "the order is"),
    "model before the state": (
        lambda: jm.update(jm.magmax(), BASE, STATE, MODELS[0]), "jm.update(method, state",
    ),
    "a number as key": (lambda: jm.merge(jm.dare(), BASE, MODELS, key=0), "jax.random.key(seed)"),
    "another method's state": (
        lambda: jm.update(jm.ema(), STATE, BASE, MODELS[0]), "folds are disjoint_mean",
    ),
    "another method's cells of one form": (
        lambda: jm.merged(jm.average(), jm.init(jm.magmax(), BASE), BASE), "max_magnitude",
    ),
    "a mesh of training": (
        lambda: jm.pmerge(jm.magmax(), BASE, MODELS, jax.make_mesh((1,), ("fsdp",))),
        "none is named 'models'",
    ),
    "a rule with another axis": (
        lambda: jm.shard(BASE, jm.mesh(1, 1), [(".*", jax.sharding.PartitionSpec("fsdp"))]),
        "which the mesh lacks",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_went_wrong_is_said(name):
    call, says = WRONG[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400
