"""Pipelines of diffusers, and Stable Diffusion in one file: component by component."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmerge.errors import UserError
from jaxmerge.io.sources import open_source
from tests import small

UNET = {
    **{f"down_blocks.{i}.attentions.0.to_q.weight": (4 << i, 4 << i) for i in range(2)},
    "conv_in.weight": (4, 3, 3, 3), "time_embedding.linear_1.weight": (4, 4),
}  # fmt: skip
TEXT = {"text_model.embeddings.token_embedding.weight": (9, 4)} | {
    f"text_model.encoder.layers.{i}.mlp.fc1.weight": (4, 4) for i in range(2)
}
VAE = {"decoder.conv_out.weight": (3, 4, 3, 3), "decoder.conv_out.bias": (3,)}
PARTS = {
    "unet": (UNET, "diffusion_pytorch_model", {"_class_name": "UNet2DConditionModel"}),
    "vae": (VAE, "diffusion_pytorch_model", {"_class_name": "AutoencoderKL"}),
    "text_encoder": (TEXT, "model", {"model_type": "clip_text_model", "num_hidden_layers": 2}),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pipeline(name: str, seed: int, shards: bool = False) -> dict:
    g, out = np.random.default_rng(seed), {}
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"],
             "safety_checker": [None, None]}  # fmt: skip
    for part, (shapes, stem, config) in PARTS.items():
        where = Path(name, part)
        where.mkdir(parents=True)
        leaves = {n: g.normal(size=s).astype(np.float32) for n, s in shapes.items()}
        out |= {f"{part}/{n}": x for n, x in leaves.items()}
        save_file(leaves, where / f"{stem}.safetensors")
        (where / "config.json").write_text(json.dumps(config))
        index[part] = ["transformers" if part == "text_encoder" else "diffusers", "Class"]
    Path(name, "scheduler").mkdir()
    Path(name, "scheduler", "scheduler_config.json").write_text("{}")
    Path(name, "model_index.json").write_text(json.dumps(index))
    return out


def read() -> dict:
    return {
        f"{part}/{n}": x
        for part, (_, stem, _) in PARTS.items()
        for n, x in load_file(f"out/{part}/{stem}.safetensors").items()
    }


def merge(recipe: dict, **options) -> None:
    """Run it; what `small.run` loads at the end is not there."""
    with pytest.raises(FileNotFoundError, match=r"out/model\.safetensors"):
        small.run(recipe, force=True, **options)


def test_a_pipeline_keeps_its_folders():
    base, a, b = (pipeline(n, s) for s, n in enumerate(("base", "a", "b")))
    merge({"base": "base", "models": ["a", "b"], "method": {"task_arithmetic": 0.5}})
    got = read()
    assert got.keys() == base.keys()
    for n, x in base.items():
        np.testing.assert_allclose(got[n], x + 0.5 * (a[n] - x + b[n] - x), rtol=1e-5, atol=1e-6)
    for path in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        assert Path("out", path).read_bytes() == Path("base", path).read_bytes()


def test_rules_choose_components():
    a, b = pipeline("a", 1), pipeline("b", 2)
    merge({"base": "a", "models": ["b"], "method": {"task_arithmetic": 1},
           "rules": {"only": "^unet/"}})  # fmt: skip
    for n, x in read().items():
        np.testing.assert_allclose(x, b[n] if n.startswith("unet/") else a[n], atol=1e-6)


def test_shards_of_a_component_have_an_index_there():
    a, b = pipeline("a", 1), pipeline("b", 2)
    merge({"models": ["a", "b"], "method": "mean"}, shard_size="200B")
    again = open_source("out")
    assert again.keys() == a.keys()
    for n in a:
        np.testing.assert_allclose(again[n], (a[n] + b[n]) / 2, rtol=1e-6)
    assert Path("out/unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    again.close()


def test_a_component_outside_is_refused():
    pipeline("a", 1)
    index = json.loads(Path("a/model_index.json").read_text())
    Path("a/model_index.json").write_text(json.dumps(index | {"../b": ["diffusers", "X"]}))
    with pytest.raises(UserError, match="outside of its own"):
        open_source("a")


def test_one_file_of_stable_diffusion():
    parts = {"model.diffusion_model.": UNET, "cond_stage_model.transformer.": TEXT,
             "first_stage_model.": VAE}  # fmt: skip
    models = []
    for seed, name in enumerate("ab"):
        g = np.random.default_rng(seed)
        leaves = {at + n: g.normal(size=s).astype(np.float16)
                  for at, shapes in parts.items() for n, s in shapes.items()}  # fmt: skip
        ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        leaves[ids] = np.arange(77, dtype=np.float16)[None] + seed / 4  # drifted, as in the wild
        leaves["alphas_cumprod"] = np.linspace(1, 0, 10, dtype=np.float32)
        Path(name).mkdir()
        save_file(leaves, f"{name}/{name}.safetensors")
        models.append(leaves)
    recipe = {"models": ["a/a.safetensors", "b/b.safetensors"], "method": "mean"}
    got = small.run(recipe)
    a, b = models
    for n in a:
        constant = n.endswith("position_ids") or n == "alphas_cumprod"
        want = a[n] if constant else (a[n].astype(np.float32) + b[n].astype(np.float32)) / 2
        np.testing.assert_allclose(got[n], want, rtol=1e-3, atol=1e-3)
    assert not Path("out/config.json").exists()
