"""Layers placed anew, stages, tied weights, chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small
from safetensors.numpy import save_file
from small import ABC, NAMES, SHAPES, close, read_json, run

import jaxmerge as jm
from jaxmerge.errors import UserError


@pytest.fixture
def family(tmp_path, monkeypatch):
    return small.write(tmp_path, monkeypatch)


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


PARTS = ("vision_tower.layers.0.w", "multi_modal_projector.w", "language_model.layers.{}.w")


@pytest.fixture
def two_towers(family):
    """A picture tower, a projector, and a text tower of three layers."""
    names = [*PARTS[:2], *(PARTS[2].format(i) for i in range(3))]
    for i, name in enumerate(NAMES):
        family[name] = small.model(30 + i, dict.fromkeys(names, (4, 4)))
        save_file(family[name], f"{name}/model.safetensors")
    return family


def weighted(name, weight=1.0, **more):
    return {"model": name, "parameters": {"weight": weight}, **more}


def test_modules_are_merged_each_in_its_own_way(two_towers):
    a, b, c = (two_towers[n] for n in "abc")
    got = run({"merge_method": "linear", "modules": {
        "vision_tower": {"models": [weighted("a"), weighted("b", 3.0)]},
        "multi_modal_projector": {"models": [weighted("c")]},
        "text_decoder": {"slices": [
            {"sources": [weighted("a", layer_range=[0, 2])]},
            {"sources": [weighted("b", layer_range=[2, 3]), weighted("c", layer_range=[0, 1])]},
        ]},
    }})  # fmt: skip
    vision, projector, text = PARTS
    want = {vision: a[vision] / 4 + 3 * b[vision] / 4, projector: c[projector]}
    want |= {text.format(i): a[text.format(i)] for i in range(2)}
    want[text.format(2)] = (b[text.format(2)] + c[text.format(0)]) / 2
    close(got, want)


def test_modules_that_leave_something_out_or_are_unknown(two_towers):
    models = {"models": [weighted("a"), weighted("b")]}
    with pytest.raises(UserError, match=r"all but 4 leaves of .*language_model"):
        run({"merge_method": "linear", "modules": {"vision_tower": models}})
    with pytest.raises(UserError, match="did you mean vision_tower"):
        run({"merge_method": "linear", "modules": {"vision_towr": models}})


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


def test_a_head_of_its_own_where_the_base_ties_it(family):
    family["a"]["lm_head.weight"] = family["a"]["model.embed_tokens.weight"] + 1
    save_file(family["a"], "a/model.safetensors")
    with pytest.raises(UserError, match=r"tied to 'model.embed_tokens.weight', here it has values"):
        run({"base": "base", "models": ["a", "b"], "method": "mean"})


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
