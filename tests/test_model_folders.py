"""What belongs to a model's folder: modules, remote code, tokenizers, indices, parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge.cli import merge
from jaxmerge.errors import UserError
from jaxmerge.io.model_folder import belongings, lacking
from jaxmerge.io.sources import open_source

W = {"w": np.ones((4, 2), np.float32)}


def model(folder, leaves=W, **files):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(leaves, folder / "model.safetensors")
    for name, content in {"config.json": {}, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def merged(tmp_path, recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    merge.run(path, tmp_path / "out", force=True, quiet=True)
    return tmp_path / "out"


def names(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


OWN = {"model.safetensors", "README.md", "recipe.resolved.yaml", "config.json"}


def test_the_folders_that_modules_json_names_come_along(tmp_path):
    modules = [{"path": p} for p in ("", "1_Pooling", "2_Dense", "../secret", "no_such")]
    for name in "ab":
        folder = model(
            tmp_path / name, **{"modules.json": modules, "1_Pooling/config.json": {"cls": name}}
        )
        (folder / "2_Dense").mkdir(exist_ok=True)
        save_file({"linear.weight": np.ones(2, np.float32)}, folder / "2_Dense/model.safetensors")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("!")
    out = merged(tmp_path, {"models": [str(tmp_path / n) for n in "ab"], "method": "mean"})
    assert names(out) == OWN | {
        "modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors",
    }  # fmt: skip
    assert json.loads((out / "1_Pooling/config.json").read_text()) == {"cls": "a"}


def test_links_out_of_a_module_folder_are_not_followed(tmp_path):
    (tmp_path / "key").write_text("!")
    folder = model(tmp_path / "a", **{"modules.json": [{"path": "x"}], "x/config.json": {}})
    (folder / "x/link").symlink_to(tmp_path / "key")
    assert "x/link" not in belongings(folder)
    assert "x/config.json" in belongings(folder)


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_remote_code_that_auto_map_names_comes_along(tmp_path, place):
    code = {"auto_map": {"AutoModel": "modeling_x.X", "AutoTokenizer": ["tok.T", None]}}
    files = {"modeling_x.py": "import helper", "helper.py": "", place: code}
    assert {"modeling_x.py", "helper.py"} <= set(belongings(model(tmp_path / "a", **files)))
    files[place] = {"auto_map": {"AutoModel": "org/name--modeling_x.X"}}
    assert not any(n.endswith(".py") for n in belongings(model(tmp_path / "b", **files)))


@pytest.mark.parametrize(
    ("kind", "own"),
    [("custom_st.Transformer", True), ("sentence_transformers.models.Pooling", False),
     ("org/name--custom_st.Transformer", False), (None, False)],
)  # fmt: skip
def test_code_that_modules_json_names_comes_along(tmp_path, kind, own):
    files = {"custom_st.py": "", "modules.json": [{"path": "", "type": kind}, "junk"]}
    assert ("custom_st.py" in belongings(model(tmp_path / "a", **files))) == own


def test_what_a_folder_lacks_is_said(tmp_path):
    files = {
        "config.json": {"auto_map": {"AutoModel": "gone.X", "AutoConfig": "org/x--far.Y"}},
        "modules.json": [{"path": ""}, {"path": "1_Pooling"}, {"path": "../secret"}],
        "1_Pooling/config.json": {},
    }
    folder = model(tmp_path / "a", **files)
    assert lacking(folder) == [
        f"{folder}: modules.json names '../secret', which is no folder in it; the output lacks it"
        " too",
        f"{folder}: its files name the code of 'gone.py', which is not there; the output lacks it"
        " too",
    ]
    (folder / "gone.py").write_text("")
    assert len(lacking(folder)) == 1
    assert lacking(None) == []


def test_the_api_takes_them_along_too(tmp_path):
    files = {
        "config.json": {"auto_map": {"AutoModel": "m.X"}, "torch_dtype": "float32"},
        "m.py": "",
    }
    for n in "ab":
        model(tmp_path / n, **files)
    jm.merge_files(
        jm.mean(), models=[tmp_path / "a", tmp_path / "b"], out=tmp_path / "out", dtype="float16"
    )
    assert "m.py" in names(tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "float16"


# ---------------------------------------------------------------- which file holds the weights


def shards(folder, stem, leaves):
    folder.mkdir(parents=True, exist_ok=True)
    where = {}
    for i, (n, x) in enumerate(leaves.items()):
        where[n] = f"{stem}-{i}.safetensors"
        save_file({n: x}, folder / where[n])
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


TWO = {"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)}


def test_of_two_indices_the_usual_one_is_taken(tmp_path):
    shards(tmp_path, "model", TWO)
    shards(tmp_path, "consolidated", {"other": np.zeros(1, np.float32)})
    assert set(open_source(tmp_path)) == set(TWO)
    shards(tmp_path / "x", "one", TWO)
    shards(tmp_path / "x", "two", TWO)
    with pytest.raises(UserError, match="2 indices, one") as error:
        open_source(tmp_path / "x")
    assert str(error.value).endswith(
        "for example " + str(tmp_path / "x/one.safetensors.index.json.")
    )
    assert set(open_source(tmp_path / "x/two.safetensors.index.json")) == set(TWO)


def test_a_single_file_beside_an_index(tmp_path):
    shards(tmp_path, "model", TWO)
    save_file(W, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"two models, model\.safetensors and the shards"):
        open_source(tmp_path)
    assert set(open_source(tmp_path / "model.safetensors")) == {"w"}
    (tmp_path / "model-0.safetensors").unlink()  # the index is left of an earlier save
    assert set(open_source(tmp_path)) == {"w"}


def test_an_index_of_one_file(tmp_path):
    save_file(TWO, tmp_path / "model.safetensors")
    index = {"weight_map": dict.fromkeys(TWO, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(open_source(tmp_path)) == set(TWO)


def test_variants_and_side_information_are_no_second_model(tmp_path):
    for name in ("unet", "unet.fp16", "fisher", "gram", "adapter_model"):
        save_file(W if name == "unet" else TWO, tmp_path / f"{name}.safetensors")
    assert set(open_source(tmp_path)) == {"w"}


# ---------------------------------------------------------------- a part of a checkpoint


def test_a_part_of_a_checkpoint(tmp_path):
    save_file({f"{p}.w": np.full(2, i, np.float32) for i, p in enumerate(["params", "opt"])},
              tmp_path / "x.safetensors")  # fmt: skip
    source = open_source(f"{tmp_path}/x.safetensors#params")
    assert list(source) == ["w"]
    assert source["w"].tolist() == [0, 0]
    assert open_source(source.ref).ref == source.ref
    with pytest.raises(UserError, match="no leaves below 'param': did you mean params"):
        open_source(f"{tmp_path}/x.safetensors#param")


def test_orbax_items_under_any_name_and_parts_of_a_train_state(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    manager = ocp.CheckpointManager(tmp_path / "manager")
    for step in (2, 10):
        state = {"params": {"w": np.full(3, step, np.float32)}, "step": np.int32(step)}
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))
    manager.wait_until_finished()
    manager.close()
    for ref in (tmp_path / "manager", tmp_path / "manager/10", tmp_path / "manager/10/state"):
        assert open_source(ref)["params/w"].tolist() == [10, 10, 10]
    assert list(open_source(f"{tmp_path}/manager#params")) == ["w"]
    several = ocp.CheckpointManager(tmp_path / "several")
    tree = ocp.args.StandardSave({"w": np.zeros(2, np.float32)})
    several.save(1, args=ocp.args.Composite(one=tree, two=tree))
    several.wait_until_finished()
    several.close()
    with pytest.raises(UserError, match=r"holds 2 items; name one: .*one, .*two"):
        open_source(tmp_path / "several")


# ---------------------------------------------------------------- tokenizers


def tokens(table, added=()):
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized", "special"], False)
    more = [{"id": i, "content": t, **flags} for t, i in added]
    return {"model": {"type": "BPE", "vocab": table, "merges": []}, "added_tokens": more}


def embedded(folder, rows, **files):
    return model(folder, {"embed_tokens.weight": np.ones((rows, 2), np.float32)}, **files)


def test_slow_tokenizer_files_do_not_outlive_their_vocabulary(tmp_path):
    v = {"x": 0, "y": 1}
    slow = {
        "tokenizer.model": "sp",
        "added_tokens.json": {"<a>": 2},
        "chat_template.jinja": "t",
        "tokenizer_config.json": {"added_tokens_decoder": {"2": {"content": "<a>"}}},
    }
    a = embedded(tmp_path / "a", 3, **{"tokenizer.json": tokens(v, [("<a>", 2)]), **slow})
    fast = tokens(v, [("<b>", 2)])
    b = embedded(tmp_path / "b", 3, **{"tokenizer.json": fast, "vocab.json": v})
    recipe = {"models": [str(a), str(b)], "method": "mean", "tokenizer": "union"}
    out = merged(tmp_path, recipe)
    own = OWN | {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert names(out) == own
    decoder = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {k: t["content"] for k, t in decoder.items()} == {"2": "<a>", "3": "<b>"}
    assert load_file(out / "model.safetensors")["embed_tokens.weight"].shape == (4, 2)
    # another model's tokenizer takes the place of the base's, whole
    out = merged(tmp_path, {**recipe, "tokenizer": str(b)})
    assert names(out) == OWN | {"tokenizer.json", "vocab.json", "chat_template.jinja"}
    # the base's own stays whole
    out = merged(tmp_path, {**recipe, "tokenizer": "base"})
    assert names(out) == own | {"tokenizer.model", "added_tokens.json"}
