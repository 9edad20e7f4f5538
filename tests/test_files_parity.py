"""Merged checkpoints load where their inputs loaded: logits equal merging in torch."""

from __future__ import annotations

import os

import pytest
import yaml

from jaxmerge.cli import merge as command

pytestmark = pytest.mark.parity


@pytest.fixture
def torch(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("torch")


def qwen2(torch, tied):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=48, hidden_size=32, intermediate_size=72, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).eval(), transformers.AutoModelForCausalLM


def clip(torch, tied):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 60, "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 16}, projection_dim=24,
    )  # fmt: skip
    return transformers.CLIPModel(config).eval(), transformers.CLIPModel


def outputs(torch, model):
    with torch.no_grad():
        ids = torch.arange(24).reshape(2, 12) % 48
        if hasattr(model, "vision_model"):
            generator = torch.Generator().manual_seed(1)
            pixels = torch.randn(2, 3, 32, 32, generator=generator)
            return model(input_ids=ids, pixel_values=pixels).logits_per_image
        return model(ids).logits


@pytest.mark.parametrize("shard_size", ["5GB", "40kB"])
@pytest.mark.parametrize(("make", "tied"), [(qwen2, True), (qwen2, False), (clip, False)])
def test_logits_equal_merging_in_torch(torch, make, tied, shard_size):
    torch.manual_seed(0)
    base, loader = make(torch, tied)
    base.save_pretrained("base")
    weights, deltas = [0.3, 0.5, 0.4], []
    start = {n: p.detach().clone() for n, p in base.named_parameters()}
    for name in "abc":
        with torch.no_grad():
            for n, p in base.named_parameters():
                p.copy_(start[n] + 0.02 * torch.randn_like(p))
        base.save_pretrained(name)
        deltas.append({n: p.detach() - start[n] for n, p in base.named_parameters()})
        deltas[-1] = {n: d.clone() for n, d in deltas[-1].items()}
    with torch.no_grad():
        for n, p in base.named_parameters():
            p.copy_(start[n] + sum(w * d[n] for w, d in zip(weights, deltas, strict=True)))
    want = outputs(torch, base)
    recipe = {
        "merge_method": "task_arithmetic", "base_model": "base",
        "models": [
            {"model": m, "parameters": {"weight": w}} for m, w in zip("abc", weights, strict=True)
        ],
    }  # fmt: skip
    with open("recipe.yaml", "w") as file:
        yaml.safe_dump(recipe, file)
    command.run("recipe.yaml", "out", shard_size=shard_size, quiet=True)
    got = outputs(torch, loader.from_pretrained("out").eval())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))
