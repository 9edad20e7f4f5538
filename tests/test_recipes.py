"""Recipes: own format, values, rules, vocabularies, slices, stages, hostile YAML, the command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.commands import merge as command
from jaxmerge.errors import UserError
from jaxmerge.recipes import schema
from jaxmerge.recipes.plan import Models
from jaxmerge.recipes.reading import parse_documents
from jaxmerge.recipes.values import Where, constant, reader

SHAPES = {
    "model.embed_tokens.weight": (8, 4),
    **{f"model.layers.{i}.{part}.weight": (4, 4) for i in range(3) for part in ("attn", "mlp")},
    "model.norm.weight": (4,),
}
NAMES = ("base", "a", "b", "c")


def read_json(path):
    return json.loads(Path(path).read_text())


def model(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def tokenizer(tokens, special=()):
    added = [{"id": tokens.index(t), "content": t, "special": True} for t in special]
    vocab = {t: i for i, t in enumerate(tokens)}
    return {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": tokens[0]},
            "added_tokens": added}  # fmt: skip


@pytest.fixture
def family(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "cache"))
    for i, name in enumerate(NAMES):
        (tmp_path / name).mkdir()
        save_file(model(i), tmp_path / name / "model.safetensors")
        config = {"model_type": "toy", "num_hidden_layers": 3, "vocab_size": 8,
                  "layer_types": ["x", "y", "z"], "dtype": "float32"}  # fmt: skip
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    return {name: model(i) for i, name in enumerate(NAMES)}


def run(recipe, out="out", **options):
    with open("recipe.yaml", "w") as file:
        file.write(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
    command.run("recipe.yaml", out, quiet=True, **options)
    return load_file(f"{out}/model.safetensors")


def close(got, want):
    assert set(got) == set(want)
    for n in want:
        np.testing.assert_allclose(got[n], want[n], atol=2e-6, err_msg=n)


ABC = {"base": "base", "models": ["a", "b", "c"]}


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
            "from jaxmerge.recipes.schema import Recipe\n"
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
    "bad regex": ({**ABC, "method": "mean", "rules": {"only": "("}}, "no regex"),
    "rule without method": ({**ABC, "rules": [{"match": "x"}]}, "no method"),
    "uncovered leaves": ({**ABC, "rules": [{"match": "mlp", "method": "mean"}]}, "no merge"),
    "global and varying": (
        {**ABC, "method": {"ties": {"factor": [0, 1]}}}, "looks at the whole model",
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
    "mergekit: range": (
        {"merge_method": "passthrough",
         "slices": [{"sources": [{"model": "a", "layer_range": [0, 9]}]}]}, "has 3 layers",
    ),
}  # fmt: skip


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


# ---------------------------------------------------------------- hostile YAML


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
            schema.documents(part)
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
keys = [*schema.Recipe.__dataclass_fields__, *schema.mergekit.KEYS]


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
            k: v for k, v in recipe.items() if k in schema.mergekit.KEYS and k != "models"
        }
    try:
        for document in schema.documents(recipe):
            document.plan(Models(near=[folder]))
    except ValueError:  # anything else would be ours
        pass


def test_values_are_read_once():
    where = Where("layers.1.mlp", 0.5)
    assert constant(0.5, 3, "x") == 0.5
    assert constant([1, 2, 3], 3, "x") == (1.0, 2.0, 3.0)
    assert reader([0, 1], 3, "x")(where) == 0.5
    assert reader({"gradient": [0, 1, 5]}, 3, "x")(where) == 1.0
    assert reader([{"match": "mlp", "value": 2}, {"value": 3}], 3, "x")(where) == 2.0
    with pytest.raises(UserError, match="no value for leaf"):
        reader([{"match": "attn", "value": 2}], 3, "x")(where)


# ---------------------------------------------------------------- slices, stages, vocabularies


def test_frankenmerge(family):
    got = run({"merge_method": "passthrough", "slices": [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [1, 3], "parameters": {"scale": 1}}]},
    ]})  # fmt: skip
    a, b = family["a"], family["b"]
    want = {"model.embed_tokens.weight": a["model.embed_tokens.weight"],
            "model.norm.weight": b["model.norm.weight"]}  # fmt: skip
    for new, (source, old) in enumerate([(a, 0), (a, 1), (b, 1), (b, 2)]):
        for part in ("attn", "mlp"):
            want[f"model.layers.{new}.{part}.weight"] = source[f"model.layers.{old}.{part}.weight"]
    close(got, want)
    config = read_json("out/config.json")
    assert config["num_hidden_layers"] == 4
    assert config["layer_types"] == ["x", "y", "y", "z"]


def test_slices_that_merge(family):
    source = lambda name, weight: {
        "model": name, "layer_range": [0, 2], "parameters": {"weight": weight},
    }  # fmt: skip
    got = run({"merge_method": "linear", "slices": [
        {"sources": [source("a", 1), source("b", 3)]},
        {"sources": [source("c", 1), source("b", 1)]},
    ]})  # fmt: skip
    assert len(got) == 2 + 4 * 2
    n = "model.layers.{}.mlp.weight"
    want = family["a"][n.format(1)] / 4 + family["b"][n.format(1)] * 3 / 4
    np.testing.assert_allclose(got[n.format(1)], want, atol=1e-6)
    want = (family["c"][n.format(0)] + family["b"][n.format(0)]) / 2
    np.testing.assert_allclose(got[n.format(2)], want, atol=1e-6)


def test_stages_are_run_in_order_and_not_twice(family, capsys):
    stage = {"name": "first", "base": "base", "models": ["a", "b"], "method": "mean"}
    recipe = {"base": "base", "models": ["first", "c"], "method": "magmax", "stages": [stage]}
    got = run(recipe)
    base = family["base"]
    first = jm.merge(jm.mean(), base, [family["a"], family["b"]])
    close(got, jm.merge(jm.magmax(), base, [first, family["c"]]))
    time = lambda: __import__("os").stat("out.stages/first/model.safetensors").st_mtime_ns
    before = time()
    run(recipe, force=False, resume=True)
    assert time() == before
    close(run({**recipe, "stages": [{**stage, "method": "magmax"}]}, force=True),
          jm.merge(jm.magmax(), base, [jm.merge(jm.magmax(), base, [family["a"], family["b"]]),
                                       family["c"]]))  # fmt: skip


def test_mergekits_documents_are_stages(family):
    text = """
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
---
merge_method: task_arithmetic
base_model: base
models: [{model: first, parameters: {weight: 0.5}}]
"""
    got = run(text)
    first = {n: (family["a"][n] + family["b"][n]) / 2 for n in SHAPES}
    close(got, {n: family["base"][n] + (first[n] - family["base"][n]) / 2 for n in SHAPES})


TOKENS = {
    "base": ["<unk>", "the", "cat", "dog", "<s>"],
    "a": ["<unk>", "cat", "the", "emu", "<s>", "<im>"],
    "b": ["<unk>", "the", "emu", "fox"],
}


@pytest.fixture
def vocabularies(family):
    for i, (name, tokens) in enumerate(TOKENS.items()):
        shapes = SHAPES | {"model.embed_tokens.weight": (len(tokens), 4)}
        family[name] = model(10 + i, shapes)
        save_file(family[name], f"{name}/model.safetensors")
        special = ["<im>"] if name == "a" else ["<s>"] if name == "base" else []
        with open(f"{name}/tokenizer.json", "w") as file:
            json.dump(tokenizer(tokens, special), file)
    return family


def row(family, name, token):
    return family[name]["model.embed_tokens.weight"][TOKENS[name].index(token)]


def test_vocabularies_of_different_sizes_need_a_choice(vocabularies):
    with pytest.raises(UserError, match=r"5 rows in .*6 rows in .*tokenizer: union.*base"):
        run({"base": "base", "models": ["a", "b"], "method": "mean"})


def test_the_union_of_vocabularies(vocabularies):
    got = run({"base": "base", "models": ["a", "b"], "method": {"linear": {"weights": 0.5}},
               "tokenizer": {"source": "union", "pad_to_multiple_of": 4}})  # fmt: skip
    embed = got["model.embed_tokens.weight"]
    order = ["<unk>", "the", "cat", "dog", "<s>", "emu", "<im>", "fox"]
    assert embed.shape == (8, 4)
    f = vocabularies
    want = {
        "the": (row(f, "a", "the") + row(f, "b", "the")) / 2,
        "cat": (row(f, "a", "cat") + row(f, "base", "cat")) / 2,
        "dog": row(f, "base", "dog"),
        "emu": (row(f, "a", "emu") + row(f, "b", "emu")) / 2,
        "<im>": row(f, "a", "<im>"),
        "fox": row(f, "b", "fox"),
    }
    for token, value in want.items():
        np.testing.assert_allclose(embed[order.index(token)], value, atol=1e-6, err_msg=token)
    content = read_json("out/tokenizer.json")
    added = {t["content"]: t for t in content["added_tokens"]}
    assert {t: added[t]["id"] for t in ("emu", "<im>", "fox")} == {"emu": 5, "<im>": 6, "fox": 7}
    assert added["<im>"]["special"]
    assert not added["emu"]["special"]


def test_the_merged_tokenizer_loads(vocabularies):
    from tokenizers import Tokenizer

    for name in TOKENS:
        path = f"{name}/tokenizer.json"
        with open(path) as file:
            content = json.load(file)
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        content["added_tokens"] = [flags | t for t in content["added_tokens"]]
        full = {"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, **content}
        with open(path, "w") as file:
            json.dump(full, file)
    run({"base": "base", "models": ["a", "b"], "method": "mean", "tokenizer": "union"})
    merged = Tokenizer.from_file("out/tokenizer.json")
    assert merged.get_vocab_size() == 8
    assert merged.encode("the emu <im> cat").ids == [1, 5, 6, 2]


def test_the_bases_vocabulary_and_wishes(vocabularies):
    f = vocabularies
    got = run({"merge_method": "linear", "models": [
        {"model": "a", "parameters": {"weight": 1}}, {"model": "base", "parameters": {"weight": 1}},
    ], "tokenizer": {"source": "base", "tokens": {
        "dog": {"source": "base"},
        "cat": {"source": "a", "force": True},
        "the": {"source": {"kind": "zero"}, "force": True},
        "<s>": {"source": {"kind": "model_token", "model": "a", "token": "emu"}, "force": True},
    }}, "base_model": "base"})  # fmt: skip
    embed = got["model.embed_tokens.weight"]
    assert embed.shape == (5, 4)
    for i, want in enumerate([
        (row(f, "a", "<unk>") + row(f, "base", "<unk>")) / 2, np.zeros(4), row(f, "a", "cat"),
        row(f, "base", "dog"), row(f, "a", "emu"),
    ]):  # fmt: skip
        np.testing.assert_allclose(embed[i], want, atol=1e-6)


@pytest.mark.parametrize("in_base", [True, False])
def test_tied_weights_stored_once_or_twice(family, in_base):
    tied = ("base",) if in_base else ("a", "b")
    for name in tied:
        family[name]["lm_head.weight"] = family[name]["model.embed_tokens.weight"].copy()
        save_file(family[name], f"{name}/model.safetensors")
    got = run({"base": "base", "models": ["a", "b", "c"], "method": "mean"})
    assert ("lm_head.weight" in got) == in_base
    if in_base:
        np.testing.assert_array_equal(got["lm_head.weight"], got["model.embed_tokens.weight"])


def test_chat_templates(family):
    for name in NAMES:
        with open(f"{name}/tokenizer_config.json", "w") as file:
            json.dump({"chat_template": f"{{{{ {name} }}}}" if name != "c" else "{{ b }}"}, file)
    run({**ABC, "method": "mean", "chat_template": "auto"}, "auto")
    assert read_json("auto/tokenizer_config.json")["chat_template"] == "{{ b }}"
    run({**ABC, "method": "mean", "chat_template": "chatml"}, "chatml")
    assert "<|im_start|>" in Path("chatml/chat_template.jinja").read_text()
    with pytest.raises(UserError, match="did you mean chatml"):
        run({**ABC, "method": "mean", "chat_template": "chatm"}, "x")


def test_a_chat_template_renders(family):
    jinja = pytest.importorskip("jinja2", reason="templates are rendered by others")
    run({**ABC, "method": "mean", "chat_template": "chatml"}, "chatml")
    text = jinja.Template(Path("chatml/chat_template.jinja").read_text()).render(
        messages=[{"role": "user", "content": "hi"}], add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


# ---------------------------------------------------------------- the command


def test_the_resolved_recipe_makes_the_same_bytes(family, monkeypatch, tmp_path):
    recipe = {**ABC, "method": {"dare": {"density": 0.5}}, "seed": 3}
    run(recipe, shard_size="1GB")
    for name in ("README.md", "config.json", "recipe.resolved.yaml"):
        assert (tmp_path / "out" / name).exists()
    shutil.copy("out/recipe.resolved.yaml", "again.yaml")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    command.run("../again.yaml", "out", quiet=True)
    again = (tmp_path / "away/out/model.safetensors").read_bytes()
    assert again == (tmp_path / "out/model.safetensors").read_bytes()
    save_file(family["b"], tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match="not those that the resolved recipe names"):
        command.run("../again.yaml", "other", quiet=True)


def test_check_names_costs_and_mismatches(family, capsys):
    with open("r.yaml", "w") as file:
        yaml.safe_dump({**ABC, "method": "ties"}, file)
    command.run("r.yaml", None, check=True, json=True)
    told = json.loads(capsys.readouterr().out)
    size = sum(x.nbytes for x in family["base"].values())
    assert told["leaves"] == told["merged"] == len(SHAPES)
    assert told["parameters"] == size // 4
    assert told["write"] == size
    assert told["read"] == told["passes"] * 4 * size
    assert told["mismatches"] == []
    save_file({n: x for n, x in family["a"].items() if "norm" not in n}, "a/model.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        command.run("r.yaml", None, check=True, json=True)
    assert "norm" in capsys.readouterr().out


def test_the_command_line_ends_in_one_line(family, capsys, monkeypatch):
    from jaxmerge import cli

    with open("r.yaml", "w") as file:
        yaml.safe_dump({**ABC, "method": "mean"}, file)
    for arguments, code in (
        (["merge", "r.yaml", "out"], 0), (["merge", "r.yaml", "out"], 2),
        (["merge", "r.yaml", "out", "--force", "--json"], 0), (["merge", "none.yaml", "x"], 2),
        (["merge", "r.yaml", "y", "--dtype", "float3"], 2), (["inspect", "nothing"], 2),
        (["diff", "a", "a"], 0), (["diff", "a", "b", "--json"], 1),
        (["inspect", "a", "--norms"], 0),
        (["extract-lora", "base", "a", "ad", "--rank", "2"], 0),
        (["convert", "base+ad", "cv", "--dtype", "bfloat16"], 0),
        (["merge", "r.yaml", "z", "--devices", "99"], 2),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["jaxmerge", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        assert end.value.code == code, (arguments, told)
        if code == 2:
            assert told.err.startswith("error: ")
            assert told.err.count("\n") == 1


def test_leaves_spread_over_devices(family):
    import jax

    want = run({**ABC, "method": "ties"})
    got = run({**ABC, "method": "ties"}, "spread", device="cpu", devices=len(jax.devices()))
    assert {n: x.tobytes() for n, x in got.items()} == {n: x.tobytes() for n, x in want.items()}


PROCESS = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_platforms", "cpu")
from jaxmerge.commands import merge
merge.run("recipe.yaml", "out2", shard_size="150", quiet=True)
"""


def test_two_processes_write_one_output(family):
    import os
    import socket
    import subprocess

    want = {}
    Path("recipe.yaml").write_text(yaml.safe_dump({**ABC, "method": "ties"}))
    command.run("recipe.yaml", "out", shard_size="150", quiet=True)
    for path in Path("out").glob("model*"):
        want[path.name] = path.read_bytes()
    assert len(want) > 4
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    children = [
        subprocess.Popen([sys.executable, "-c", PROCESS], env=env | {"JAX_PROCESS_ID": str(i)})
        for i in range(2)
    ]
    assert [child.wait(timeout=240) for child in children] == [0, 0]
    assert {p.name: p.read_bytes() for p in Path("out2").glob("model*")} == want
    assert not list(Path(".").glob(".out2*"))
