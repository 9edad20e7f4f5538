"""Vocabularies of different sizes: the union, the base's, and wishes for single tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small
import yaml
from safetensors.numpy import save_file
from small import SHAPES, model, read_json, run, tokenizer
from tokenizers import Tokenizer

from jaxmerge.errors import UserError


@pytest.fixture
def family(tmp_path, monkeypatch):
    return small.write(tmp_path, monkeypatch)


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


def test_a_bias_of_one_row_has_its_tokens_along_the_second_axis(vocabularies):
    """BART's final_logits_bias is [1, tokens]."""
    for name, tokens in TOKENS.items():
        family = vocabularies[name] | {"final_logits_bias": np.arange(len(tokens), dtype="f")[None]}
        save_file(family, f"{name}/model.safetensors")
    got = run({"base": "base", "models": ["a", "b"], "method": "mean", "tokenizer": "union"})
    order = list(json.loads(Path("out/tokenizer.json").read_text())["model"]["vocab"])
    assert got["final_logits_bias"].shape == (1, len(got["model.embed_tokens.weight"]))
    want = np.mean([TOKENS["a"].index("cat"), TOKENS["base"].index("cat")])  # b has no cat
    assert got["final_logits_bias"][0, order.index("cat")] == pytest.approx(want)


def test_rows_that_are_no_tokens_are_refused(vocabularies):
    """CPM-Ant's table of tokens has rows for prompts behind them."""
    for name in TOKENS:
        config = json.loads(Path(f"{name}/config.json").read_text()) | {"vocab_size": 3}
        Path(f"{name}/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has 5 rows, config\.json says vocab_size 3"):
        run({"base": "base", "models": ["a", "b"], "method": "mean", "tokenizer": "union"})


def test_another_vocabulary_stays_as_it_is(vocabularies):
    """A table of codes of speech is no table of the tokenizer's tokens, longer or shorter."""
    for i, name in enumerate(TOKENS):
        config = json.loads(Path(f"{name}/config.json").read_text())
        rows = len(TOKENS[name])
        config |= {
            "vocab_size": rows,
            "decoder_config": {"vocab_size": 9, "x": {"vocab_size": 3}},
        }
        Path(f"{name}/config.json").write_text(json.dumps(config))
        more = {"decoder.embed_tokens.weight": (9, 4), "codes.embed_tokens.weight": (3, 4)}
        vocabularies[name] |= model(20 + i, more)
        save_file(vocabularies[name], f"{name}/model.safetensors")
    got = run({"base": "base", "models": ["a", "b"], "method": "mean", "tokenizer": "union"})
    a, b = vocabularies["a"], vocabularies["b"]
    for n in ("decoder.embed_tokens.weight", "codes.embed_tokens.weight"):
        np.testing.assert_allclose(got[n], (a[n] + b[n]) / 2, atol=1e-6)
    config = json.loads(Path("out/config.json").read_text())
    assert config["vocab_size"] == len(got["model.embed_tokens.weight"]) == 8
    assert config["decoder_config"] == {"vocab_size": 9, "x": {"vocab_size": 3}}


