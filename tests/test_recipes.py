"""Recipes: methods, chains, rules, values; what is wrong is said in one line."""

from __future__ import annotations

import numpy as np
import pytest
import small
from small import ABC, close, read_json, run

import jaxmerge as jm
from jaxmerge.cli import merge as command
from jaxmerge.errors import UserError
from jaxmerge.recipes.values import Where, constant, reader


@pytest.fixture
def family(tmp_path, monkeypatch):
    return small.write(tmp_path, monkeypatch)


def test_a_method_by_name_mapping_and_chain(family):
    models = [family[n] for n in "abc"]
    want = jm.merge(jm.ties(0.3, factor=0.5), family["base"], models)
    for i, method in enumerate([
        {"ties": {"density": 0.3, "factor": 0.5}},
        {"name": "ties", "density": 0.3, "factor": 0.5},
        [{"trim": 0.3}, "disjoint_mean", {"scale": 0.5}],
    ]):  # fmt: skip
        close(run({**ABC, "method": method}, f"o{i}"), want)
    close(run({**ABC, "method": "mean"}, "mean"), jm.merge(jm.mean(), family["base"], models))


def test_only_these_leaves_in_one_line(family):
    got = run({**ABC, "method": "magmax", "rules": {"only": "mlp"}})
    want = jm.merge(jm.magmax(), family["base"], [family[n] for n in "abc"])
    close(got, {n: want[n] if "mlp" in n else x for n, x in family["base"].items()})


def test_ordered_rules(family):
    rules = [{"match": "embed|norm", "method": "keep_base"}, {"match": "attn", "method": "mean"}]
    got = run({**ABC, "method": {"scale_": 1}, "rules": rules} | {"method": "magmax"})
    models = [family[n] for n in "abc"]
    mean = jm.merge(jm.mean(), family["base"], models)
    magmax = jm.merge(jm.magmax(), family["base"], models)
    pick = lambda n: family["base"] if "embed" in n or "norm" in n else None
    want = {n: (pick(n) or (mean if "attn" in n else magmax))[n] for n in mean}
    close(got, want)


def test_values_by_model_layer_and_name(family):
    base, models = family["base"], [family[n] for n in "abc"]
    deltas = lambda n: [m[n] - base[n] for m in models]
    depth = lambda n: int(n.split(".")[2]) / 2 if "layers" in n else 0.0
    got = run({**ABC, "method": {"linear": {"weights": [0.1, 0.2, 0.3]}}}, "a1")
    weighted = lambda n, w: base[n] + sum(x * d for x, d in zip(w, deltas(n), strict=True))
    close(got, {n: weighted(n, [0.1, 0.2, 0.3]) for n in base})
    got = run({**ABC, "method": ["mean", {"scale": {"gradient": [0, 1, 0.5]}}]}, "a2")
    factor = lambda n: np.interp(depth(n), [0, 0.5, 1], [0, 1, 0.5])
    close(got, {n: base[n] + factor(n) * np.mean(deltas(n), 0) for n in base})
    got = run({**ABC, "method": {"task_arithmetic": {"factor": [
        {"match": "mlp", "value": [0, 1]}, {"value": 0.25},
    ]}}}, "a3")  # fmt: skip
    factor = lambda n: depth(n) if "mlp" in n else 0.25
    close(got, {n: base[n] + factor(n) * np.sum(deltas(n), 0) for n in base})
    got = run({**ABC, "method": {"linear": {"weights": [0.5, {"gradient": [0, 1]}, 0]}}}, "a4")
    close(got, {n: weighted(n, [0.5, depth(n), 0]) for n in base})


def test_no_base_python_recipes_and_dtype(family):
    with open("r.py", "w") as file:
        file.write(
            "from jaxmerge.recipes.native import Recipe\n"
            "recipe = Recipe(models=['a', 'b'], method={'linear': {'weights': [0.5, 0.5]}},\n"
            "                out_dtype='bfloat16')\n"
        )
    command.run("r.py", "out", quiet=True)
    from jaxmerge.io.sources import open_source

    got = open_source("out")
    assert read_json("out/config.json")["dtype"] == "bfloat16"
    for n in got:
        want = (family["a"][n] + family["b"][n]) / 2
        np.testing.assert_allclose(got[n].astype(np.float32), want, rtol=2**-8)


