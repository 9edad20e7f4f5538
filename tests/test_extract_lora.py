"""A fine-tune as an adapter: base and adapter give it back, in every layout of kernels."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmerge.cli import lora
from jaxmerge.errors import UserError
from jaxmerge.io.sources import open_source

BF = ml_dtypes.bfloat16


def saved(folder, leaves, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: np.ascontiguousarray(x) for n, x in leaves.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def llama(seed, dtype=np.float32, rows=20, tied=False):
    g = np.random.default_rng(seed)
    draw = lambda *shape: g.normal(size=shape).astype(dtype)
    out = {"model.embed_tokens.weight": draw(rows, 8), "model.norm.weight": draw(8)}
    for i in range(2):
        layer = f"model.layers.{i}."
        out |= {
            f"{layer}self_attn.q_proj.weight": draw(8, 8), f"{layer}self_attn.q_proj.bias": draw(8),
            f"{layer}mlp.up_proj.weight": draw(16, 8), f"{layer}input_layernorm.weight": draw(8),
        }  # fmt: skip
    return out if tied else {**out, "lm_head.weight": draw(rows, 8)}


LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 20}


def back(tmp_path, **options):
    lora.run(str(tmp_path / "base"), str(tmp_path / "tuned"), tmp_path / "ad", quiet=True,
             **{"rank": 8, **options})  # fmt: skip
    config = json.loads((tmp_path / "ad/adapter_config.json").read_text())
    return open_source(f"{tmp_path / 'base'}+{tmp_path / 'ad'}"), config


def same(source, want, atol=2e-5):
    assert set(source) == set(want)
    for n, x in want.items():
        got = source[n].astype(np.float32)
        np.testing.assert_allclose(got, x.astype(np.float32), atol=atol, err_msg=n)


def test_base_and_adapter_are_the_fine_tune(tmp_path):
    base, tuned = llama(1), llama(2)
    for n in ("model.layers.0.input_layernorm.weight", "model.norm.weight"):
        tuned[n] = base[n]  # nothing is saved that did not change
    saved(tmp_path / "base", base, **LLAMA)
    saved(tmp_path / "tuned", tuned, **LLAMA)
    source, config = back(tmp_path)
    same(source, tuned)
    assert config["target_modules"] == ["q_proj", "up_proj"]
    assert config["bias"] == "lora_only"
    saved_whole = ["embed_tokens", "lm_head", "model.layers.1.input_layernorm"]
    assert config["modules_to_save"] == saved_whole
    keys = {k.removeprefix("base_model.model.") for k in load_file(
        tmp_path / "ad/adapter_model.safetensors")}  # fmt: skip
    assert "model.layers.0.self_attn.q_proj.base_layer.bias" in keys
    assert "model.norm.weight" not in keys


def test_only_matrices_if_asked(tmp_path):
    saved(tmp_path / "base", llama(1), **LLAMA)
    saved(tmp_path / "tuned", llama(2), **LLAMA)
    source, config = back(tmp_path, save_rest=False)
    base, tuned = llama(1), llama(2)
    same(source, {n: (tuned if "proj.weight" in n else base)[n] for n in base})
    assert config["modules_to_save"] is None
    assert config["bias"] == "none"


def test_a_head_that_came_loose_and_a_vocabulary_that_grew(tmp_path):
    saved(tmp_path / "base", llama(1, tied=True), **LLAMA, tie_word_embeddings=True)
    saved(tmp_path / "tuned", llama(2, rows=24), **{**LLAMA, "vocab_size": 24})
    source, _ = back(tmp_path)
    same(source, llama(2, rows=24))
    assert source.config()["tie_word_embeddings"] is False
    assert source.config()["vocab_size"] == 24


def test_kernels_stored_in_out_and_embeddings_in_low_rank(tmp_path):
    def gpt2(seed):
        g = np.random.default_rng(seed)
        draw = lambda *shape: g.normal(size=shape).astype(np.float32)
        return {
            "wte.weight": draw(20, 6), "wpe.weight": draw(10, 6), "ln_f.weight": draw(6),
            "h.0.attn.c_attn.weight": draw(6, 18), "h.0.attn.c_attn.bias": draw(18),
            "h.0.attn.c_proj.weight": draw(6, 6), "h.0.attn.c_proj.bias": draw(6),
        }  # fmt: skip

    config = {"model_type": "gpt2", "vocab_size": 20, "n_layer": 1}
    saved(tmp_path / "base", gpt2(1), **config)
    saved(tmp_path / "tuned", gpt2(2), **config)
    source, settings = back(tmp_path)
    same(source, gpt2(2))
    assert settings["fan_in_fan_out"]
    assert settings["modules_to_save"] == ["lm_head", "ln_f", "wpe", "wte"]
    a = load_file(tmp_path / "ad/adapter_model.safetensors")
    key = "base_model.model.h.0.attn.c_attn.lora_A.weight"
    assert a[key].shape == (6, 6)  # [r, in]
    source, settings = back(tmp_path, modules="wte|c_", force=True)
    same(source, gpt2(2))
    a = load_file(tmp_path / "ad/adapter_model.safetensors")
    assert a["base_model.model.wte.lora_embedding_A"].shape == (6, 20)


def test_an_output_in_the_dtype_of_the_base(tmp_path):
    saved(tmp_path / "base", llama(1, BF), **LLAMA)
    saved(tmp_path / "tuned", llama(2, BF), **LLAMA)
    source, _ = back(tmp_path)
    assert {like.stored for like in source.like.values()} == {np.dtype(BF)}
    same(source, llama(2, BF))


def test_ranks_differ_and_what_cannot_be_saved_is_named(tmp_path, capsys):
    base, tuned = llama(1), llama(1)
    q = "model.layers.1.self_attn.q_proj.weight"
    tuned[q] = base[q] + np.outer(np.ones(8), np.ones(8)).astype(np.float32)
    up = "model.layers.0.mlp.up_proj.weight"
    tuned[up] = llama(2)[up]
    base["model.scale"], tuned["model.scale"] = np.ones(2, "f"), np.zeros(2, "f")
    tuned["model.new.weight"] = np.zeros(3, np.float32)
    saved(tmp_path / "base", base, **LLAMA)
    saved(tmp_path / "tuned", tuned, **LLAMA)
    lora.run(str(tmp_path / "base"), str(tmp_path / "tuned"), tmp_path / "ad", rank=8,
             energy=1 - 1e-9)  # fmt: skip
    assert "left out" in (message := capsys.readouterr().out)
    assert "model.scale" in message
    assert "model.new.weight" in message
    config = json.loads((tmp_path / "ad/adapter_config.json").read_text())
    assert config["rank_pattern"]["model.layers.1.self_attn.q_proj"] == 1
    source = open_source(f"{tmp_path / 'base'}+{tmp_path / 'ad'}")
    for n in (q, up):
        np.testing.assert_allclose(source[n], tuned[n], atol=2e-5)


def test_what_is_refused(tmp_path):
    saved(tmp_path / "base", llama(1), **LLAMA)
    other = {n: x for n, x in llama(2).items() if "layers.1" not in n}
    saved(tmp_path / "tuned", other, **LLAMA)
    with pytest.raises(UserError, match="lacks, in the base's shape") as error:
        back(tmp_path)
    assert "layers.1" in str(error.value)
    with pytest.raises(UserError, match="no regular expression"):
        back(tmp_path, modules="(")
    with pytest.raises(UserError, match="is chosen by"):
        back(tmp_path, modules="nothing")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_loads_what_was_extracted(tmp_path, family):
    """The same logits as the fine-tune, and no key that PEFT does not expect."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    config = {
        "llama": lambda: LlamaConfig(
            vocab_size=30, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, attention_bias=True,
        ),
        "gpt2": lambda: GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=2, n_head=2),
    }[family]()  # fmt: skip
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        net = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for p in net.parameters():
                p += 0.1 * torch.randn_like(p)
        net.save_pretrained(tmp_path / name)
    back(tmp_path, rank=16)
    ids = torch.arange(12)[None] % 30
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "ad")
    with torch.no_grad():
        want, got = tuned(ids).logits, model(ids).logits
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
