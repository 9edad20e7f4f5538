"""A small family of checkpoints on disk, and recipes run on them through the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from jaxmerge.cli import merge as command

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


def write(folder, monkeypatch):
    """The family in `folder`, which becomes the working directory."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("JAXMERGE_CACHE", str(folder / "cache"))
    for i, name in enumerate(NAMES):
        (folder / name).mkdir()
        save_file(model(i), folder / name / "model.safetensors")
        config = {"model_type": "toy", "num_hidden_layers": 3, "vocab_size": 8,
                  "layer_types": ["x", "y", "z"], "dtype": "float32"}  # fmt: skip
        (folder / name / "config.json").write_text(json.dumps(config))
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