@pytest.mark.parametrize("padded", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tables_padded_apart_go_by_tokens_both(family, padded):
    """One table has a spare row that the other lacks: both have the output's tokens."""
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    tokens = {"base": ["<unk>", "the", "cat", "dog"], "a": ["<unk>", "dog", "the", "cat"]}
    for i, (name, own) in enumerate(tokens.items()):
        rows = {n: (len(own) + (n == padded), 4) for n in names}
        family[name] = model(30 + i, SHAPES | rows)
        save_file(family[name], f"{name}/model.safetensors")
        config = {**read_json(f"{name}/config.json"), "vocab_size": len(own) + 1}
        Path(name, "config.json").write_text(json.dumps(config))
        with open(f"{name}/tokenizer.json", "w") as file:
            json.dump(tokenizer(own), file)
    got = run({"base": "base", "models": ["a"], "method": "mean", "tokenizer": "base"})
    for n in names:
        for i, token in enumerate(tokens["base"]):
            want = family["a"][n][tokens["a"].index(token)]
            np.testing.assert_allclose(got[n][i], want, atol=1e-6, err_msg=f"{n} {token}")


def test_a_second_table_of_the_same_tokens_goes_by_them(family):
    """As in Gemma 3n, whose second table has fewer spare rows."""
    second = "model.embed_tokens_per_layer.weight"
    tokens = {"base": ["<unk>", "the", "cat", "dog"], "a": ["<unk>", "dog", "the", "cat"]}
    for i, (name, own) in enumerate(tokens.items()):
        family[name] = model(40 + i, SHAPES | {"model.embed_tokens.weight": (6, 4), second: (4, 4)})
        save_file(family[name], f"{name}/model.safetensors")
        more = {"vocab_size": 6, "vocab_size_per_layer_input": 4}
        config = {**read_json(f"{name}/config.json"), **more}
        Path(name, "config.json").write_text(json.dumps(config))
        with open(f"{name}/tokenizer.json", "w") as file:
            json.dump(tokenizer(own), file)
    got = run({"base": "base", "models": ["a"], "method": "mean", "tokenizer": "base"})
    for n in ("model.embed_tokens.weight", second):
        want = family["a"][n][[tokens["a"].index(t) for t in tokens["base"]]]
        np.testing.assert_allclose(got[n][:4], want, atol=1e-6, err_msg=n)
    config = read_json("out/config.json")
    assert {config[k] for k in more} == {len(got[second])}


def test_a_table_of_the_first_tokens_only(family):
    shared = ["<unk>", "the", "cat", "dog"]
    tables = {"base": shared, "a": [*shared, "emu"], "b": [*shared, "fox", "owl"]}
    for i, (name, own) in enumerate(tables.items()):
        shapes = SHAPES | {"model.embed_tokens.weight": (len(own), 4)}
        family[name] = model(10 + i, shapes | {"model.embed_tokens_per_layer.weight": (4, 4)})
        save_file(family[name], f"{name}/model.safetensors")
        more = {"vocab_size": len(own), "vocab_size_per_layer_input": 4}
        Path(f"{name}/config.json").write_text(json.dumps(read_json(f"{name}/config.json") | more))
        Path(f"{name}/tokenizer.json").write_text(json.dumps(tokenizer(own, [])))
    recipe = {"models": ["a", "b"], "method": {"linear": {"weights": [0.5, 0.5]}},
              "tokenizer": "union"}  # fmt: skip
    got, config = run(recipe), read_json("out/config.json")
    assert len(got["model.embed_tokens.weight"]) == config["vocab_size"] == 7
    assert config["vocab_size_per_layer_input"] == 4
    first = [family[n]["model.embed_tokens_per_layer.weight"] for n in "ab"]
    np.testing.assert_allclose(
        got["model.embed_tokens_per_layer.weight"], (first[0] + first[1]) / 2, atol=1e-6
    )
    moved = ["<unk>", "cat", "the", "dog", "fox"]
    Path("b/tokenizer.json").write_text(json.dumps(tokenizer(moved, [])))
    with pytest.raises(UserError, match=r"b: .*first 4 tokens only, and 2 .*such as 'cat'"):
        run(recipe)


def test_a_unigram_tokenizer_with_more_tokens_than_rows(family):
    for name, count, rows in (("base", 6, 4), ("a", 5, 5)):
        letters = "abcdef" if name == "base" else "abcdx"
        leaves = model(count, SHAPES | {"model.embed_tokens.weight": (rows, 4)})
        save_file(leaves, f"{name}/model.safetensors")
        vocab = [[t, -float(i)] for i, t in enumerate(letters)]
        unigram = {"type": "Unigram", "unk_id": 0, "vocab": vocab}
        content = {"version": "1.0", "added_tokens": [], "model": unigram}
        Path(name, "tokenizer.json").write_text(json.dumps(content))
        family[name] = leaves
    got = run({"base": "base", "models": ["a"], "method": {"task_arithmetic": {"factor": 1.0}},
               "tokenizer": "union"})  # fmt: skip
    found = Tokenizer.from_file("out/tokenizer.json")
    assert found.get_vocab() == {t: i for i, t in enumerate("abcdx")}
    embed = "model.embed_tokens.weight"
    np.testing.assert_allclose(got[embed], family["a"][embed], atol=1e-6)


WISHES = {
    "<im>": {"source": {"kind": "model_token", "model": "b", "token": "fox"}, "force": True},
    "emu": {"source": "b"},
}
MAPPED = {  # references as mergekit's mappings
    "<im>": {"source": {"kind": "model_token", "model": {"model": {"path": "b"}}, "token": "fox"},
             "force": True},
    "emu": {"source": {"model": {"path": "b"}}, "force": True},
}  # fmt: skip


def test_references_of_a_tokenizer_as_mappings(vocabularies):
    recipe = {"merge_method": "linear", "models": [
        {"model": {"model": {"path": m}}, "parameters": {"weight": 1}} for m in ("a", "b")
    ]}  # fmt: skip
    mapped = {"source": {"model": {"path": "a"}}, "tokens": MAPPED}
    got = run(recipe | {"tokenizer": mapped})["model.embed_tokens.weight"]
    np.testing.assert_array_equal(got[TOKENS["a"].index("<im>")], row(vocabularies, "b", "fox"))
    np.testing.assert_array_equal(got[TOKENS["a"].index("emu")], row(vocabularies, "b", "emu"))
    for wrong in ({"model": {"revision": "main"}}, {"model": 5}, {"model": "a", "lora": 5}):
        with pytest.raises(UserError, match="a model must be a reference"):
            run(recipe | {"tokenizer": {"source": wrong}})


@pytest.mark.parametrize(
    "tokenizer",
    ["a", {"source": "a", "tokens": WISHES},
     {"source": {"model": {"path": "a"}}, "tokens": MAPPED}],
)  # fmt: skip
@pytest.mark.parametrize("form", ["ours", "mergekit's"])
def test_a_resolved_recipe_finds_the_models_of_its_tokenizer_anywhere(
    vocabularies, form, tokenizer, tmp_path, monkeypatch
):
    recipe = {"base": "base", "models": ["a", "b"], "method": "mean", "tokenizer": tokenizer}
    if form != "ours":
        models = [{"model": m, "parameters": {"weight": 1}} for m in ("a", "b")]
        key = "tokenizer_source" if isinstance(tokenizer, str) else "tokenizer"
        recipe = {"merge_method": "linear", "models": models, key: tokenizer}
    there = run(recipe)
    resolved = (tmp_path / "out" / "recipe.resolved.yaml").read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = run(yaml.safe_load(resolved))
    assert all(np.array_equal(again[n], there[n]) for n in there)
