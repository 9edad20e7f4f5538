"""Hostile recipes: YAML that explodes or builds objects, and any text or mapping at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from small import model

from jaxmerge.errors import UserError
from jaxmerge.recipes import mergekit_document, native
from jaxmerge.recipes.plain_yaml import parse_documents
from jaxmerge.recipes.plan import Models

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
HOSTILE = {
    "aliases that explode": (BOMB, "aliases expand"),
    "a python object": ("a: !!python/object/apply:os.system [ls]", "tag"),
    "a python name": ("a: !!python/name:os.system", "tag"),
    "an own tag": ("a: !thing {}", "tag"),
    "binary": ("a: !!binary aGVsbG8=", "tag"),
    "a set": ("a: !!set {x}", "tag"),
    "an alias of itself": ("a: &a [*a]", "contains itself"),
    "a key twice": ("models: [a]\nmodels: [b]", "twice"),
    "a key that is a list": ("? [a]\n: b", "plain word"),
    "deep": ("[" * 2000, "not YAML|levels deep"),
    "no end": ("a: [1, 2", "not YAML"),
    "an unknown alias": ("a: *b", "not YAML"),
    "control characters": ("a: \x00", "not YAML"),
    "too long": ("a: " + "x" * (1 << 20), "characters"),
    "a number without end": ("a: 0x" + "f" * 4000, "4,002 digits"),
    "a wrong date": ("a: 2020-99-99", "not YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml(name):
    text, says = HOSTILE[name]
    with pytest.raises(UserError, match=says):
        parse_documents(text)


@settings(max_examples=300, deadline=2000)
@given(st.text(alphabet="ab:-[]{}&*!|>#'\"\n ,?%@`0.1", max_size=80))
def test_any_text_is_read_or_refused(text):
    try:
        content = parse_documents(text)
        for part in content:
            native.documents(part)
    except UserError:
        pass


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(0, 1) | st.sampled_from(
        ["mean", "ties", "a", "base", "union", "scale", "keep_base", "layers"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["ties", "density", "match", "value", "method", "only", "name", "gradient",
                         "models", "weights", "linear", "weight", "filter", "model", "sources",
                         "layer_range", "parameters"]), inner, max_size=3,
    ),
    max_leaves=8,
)  # fmt: skip
keys = [*native.Recipe.__dataclass_fields__, *mergekit_document.KEYS]


@settings(max_examples=150, deadline=5000)
@given(st.dictionaries(st.sampled_from(keys), plain, max_size=5), st.sampled_from(["own", "mk"]))
def test_any_recipe_is_planned_or_refused(tmp_path_factory, recipe, kind):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    if not folder.exists():
        for i, name in enumerate(("base", "a")):
            (folder / name).mkdir(parents=True)
            save_file(model(i), folder / name / "model.safetensors")
    recipe = {"models": ["a"], "method": "mean"} | recipe
    if kind == "mk":
        recipe = {"merge_method": "ties", "models": [{"model": "a"}], "base_model": "base"} | {
            k: v for k, v in recipe.items() if k in mergekit_document.KEYS and k != "models"
        }
    try:
        for document in native.documents(recipe):
            document.plan(Models(near=[folder]))
    except ValueError:  # anything else would be ours
        pass


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "[0.1, .nan]", "{gradient: [.inf]}"])
def test_numbers_that_are_not_finite_are_refused_before_the_merge(tmp_path, value):
    save_file(model(0), tmp_path / "a.safetensors")
    text = "base: a.safetensors\nmodels: [a.safetensors]\nmethod: {task_arithmetic: {factor: %s}}\n"
    (tmp_path / "r.yaml").write_text(text % value)
    with pytest.raises(UserError, match="must be a number"):
        native.load(tmp_path / "r.yaml")[0].plan(Models([tmp_path]))


def test_more_models_than_a_program_is_compiled_for(tmp_path):
    many = "models: [" + "a," * 1001 + "]\n"
    (tmp_path / "r.yaml").write_text("base: a\nmethod: magmax\n" + many)
    with pytest.raises(UserError, match="1,001 models are named; at most 1,000"):
        native.load(tmp_path / "r.yaml")[0].plan(Models([tmp_path]))
