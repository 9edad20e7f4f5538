"""`merge_files` does what the command does: the same files, checks and notes."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.cli import merge
from jaxmerge.errors import UserError
from jaxmerge.io.sources import open_source


def model(folder, seed, tied=False, rows=12):
    g = np.random.default_rng(seed)
    leaves = {
        "model.embed_tokens.weight": g.normal(size=(rows, 4)).astype("f"),
        "model.layers.0.mlp.up_proj.weight": g.normal(size=(8, 4)).astype("f"),
        "lm_head.weight": g.normal(size=(rows, 4)).astype("f"),
    }
    if tied:
        del leaves["lm_head.weight"]
    folder.mkdir(parents=True)
    save_file(leaves, folder / "model.safetensors")
    config = {"model_type": "llama", "vocab_size": rows, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return leaves


@pytest.fixture
def family(tmp_path, monkeypatch):
    for seed, name in enumerate(("base", "a", "b")):
        model(tmp_path / name, seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_same_bytes_and_the_same_files(family):
    recipe = {"base": "base", "models": ["a", "b"], "method": {"ties": {"density": 0.5}},
              "rules": {"only": "mlp"}, "out_dtype": "bfloat16"}  # fmt: skip
    (family / "r.yaml").write_text(yaml.safe_dump(recipe))
    merge.run(family / "r.yaml", family / "one", quiet=True)
    jm.merge_files(jm.ties(0.5), base="base", models=["a", "b"], out="two", dtype="bfloat16",
                   rules={"only": "mlp"})  # fmt: skip
    assert sorted(p.name for p in (family / "one").iterdir()) == sorted(
        p.name for p in (family / "two").iterdir()
    )
    for name in ("model.safetensors", "config.json"):
        assert (family / "one" / name).read_bytes() == (family / "two" / name).read_bytes()
    merge.run(family / "two/recipe.resolved.yaml", family / "three", quiet=True)
    first, again = (family / n / "model.safetensors" for n in ("two", "three"))
    assert first.read_bytes() == again.read_bytes()


def test_a_chain_and_a_key_are_noted(family):
    method = jm.chain(jm.drop_random(0.5), jm.disjoint_mean(), jm.scale(0.4))
    jm.merge_files(method, base="base", models=["a", "b"], out="out", key=jax.random.key(3))
    note = yaml.safe_load((family / "out/recipe.resolved.yaml").read_text())
    assert note["method"][1:] == ["disjoint_mean", {"scale": {"factor": 0.4}}]
    assert note["key"][-1] == 3
    assert set(note["resolved"]["inputs"]) == {str(family / n) for n in ("base", "a", "b")}
    with pytest.raises(ValueError, match="pass key"):
        jm.merge_files(method, base="base", models=["a"], out="other")


def test_tied_heads_vocabularies_and_quantised_leaves(family):
    leaves = model(family / "tied", 5, tied=True)
    jm.merge_files(jm.mean(), models=["a", "tied"], out="out")
    head = (load_file("a/model.safetensors")["lm_head.weight"] +
            leaves["model.embed_tokens.weight"]) / 2  # fmt: skip
    np.testing.assert_allclose(load_file("out/model.safetensors")["lm_head.weight"], head)
    model(family / "wide", 6, rows=14)
    with pytest.raises(UserError, match="vocabularies differ"):
        jm.merge_files(jm.mean(), models=["a", "wide"], out="other")


def test_task_vectors_need_a_base(family):
    with pytest.raises(UserError, match=r"works on task vectors.*base: none"):
        jm.merge_files(jm.magmax(), models=["a", "b"], out="out")
    jm.merge_files(jm.magmax(1.0), models=["a", "b"], base="none", out="out")
    a, b, got = (load_file(f"{n}/model.safetensors") for n in ("a", "b", "out"))
    for n in got:
        np.testing.assert_array_equal(np.abs(got[n]), np.maximum(np.abs(a[n]), np.abs(b[n])))


def test_leaves_that_all_models_have(family):
    leaves = load_file("b/model.safetensors")
    save_file({n: x for n, x in leaves.items() if "up_proj" not in n}, "b/model.safetensors")
    with pytest.raises(ValueError, match="missing leaf"):
        jm.merge_files(jm.mean(), models=["a", "b"], out="out")
    jm.merge_files(jm.mean(), models=["a", "b"], out="out", leaves="intersection")
    assert set(load_file("out/model.safetensors")) == {n for n in leaves if "up_proj" not in n}
    with pytest.raises(ValueError, match="'same' or 'intersection'"):
        jm.merge_files(jm.mean(), models=["a", "b"], out="out", leaves="union")


def test_leaves_in_memory_stay_open(family):
    a, b = open_source("a"), open_source("b")
    report = jm.merge_files(jm.mean(), models=[a, b], out="out")
    assert report.merged == 3
    assert a["lm_head.weight"].shape == (12, 4)
    again = jm.merge_files(jm.mean(), models=[a, b], out="out", resume=True)
    assert again.merged == 0
    with pytest.raises(UserError, match="exists"):
        jm.merge_files(jm.mean(), models=[a, b], out="out")


def test_words_for_methods(family):
    jm.merge_files({"ties": {"density": 0.5}}, base="base", models=["a", "b"], out="one")
    jm.merge_files(jm.ties(0.5), base="base", models=["a", "b"], out="two")
    one, two = (load_file(f"{n}/model.safetensors") for n in ("one", "two"))
    for n in one:
        np.testing.assert_array_equal(one[n], two[n])
