"""What cannot be merged is refused by one ValueError that names all of it and says what to do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import jaxmerge as jm

BASE = laws.model(0)
MODELS = [laws.model(1 + t, BASE) for t in range(3)]


def refused(*parts: str, error: type = ValueError):
    """The block raises, and every part is in the message."""
    import contextlib

    @contextlib.contextmanager
    def check():
        with pytest.raises(error) as caught:
            yield
        text = str(caught.value)
        missing = [part for part in parts if part not in text]
        assert not missing, f"{missing} not in: {text}"

    return check()


def without(tree: dict, name: str) -> dict:
    return {n: x for n, x in tree.items() if n != name}


def test_all_leaves_that_do_not_fit_are_named_with_both_shapes():
    wrong = without(MODELS[0], "norm/scale") | {
        "extra/kernel": np.zeros((2, 5), np.float32),
        "block_0/query/kernel": np.zeros((4, 6), np.float32),
        "logit_scale": np.zeros((), np.int32),
    }
    lines = (
        "missing leaf 'norm/scale' (base: float32[4])",
        "extra leaf 'extra/kernel' (float32[2,5])",
        "leaf 'block_0/query/kernel': found float32[4,6], expected float32[6,4]",
        "leaf 'logit_scale': found int32[], expected float32[]",
        "Give every model the leaves of the base, in its shapes, floats for floats.",
    )
    others = ("model 1 does not fit the base", "model 2 does not fit the base")
    with refused(*others, *lines):
        jm.merge(jm.mean(), BASE, [MODELS[0], wrong, wrong])
    state = jm.init(jm.mean(), BASE)
    with refused("the model does not fit the base", *lines):
        jm.update(jm.mean(), state, BASE, wrong)


def test_hundreds_of_misfits_are_counted():
    """A message is never more than a screen."""
    base = {f"layer_{i}": np.zeros(2, np.float32) for i in range(200)}
    first = [f"missing leaf 'layer_{i}' " for i in range(6)]
    with refused(*first, "and 194 more lines like these"):
        jm.merge(jm.mean(), base, [{}])
    with pytest.raises(ValueError, match="does not fit") as caught:
        jm.merge(jm.mean(), base, [{}] * 20)
    assert str(caught.value).count("\n") < 40
    bad = {n: np.full(2, np.nan, np.float32) for n in base}
    with pytest.raises(ValueError, match="NaN or Inf") as caught:
        jm.merge(jm.mean(), base, [bad])
    assert "and 188 more" in str(caught.value)


def test_names_that_differ_by_a_prefix():
    base = {f"layer_{i}/w": np.zeros(2, np.float32) for i in range(9)}
    model = {f"params/{n}": x for n, x in base.items()}
    with refused("its names begin with 'params/' where the base's have ''"):
        jm.merge(jm.mean(), base, [model])


def test_integer_leaves_must_fit_too_but_come_from_the_base():
    out = jm.merge(jm.mean(), BASE, MODELS)
    assert out["position_ids"] is BASE["position_ids"]
    assert (MODELS[0]["position_ids"] != BASE["position_ids"]).any()
    with refused("leaf 'position_ids': found int32[2], expected int32[3]"):
        jm.merge(jm.mean(), BASE, [MODELS[0] | {"position_ids": np.zeros(2, np.int32)}])


@pytest.mark.parametrize("where", [np, jnp])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_by_name_or_count_as_no_change(where, value):
    bad = [{n: where.array(x) for n, x in m.items()} for m in MODELS]
    base = {n: where.array(x) for n, x in BASE.items()}
    kernel = np.array(MODELS[1]["block_0/query/kernel"])
    kernel[0, :2] = value
    bad[1]["block_0/query/kernel"] = where.asarray(kernel)
    bad[2]["logit_scale"] = where.asarray(np.float32(value))
    lines = (
        "model 1, leaf 'block_0/query/kernel': 2 of 24 entries",
        "model 2, leaf 'logit_scale': 1 of 1 entries",
        'pass nonfinite="zero"',
    )
    with refused(*lines):
        jm.merge(jm.mean(), base, bad)
    state = jm.init(jm.mean(), base)
    with refused("model 0, leaf 'block_0/query/kernel': 2 of 24 entries"):
        jm.update(jm.mean(), state, base, bad[1])
    kernel = kernel.copy()
    kernel[0, :2] = BASE["block_0/query/kernel"][0, :2]
    still = [
        MODELS[0],
        MODELS[1] | {"block_0/query/kernel": kernel},
        MODELS[2] | {"logit_scale": BASE["logit_scale"]},
    ]
    for method in (jm.mean(), jm.ties(0.5)):
        laws.close(jm.merge(method, base, bad, nonfinite="zero"), jm.merge(method, BASE, still))
    with refused("the base, leaf 'block_0/query/kernel': 2 of 24 entries"):
        jm.merge(jm.mean(), base | {"block_0/query/kernel": bad[1]["block_0/query/kernel"]}, [base])


def test_large_finite_values_are_no_reason_to_refuse():
    huge = BASE | {"norm/scale": np.full(4, 3e38, np.float32)}  # its sum overflows
    out = jm.merge(jm.mean(), huge, [huge])
    np.testing.assert_array_equal(out["norm/scale"], huge["norm/scale"])


def test_the_number_of_models():
    with refused("mean() needs at least 1 model, got none"):
        jm.merge(jm.mean(), BASE, [])
    with refused("needs at least 1 model, got none"):
        jm.merged(jm.mean(), jm.init(jm.mean(), BASE), BASE)
    with refused("model_stock() needs at least 2 models, got 1"):
        jm.merge(jm.model_stock(), BASE, MODELS[:1])
    with refused("slerp() takes at most 2 models, got 3"):
        jm.merge(jm.slerp(), BASE, MODELS)
    with refused("linear(weights=(0.5, 0.5)) takes at most 2 models, got 3"):
        jm.merge(jm.linear([0.5, 0.5]), BASE, MODELS)


def test_lists_with_a_number_for_each_model():
    for method in (jm.ties(density=[0.5, 0.5]), jm.dare(density=(0.1, 0.2)), jm.linear([1, 2])):
        with refused("takes at most 2 models, got 3"):
            jm.merge(method, BASE, MODELS, key=jax.random.key(0))
    with refused("at most 2 models"):
        jm.merge(jm.chain(jm.scale([1.0, 2.0]), jm.add()), BASE, MODELS)
    with refused("scale(factor=(1.0, 2.0))", "put it before the merge"):
        jm.chain(jm.add(), jm.scale([1.0, 2.0]))


def test_one_model_where_a_list_is_expected():
    with refused("models must be a list of models", "[model]"):
        jm.merge(jm.mean(), BASE, MODELS[0])
    with refused("models must be a list of references", "['a.safetensors']"):
        jm.merge_files(jm.mean(), base=None, models="a.safetensors", out="out")


def test_files_with_non_finite_values_are_all_named(tmp_path):
    from safetensors.numpy import save_file

    bad = {n: np.array(x) for n, x in MODELS[1].items()}
    bad["norm/scale"][0], bad["block_0/query/kernel"][0, :2] = np.nan, np.inf
    for name, tree in {"base": BASE, "a": MODELS[0], "bad": bad}.items():
        save_file(tree, tmp_path / f"{name}.safetensors")
    base, a, wrong = (str(tmp_path / f"{n}.safetensors") for n in ("base", "a", "bad"))
    lines = (
        f"{wrong}, leaf 'block_0/query/kernel': 2 of 24 entries",
        f"{wrong}, leaf 'norm/scale': 1 of 4 entries",
        'pass nonfinite="zero"',
    )
    out = tmp_path / "out"
    for method in (jm.mean(), jm.ties(), jm.pcb()):
        with refused(*lines):
            jm.merge_files(method, base=base, models=[a, wrong], out=out, force=True)
    with refused('nonfinite must be "raise" or "zero"'):
        jm.merge_files(jm.mean(), base=base, models=[a], out=out, nonfinite="ignore", force=True)


@pytest.mark.parametrize("value", ["half", None])
def test_densities_that_are_no_numbers(value):
    with refused("density must be a number"):
        jm.ties(density=value)


def test_one_number_where_a_list_has_no_meaning():
    for name, argument in (("slerp", "t"), ("interpolation", "t"), ("dop", "alpha")):
        with refused(f"{argument} must be one number for all models, got (0.2, 0.3)"):
            jm.get(name)(**{argument: (0.2, 0.3)})
    for method in (jm.slerp, jm.magmax):
        with refused("must be a number", "'half'"):
            method("half")


def test_more_models_than_a_counter_holds():
    tiny = {"w": np.ones(2, np.float32)}
    with refused("ties() takes at most 255 models, got 256"):
        jm.merge(jm.ties(), tiny, [tiny] * 256)
    state = jm.init(jm.ties(), tiny)
    full = jm.MergeState(jnp.int32(255), None, state.cells)
    with refused("ties() takes at most 255 models, got 256"):
        jm.update(jm.ties(), full, tiny, tiny)


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan"), 2])
@pytest.mark.parametrize("name", ["trim", "ties", "dare", "della", "breadcrumbs", "drop_random"])
def test_densities_outside_the_unit_interval(name, density):
    words = "a number, or one for each model" if density != density else "in [0, 1]"
    with refused(f"density must be {words}"):
        jm.get(name)(density=density)


def test_a_stochastic_method_needs_a_key():
    for run in (lambda m: jm.merge(m, BASE, MODELS), lambda m: jm.init(m, BASE)):
        with refused("dare() draws random numbers: pass key=jax.random.key(seed)"):
            run(jm.dare())


def test_a_stochastic_method_behind_a_route_needs_a_key_too():
    method = jm.by_leaf(lambda name, like: jm.dare() if "query" in name else jm.mean())
    with refused("'block_0/query/kernel'", "random numbers", "key=jax.random.key(seed)"):
        jm.merge(method, BASE, MODELS)


def test_duplicate_names_and_leaves_that_are_no_arrays():
    twice = {"a": {"b": np.zeros(2)}, "a/b": np.zeros(2)}
    with refused("two leaves are called 'a/b': ['a']['b'] and ['a/b']; rename one"):
        jm.merge(jm.mean(), twice, [twice])
    with refused("leaf 'note' is a str, not an array", "leaf 'b' is a object"):
        jm.merge(jm.mean(), {"w": np.zeros(2), "note": "hello", "b": object()}, [BASE])
    buckeroo = {n: np.zeros(1, np.float32) for n in ("plumless", "buckeroo")}  # one CRC-32
    with refused("'plumless'", "'buckeroo'", "share a random key"):
        jm.merge(jm.dare(), buckeroo, [buckeroo], key=jax.random.key(0))


def test_what_is_no_merge():
    with refused("trim(density=0.2) is a Transform", "jm.chain(", error=TypeError):
        jm.merge(jm.trim(0.2), BASE, MODELS)
    with refused("Expected a Merge such as jm.magmax(0.5), got 'ties'", error=TypeError):
        jm.merge("ties", BASE, MODELS)
    with refused("No method is named 'magmx': did you mean magmax?", error=KeyError):
        jm.get("magmx")
    with refused("densty", "density", error=TypeError):
        jm.ties(densty=0.2)
    with refused('nonfinite must be "raise" or "zero", got \'ignore\'.'):
        jm.merge(jm.mean(), BASE, MODELS, nonfinite="ignore")


def test_side_information():
    with refused("fisher_merging() needs side information ['fisher']", "model 0 has none"):
        jm.merge(jm.fisher_merging(), BASE, MODELS)
    with refused("extras has 1 entries for 3 models"):
        jm.merge(jm.fisher_merging(), BASE, MODELS, extras=[{"fisher": BASE}])
    with refused("about model 0 does not fit the base", "fisher of unknown leaf 'nrm/scale'"):
        extra = {"fisher": {"nrm/scale": np.ones(4, np.float32)}}
        jm.merge(jm.fisher_merging(), BASE, MODELS, extras=[extra] * 3)


def test_states_of_another_base():
    state = jm.init(jm.mean(), without(BASE, "norm/scale"))
    with refused("made for another base", "no cell for leaf 'norm/scale'"):
        jm.update(jm.mean(), state, BASE, MODELS[0])
    with refused("a cell for 'norm/scale', which the base lacks"):
        jm.merged(jm.mean(), jm.init(jm.mean(), BASE), without(BASE, "norm/scale"))
    with refused("init needs the base"):
        jm.init(jm.mean(), None)


def test_a_leaf_of_less_precision_is_taken_and_the_base_says_the_dtype():
    models = [{**m, "logit_scale": np.asarray(m["logit_scale"], np.float16)} for m in MODELS]
    merged = jm.merge(jm.magmax(), BASE, models)
    assert merged["logit_scale"].dtype == np.float32
