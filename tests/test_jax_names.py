"""Checkpoints of Tunix, MaxText and EasyDeL under Hugging Face's names and back, on their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.cli import convert
from jaxmerge.errors import UserError
from jaxmerge.io.relaid import laid_out
from jaxmerge.io.sources import open_source
from jaxmerge.models import decoder

GOLDEN = Path(__file__).parent / "golden"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "vocab_size": 32,
    "tie_word_embeddings": False, "max_position_embeddings": 64, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
WROTE = {  # folder -> its layout, what its config.json says besides
    "tunix": ("tunix", {"rope_theta": 1e6}),
    "maxtext/llama": ("maxtext", {"rope_scaling": LLAMA3}),
    "maxtext/mistral": ("maxtext-unscanned", {"model_type": "mistral"}),
    "maxtext/qwen2": ("maxtext", {"model_type": "qwen2"}),
    "maxtext/qwen3": ("maxtext-unscanned", {"model_type": "qwen3"}),
    "easydel/llama": ("easydel", {}),
    "easydel/qwen3": ("easydel", {"model_type": "qwen3"}),
}


@pytest.fixture
def like(tmp_path, request):
    folder = tmp_path / "like"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | WROTE[request.param][1]))
    return folder


def hf(wrote: str, like: Path, out: Path) -> Path:
    convert.run(str(GOLDEN / wrote / "checkpoint"), out, names="hf", like=like, quiet=True)
    return out


@pytest.mark.parametrize(("wrote", "like"), [(w, w) for w in WROTE], indirect=["like"])
def test_what_the_library_saved_computes_the_same_here(wrote, like, tmp_path):
    model = decoder.load(hf(wrote, like, tmp_path / "hf"), dtype="float32")
    with np.load(GOLDEN / wrote / "logits.npz") as file:
        tokens, expected = file["tokens"], file["logits"]
    logits = decoder.logits(model.config, model.params, jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("wrote", "like"), [(w, w) for w in WROTE], indirect=["like"])
def test_there_and_back(wrote, like, tmp_path):
    stored = open_source(GOLDEN / wrote / "checkpoint")
    out, layout = hf(wrote, like, tmp_path / "hf"), WROTE[wrote][0]
    convert.run(str(out), tmp_path / "orbax", names=layout, to="orbax", quiet=True)
    again = open_source(tmp_path / "orbax")
    first = {n.removesuffix("/value"): stored[n] for n in stored}
    assert {n: again[n].tobytes() for n in again} == {n: x.tobytes() for n, x in first.items()}


@pytest.mark.parametrize(
    ("wrote", "like"), [(w, w) for w in ("tunix", "easydel/llama")], indirect=["like"]
)
def test_what_one_library_refuses_does_not_matter_to_another(wrote, like, tmp_path):
    config = json.loads((like / "config.json").read_text()) | {"model_type": "smollm3"}
    (like / "config.json").write_text(json.dumps(config))
    assert "lm_head.weight" in open_source(hf(wrote, like, tmp_path / "hf"))


@pytest.mark.parametrize("like", ["maxtext/llama"], indirect=True)
def test_layers_apart_and_stacked_are_one_model(like, tmp_path):
    source = open_source(hf("maxtext/llama", like, tmp_path / "hf"))
    apart = laid_out(source, "maxtext-unscanned")
    assert "params/params/decoder/layers_1/mlp/wo/kernel" in apart
    back = laid_out(apart, "hf")
    assert {n: back[n].tobytes() for n in source} == {n: source[n].tobytes() for n in source}


@pytest.mark.parametrize("like", ["maxtext/llama"], indirect=True)
def test_names_that_do_not_fit_are_one_line(like, tmp_path):
    out = hf("maxtext/llama", like, tmp_path / "hf")
    mixed = open_source(out)
    mixed = mixed.renamed({n.replace("layers.0.mlp", "layers.7.mlp"): n for n in mixed})
    stored = open_source(GOLDEN / "maxtext" / "llama" / "checkpoint")
    trained = stored.renamed({n: n for n in stored} | {"opt_state/0": next(iter(stored))})
    trained._config = json.loads((like / "config.json").read_text())
    for call, said in (
        (lambda: laid_out(open_source(out), "hf"), "none of tunix"),
        (lambda: laid_out(trained, "maxtext"), "none of Hugging Face's names"),
        (lambda: laid_out(trained, "hf"), "#params is the model without the optimiser"),
        (lambda: laid_out(stored, "hf"), "--like FOLDER gives a config"),
        (lambda: laid_out(mixed, "maxtext"), "layer 0 has no leaf"),
        (lambda: convert.run(str(out), tmp_path / "no", names="jax"), "--names must be one of hf"),
        (lambda: convert.run(str(out), tmp_path / "no", like=tmp_path), r"there is no config\.jso"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_what_easydel_saved_is_read_with_distrust(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "easydel" / "llama" / "checkpoint", folder)
    head, index = folder / "model" / "lm_head" / "kernel", folder / "tensorstore_index.json"
    assert open_source(folder)["lm_head.kernel"].shape == (16, 32)
    good, listed = (head / ".zarray").read_text(), index.read_text()
    for path, text, said in (
        (index, "{}", "lists no arrays"),
        (index, listed.replace("model/lm_head", "model/../lm_head"), "no path below 'model'"),
        (index, listed.replace("model/lm_head", "model/gone"), "no array 'model/gone/kernel'"),
        (head / ".zarray", good.replace("[16,32]", "[16,-1]"), "no shape and chunks"),
        (head / ".zarray", good.replace('"shape":[16,32]', '"shape":[1600,32]'), "1 of 100 chunks"),
        (head / ".zarray", good.replace("<f4", "|O"), "no leaf's"),
    ):
        before = path.read_text()
        path.write_text(text)
        with pytest.raises(UserError, match=said) as caught:
            open_source(folder)
        assert "\n" not in str(caught.value)
        path.write_text(before)
    (head / "0.0").write_bytes(b"no chunk")
    with pytest.raises(UserError, match=r"lm_head\.kernel' cannot be read"):
        open_source(folder)["lm_head.kernel"]
    (head / "0.0").unlink()
    (head / "0.0").symlink_to("/etc/hostname")
    with pytest.raises(UserError):
        open_source(folder)