WRONG = {
    "unknown key": ({**ABC, "method": "mean", "modles": []}, "did you mean models"),
    "unknown method": ({**ABC, "method": "magmx"}, "did you mean magmax"),
    "misspelt argument": ({**ABC, "method": {"ties": {"densty": 0.2}}}, "did you mean density"),
    "no argument": ({**ABC, "method": {"linear": {}}}, "linear"),
    "out of range": ({**ABC, "method": {"ties": {"density": 2}}}, "density must be in"),
    "a word for a number": ({**ABC, "method": {"ties": {"density": "x"}}}, "density"),
    "no method": (ABC, "needs a method"),
    "no models": ({"method": "mean"}, "no models"),
    "models no list": ({"models": "a", "method": "mean"}, "must be a list"),
    "two merges": ({**ABC, "method": ["mean", "add"]}, "exactly one Merge"),
    "a transform": ({**ABC, "method": {"scale": 1}}, "merges nothing"),
    "bad regex": ({**ABC, "method": "mean", "rules": {"only": "("}}, "no regular expression"),
    "idle rule": (
        {**ABC, "method": "mean", "rules": [{"match": "mlpp", "method": "add"},
                                            {"match": "mlp", "method": "add"},
                                            {"match": "atn", "method": "add"}]},
        r"rules: \[0\].match 'mlpp', \[2\].match 'atn' matches none of the \d+ leaves",
    ),
    "idle only": ({**ABC, "method": "mean", "rules": {"only": "mpl"}}, "only 'mpl' matches none"),
    "rule without method": ({**ABC, "rules": [{"match": "x"}]}, "no method"),
    "uncovered leaves": ({**ABC, "rules": [{"match": "mlp", "method": "mean"}]}, "no merge"),
    "global and varying": (
        {**ABC, "method": {"ties": {"factor": [0, 1]}}}, "looks at the whole model",
    ),
    "more weights than models": (
        {**ABC, "method": {"linear": {"weights": [0.1, 0.2, 0.3, 0.4]}}},
        r"weights has 4 values for 3 models: give one .* is {gradient: \[...\]}",
    ),
    "fewer weights than models": (
        {**ABC, "method": {"task_arithmetic": {"factor": 0.5, "weights": [0.5, 1]}}},
        "weights has 2 values for 3 models",
    ),
    "weights of some leaves": (
        {**ABC, "method": {"linear": {"weights": [{"match": "mlp", "value": [0.1, 0.2]},
                                                  {"value": [0.1, 0.2, 0.3]}]}}},
        "weights has 2 values for 3 models",
    ),
    "a weight too few, one of them a gradient": (
        {**ABC, "method": {"linear": {"weights": [0.5, {"gradient": [0, 1]}]}}},
        "weights has 2 values for 3 models",
    ),
    "a list too long": ({**ABC, "method": {"linear": {"weights": {"models": [1]}}}}, "3 models"),
    "no such model": ({**ABC, "models": ["a", "bb"], "method": "mean"}, "no model 'bb'"),
    "seed": ({**ABC, "method": "mean", "seed": -1}, "seed must be"),
    "dtype": ({**ABC, "method": "mean", "out_dtype": "bfloat61"}, "did you mean bfloat16"),
    "too few": ({"base": "base", "models": ["a"], "method": "model_stock"}, "at least 2"),
    "mergekit: method": ({"merge_method": "tie", "models": []}, "did you mean ties"),
    "mergekit: key": ({"merge_method": "ties", "base_modle": "x", "models": []}, "base_model"),
    "mergekit: parameter": (
        {"merge_method": "ties", "base_model": "base",
         "models": [{"model": "a", "parameters": {"wieght": 1}}]}, "did you mean weight",
    ),
    "mergekit: no weight": (
        {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}]}, "no weight",
    ),
    "mergekit: no base": (
        {"merge_method": "ties", "models": [{"model": "a", "parameters": {"weight": 1}}]},
        "needs base_model",
    ),
    "weights that add up to 0": (
        {**ABC, "models": ["a", "b"],
         "method": {"linear": {"weights": [1, -1], "normalize": True}}}, "add up to 0",
    ),
    "mergekit: weights that add up to 0": (
        {"merge_method": "multislerp",
         "models": [{"model": m, "parameters": {"weight": 0}} for m in "ab"]}, "add up to 0",
    ),
    "mergekit: range": (
        {"merge_method": "passthrough",
         "slices": [{"sources": [{"model": "a", "layer_range": [0, 9]}]}]}, "has 3 layers",
    ),
    "mergekit: range backwards": (
        {"merge_method": "passthrough",
         "slices": [{"sources": [{"model": "a", "layer_range": [2, 1]}]}]}, "first, behind the",
    ),
}  # fmt: skip


def test_a_recipe_of_nothing_but_stages(family):
    inner = {"name": "inner", "base": "base", "models": ["a", "b"], "method": "average"}
    last = {"base": "base", "models": ["inner", "c"], "method": "average"}
    close(run({"stages": [inner, last]}), run({**last, "stages": [inner]}, "again"))
    with pytest.raises(UserError, match="needs a name"):
        run({"stages": [{**inner, "name": None}, last]}, "third")


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(family, name):
    recipe, says = WRONG[name]
    with pytest.raises((UserError, ValueError), match=says):
        run(recipe)


def test_a_filter_that_covers_nothing(family):
    parameters = {"weight": [{"filter": "mlp", "value": 1}]}
    recipe = {"merge_method": "linear", "models": [{"model": "a", "parameters": parameters}]}
    with pytest.raises(UserError, match=r"no weight for leaf 'model\.embed_tokens\.weight'"):
        run(recipe)


def test_values_are_read_once():
    where = Where("layers.1.mlp", 0.5)
    names = [where.name, "layers.1.attn"]
    assert constant(0.5, 3, "x") == 0.5
    assert constant([1, 2, 3], 3, "x") == (1.0, 2.0, 3.0)
    assert reader([0, 1], 3, "x", names)(where) == 0.5
    assert reader({"gradient": [0, 1, 5]}, 3, "x", names)(where) == 1.0
    assert reader([{"match": "mlp", "value": 2}, {"value": 3}], 3, "x", names)(where) == 2.0
    with pytest.raises(UserError, match=r"no value for 1 of 2 leaves, such as 'layers\.1\.mlp'"):
        reader([{"match": "attn", "value": 2}], 3, "x", names)
    idle = [{"match": "atn", "value": 1}, {"match": "mpl", "value": 2}, {"value": 3}]
    with pytest.raises(UserError, match="x: 'atn', 'mpl' matches none of the 2 leaves"):
        reader([0, 0, idle], 3, "x", names)
