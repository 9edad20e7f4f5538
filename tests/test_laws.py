"""Every law of `laws.py` on every registered method."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from laws import close, on_device, same
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.core.hyperparameters import Listed
from jaxmerge.drivers import leaf as compiled
from jaxmerge.drivers.files.api import merge_jobs
from jaxmerge.recipes.native import Recipe
from jaxmerge.recipes.plan import Models

pytestmark = pytest.mark.usefixtures("strict")

NAMES = [name for name, _ in laws.stages()]


@pytest.fixture
def case(request) -> laws.Case:
    return laws.case_of(request.param)


@pytest.fixture(params=["few leaves", pytest.param("all leaves", marks=pytest.mark.slow)])
def reduced(request, case) -> laws.Case:
    """The case where whatever is derived is compiled for its leaves anew: on few, or (slow) all."""
    return case.few() if request.param == "few leaves" else case


def every(test):
    return pytest.mark.parametrize("case", NAMES, indirect=True)(test)


def those(wanted):
    """Only cases of which `wanted(name)` holds; they are claims, not skips."""
    return pytest.mark.parametrize("case", [n for n in NAMES if wanted(n)], indirect=True)


@functools.cache
def batch(name: str) -> dict:
    return laws.case_of(name).merge()


@every
def test_names_shapes_dtypes_and_array_kind_are_kept(case):
    out = batch(case.name)
    assert list(out) == list(case.base)
    for n, x in out.items():
        assert (x.shape, x.dtype) == (case.base[n].shape, case.base[n].dtype), n
        assert isinstance(x, np.ndarray), n
        assert np.isfinite(x).all(), n
    assert out["position_ids"] is case.base["position_ids"]  # integers: the base's, untouched
    device = case.merge(on_device(case.base), on_device(case.models))
    assert all(isinstance(x, jax.Array) for x in device.values())
    same(device, out)


@every
def test_a_stream_gives_the_bits_of_the_batch(case):
    same(laws.stream(case)[1], batch(case.name))


@those(lambda name: laws.case_of(name).local)
def test_leaf_by_leaf_gives_the_bits_of_the_whole(case):
    for n in case.grid:
        pick = lambda tree: {n: tree[n]}  # noqa: B023
        extras = [
            {k: {m: x for m, x in tree.items() if m == n} for k, tree in case.side(t).items()}
            for t in range(len(case.models))
        ]
        alone = case.merge(pick(case.base), [pick(m) for m in case.models], extras=extras)
        same(alone, {n: batch(case.name)[n]})


@every
def test_the_order_of_leaves_does_not_matter(case):
    back = lambda tree: dict(reversed(tree.items()))
    out = case.merge(back(case.base), [back(m) for m in case.models])
    same({n: out[n] for n in case.base}, batch(case.name))


@every
def test_a_leaf_without_entries_comes_back(case):
    chosen = ("block_0/query/kernel", "norm/scale")
    pick = lambda tree: {n: tree[n] for n in chosen if n in tree}
    extras = [{k: pick(x) for k, x in case.side(t).items()} for t in range(len(case.models))]
    out = case.merge(
        pick(case.base) | laws.EMPTY, [pick(m) | laws.EMPTY for m in case.models], extras=extras
    )
    assert out["empty/kernel"].shape == (0, 4)
    alone = case.merge(pick(case.base), [pick(m) for m in case.models], extras=extras)
    same({n: out[n] for n in alone}, alone)


@every
def test_jit_of_the_whole_equals_eager(reduced):
    run = jax.jit(
        lambda base, models, extras, key: reduced.merge(
            base, models, extras=extras or None, key=key
        )
    )
    out = run(
        on_device(reduced.base),
        on_device(reduced.models),
        on_device(reduced.extras or []),
        reduced.key,
    )
    close(out, reduced.merge(), 2e-6)


@every
def test_sharded_leaves_give_the_same_and_stay_sharded(reduced):
    mesh = jax.make_mesh((2,), ("params",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def place(x):
        cut = x.ndim > 1 and x.shape[-1] % 2 == 0
        spec = PartitionSpec(*[None] * (x.ndim - 1), "params") if cut else PartitionSpec()
        return jax.device_put(x, NamedSharding(mesh, spec))

    base = {n: place(x) for n, x in reduced.base.items()}
    out = reduced.merge(base, [{n: place(x) for n, x in m.items()} for m in reduced.models])
    close(out, reduced.merge(), 2e-6)
    assert all(len(x.sharding.device_set) == 2 for x in out.values())


@every
def test_states_of_disjoint_models_join(case):
    if any(p.fold.combine is None for p in case.grid.values()):
        state = jm.init(case.method, case.base, key=case.key)
        with pytest.raises(ValueError, match="cannot join states"):
            jm.join(case.method, state, state, case.base)
        return
    parts = []
    for t, row in enumerate(case.models):
        state = jm.init(case.method, case.base, key=case.key)
        shifted = jm.MergeState(state.step + t, state.key, state.cells)
        state = jm.update(case.method, shifted, case.base, row, **case.side(t))
        parts.append(jm.MergeState(state.step - t, state.key, state.cells))
    join = lambda a, b: jm.join(case.method, a, b, case.base)
    left = functools.reduce(join, parts)
    right = functools.reduce(lambda a, b: join(b, a), reversed(parts))
    for state in (left, right):
        assert int(state.step) == len(case.models)
        close(jm.merged(case.method, state, case.base), batch(case.name), 2e-6)


@every
def test_one_compilation_a_shape(case):
    functions = [f for f in vars(compiled).values() if hasattr(f, "_cache_size")]
    assert len(functions) >= 8
    case.merge()  # not `batch`: its functions may have been forgotten since
    laws.stream(case)
    before = [f._cache_size() for f in functions]
    fresh = lambda tree: tree | {"another/query/kernel": tree["block_0/query/kernel"][::-1].copy()}
    models = [fresh(m) for m in case.models]
    extras = [
        {
            k: tree | {"another/query/kernel": tree["block_0/query/kernel"]}
            for k, tree in case.side(t).items()
        }
        for t in range(len(models))
    ]
    rebuilt = case._replace(
        method=laws.case_of.__wrapped__(case.name).method, base=fresh(case.base), extras=extras
    )
    rebuilt.merge(models=models)
    laws.stream(rebuilt, models)
    assert [f._cache_size() for f in functions] == before


@every
def test_bfloat16_is_computed_in_float32_and_rounded_once(reduced):
    low = lambda tree: {
        n: x.astype(jnp.bfloat16) if n in laws.SHAPES else x for n, x in tree.items()
    }
    up = lambda tree: {n: x.astype(np.float32) if n in laws.SHAPES else x for n, x in tree.items()}
    base, models = low(reduced.base), [low(m) for m in reduced.models]
    out = reduced.merge(base, models)
    assert all(x.dtype == jnp.bfloat16 for n, x in out.items() if n in laws.SHAPES)
    same(out, low(reduced.merge(up(base), [up(m) for m in models])))


@every
def test_float64_is_computed_in_float64(case, x64):
    few = case.few()
    up = lambda tree: {n: x.astype(np.float64) for n, x in tree.items()}
    out = few.merge(up(few.base), [up(m) for m in few.models])
    assert all(x.dtype == np.float64 for x in out.values())
    if not case.stochastic:  # random bits differ between the widths
        close(out, few.merge(), 2e-5)


@every
def test_no_change_merges_to_no_change(case):
    close(case.merge(models=[dict(case.base) for _ in case.models]), case.base, 1e-6)


@every
def test_ties_and_rank_deficient_matrices_stay_finite(case):
    one = laws.model(5, case.base)
    flat = {
        n: np.broadcast_to(x.mean(-1, keepdims=True), x.shape).copy() if x.ndim else x
        for n, x in one.items()
        if n in laws.SHAPES
    } | {"position_ids": one["position_ids"]}
    for row in (one, flat):
        out = case.merge(models=[row for _ in case.models])
        assert all(np.isfinite(x).all() for x in out.values())


@every
def test_one_model_alone(case, reduced):
    low, high = case.method.models
    short = f"needs at least {low} models, got 1" if low > 1 else None
    short = f"has numbers for {high} models, got 1" if isinstance(high, Listed) else short
    if short:
        with pytest.raises(ValueError, match=short):
            case.merge(models=case.models[:1], extras=None)
        return
    out = reduced.merge(models=reduced.models[:1], extras=reduced.extras and reduced.extras[:1])
    assert all(np.isfinite(x).all() for x in out.values())
    if not case.stochastic:
        floats = [n for n in out if n in laws.SHAPES]
        gap = max(np.abs(out[n] - reduced.models[0][n]).max() for n in floats)
        assert (gap < 1e-6) == (case.name in laws.FIXED_POINT), gap


def test_one_model_alone_with_a_number_of_its_own():
    """What `test_one_model_alone` refuses to the cases with numbers for three models."""
    model = laws.model(5, laws.case_of("mean").base)
    for method in (jm.linear((2.0,), normalize=True), jm.linear((1.0,))):
        same(jm.merge(method, None, [model]), model)


@those(lambda name: not laws.case_of(name).stochastic)
def test_the_order_of_models_matters_where_it_is_said_to(case):
    back = lambda rows: None if rows is None else rows[::-1]
    out = case.merge(models=back(case.models), extras=back(case.extras))
    gap = max(np.abs(out[n] - batch(case.name)[n]).max() for n in laws.SHAPES)
    assert (gap > 1e-6) == (case.name in laws.ORDERED), gap


@every
def test_randomness_comes_from_the_key_alone(case):
    again = case.merge(key=jax.random.key(7))
    same(again, batch(case.name))
    other = case.merge(key=jax.random.key(8))
    differs = any((other[n] != again[n]).any() for n in laws.SHAPES)
    assert differs == case.stochastic
    if case.stochastic:
        with pytest.raises(ValueError, match=r"random numbers: pass key=jax\.random\.key"):
            case.merge(key=None)


def _has_factor(name: str) -> bool:
    factory = jm.get(name.split("-")[0])
    return "factor" in inspect.signature(factory).parameters and name in jm.REGISTRY


@those(_has_factor)
def test_vmap_over_factors_equals_one_by_one(case):
    factory = jm.get(case.factory)
    example = laws.EXAMPLES.get(case.factory, [{}])[0]

    def run(factor):
        stage = factory(**{**example, "factor": factor})
        method = jm.chain(stage, jm.mean()) if isinstance(stage, jm.Transform) else stage
        return jm.merge(method, few.base, few.models, key=case.key, extras=few.extras)

    few = case.few()
    factors = jnp.array([0.1, 0.7])
    many = jax.vmap(run)(factors)
    for i, factor in enumerate(factors):
        close({n: x[i] for n, x in many.items()}, run(factor), 2e-6)


@every
def test_gradients_are_finite(case):
    few = case.few()

    def loss(models):
        return sum(jnp.vdot(x, x) for x in few.merge(models=models).values())

    grads = jax.grad(loss)(jax.tree.map(jnp.asarray, few.models))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


@every
def test_methods_of_one_call_are_equal_and_compiled_once(case):
    """As a static argument and as a pytree of its numbers, a method built anew is the old one."""
    again = laws.case_of.__wrapped__(case.name).method
    assert again == case.method
    assert hash(again) == hash(case.method)
    few, calls = case.few(), []

    def run(method, models):
        calls.append(method)
        return few._replace(method=method).merge(models=models)

    for function in (jax.jit(run, static_argnums=0), jax.jit(run)):
        calls.clear()
        for method in (case.method, again):
            function.trace(method, on_device(few.models))
        assert len(calls) == 1


@pytest.mark.slow
@every
def test_a_method_as_an_argument_of_jit_merges_to_the_same(case):
    few = case.few()
    run = lambda method, models: few._replace(method=method).merge(models=models)
    for options in ({"static_argnums": 0}, {}):
        close(jax.jit(run, **options)(few.method, on_device(few.models)), few.merge(), 2e-6)


def _arguments(name: str) -> dict | None:
    """The arguments of a case, and the axis that a recipe would else take from the family."""
    factory, _, number = name.partition("-")
    example = laws.EXAMPLES.get(factory, [{}])[int(number or 0)]
    if callable(example):
        return None
    axis = inspect.signature(jm.get(factory)).parameters.get("axis")
    return example if axis is None else {"axis": axis.default} | example


@those(lambda name: _arguments(name) is not None and not laws.case_of(name).extras)
def test_a_recipe_merges_files_to_the_same_bits(case, tmp_path):
    chosen = ("block_0/query/kernel", "norm/scale")
    pick = lambda tree: {n: tree[n] for n in chosen if n in tree}

    def saved(tree, name):
        save_file(pick(tree), tmp_path / f"{name}.safetensors")
        return str(tmp_path / f"{name}.safetensors")

    stage = {case.factory: _arguments(case.name)}
    transform = isinstance(jm.get(case.factory)(**_arguments(case.name)), jm.Transform)
    recipe = Recipe(
        base=saved(case.base, "base"),
        models=[saved(m, f"model_{t}") for t, m in enumerate(case.models)],
        method=[stage, "mean"] if transform else stage,
        seed=7,
    )
    merge_jobs(recipe.plan(Models(near=[tmp_path])).jobs, tmp_path / "out")
    leaves = load_file(tmp_path / "out" / "model.safetensors")
    expected = case.merge(pick(case.base), [pick(m) for m in case.models])
    same({n: leaves[n] for n in expected}, expected)


@pytest.mark.parametrize(
    "names",
    [("magmax", "ties", "dare", "opcm", "sce"), pytest.param(NAMES, marks=pytest.mark.slow)],
)
def test_states_go_through_an_orbax_checkpoint(names, tmp_path):
    import orbax.checkpoint as ocp

    states = {name: laws.stream(laws.case_of(name), laws.case_of(name).models)[0] for name in names}
    raw = jax.tree.map(_storable, states)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", raw)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "states", raw)
    for name, state in states.items():
        case = laws.case_of(name)
        back = jax.tree.map(_restored, state, restored[name])
        expected = jm.merged(case.method, state, case.base)
        same(jm.merged(case.method, back, case.base), expected)


def _storable(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _restored(like, x):
    key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(x) if key else x
