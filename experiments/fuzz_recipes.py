"""What `experiments/fuzz.py` damages beside the weights: configs, tokenizers, adapters, recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fuzz_checkpoints import (
    Wrong,
    folder,
)
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
    "vocab_size": 6, "hidden_size": 4, "torch_dtype": "float32", "tie_word_embeddings": True,
}  # fmt: skip
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
}


def merge(path: Path, recipe: Any) -> None:
    """Merge a recipe in a folder, as the command does."""
    from jaxmerge.cli import merge as command

    text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe)
    (path / "r.yaml").write_text(text)
    command.run(path / "r.yaml", path / "out", quiet=True, force=True)


def two_models(path: Path) -> None:
    folder(path / "base", 0, config=CONFIG, tokenizer=TOKENIZER, tokenizer_config={"a": 1})
    folder(path / "a", 1, config=CONFIG, tokenizer=TOKENIZER)


def read_config(path: Path) -> None:
    merge(path, {"base": f"{path}/base", "models": [f"{path}/a"], "method": "average",
                 "out_dtype": "bfloat16"})  # fmt: skip


def read_tokenizer(path: Path) -> None:
    from jaxmerge.recipes.native import Recipe
    from jaxmerge.recipes.plan import Models

    recipe = Recipe([f"{path}/a"], "average", f"{path}/base", tokenizer="union")
    job = recipe.plan(Models()).jobs[0]
    for m in (job.base, *job.models):
        for n in m:
            if m[n].shape != m.like[n].shape:
                raise Wrong(f"leaf {n!r} is not what was said of it")


def write_adapter(path: Path) -> None:
    folder(path / "base", 0, config=CONFIG)
    (path / "l").mkdir()
    module = "base_model.model.model.layers.0.mlp.up"
    save_file(
        {f"{module}.lora_A.weight": np.ones((2, 4), np.float32),
         f"{module}.lora_B.weight": np.ones((4, 2), np.float32)},
        path / "l" / "adapter_model.safetensors",
    )  # fmt: skip
    config = {
        "peft_type": "LORA", "lora_alpha": 2, "r": 2, "alpha_pattern": {"up": 4}, "bias": "none",
        "rank_pattern": {}, "target_modules": ["up"], "use_rslora": False, "fan_in_fan_out": False,
    }  # fmt: skip
    (path / "l" / "adapter_config.json").write_text(json.dumps(config))


def read_adapter(path: Path) -> None:
    from jaxmerge.io.sources import open_source

    source = open_source(f"{path}/base+{path}/l")
    for n in source:
        if source[n].shape != source.like[n].shape:
            raise Wrong(f"leaf {n!r} is not what was said of it")


RECIPE = """base: base
models: [a, base]
method:
  - trim: {density: 0.5, scope: leaf}
  - add
  - scale: {gradient: [0, 1]}
rules: {only: mlp}
out_dtype: float16
seed: 3
"""
MERGEKIT = """merge_method: slerp
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2]}
parameters:
  t:
    - filter: mlp
      value: [0, 0.5]
    - value: 0.3
dtype: float32
"""


def write_recipe(path: Path) -> None:
    two_models(path)
    (path / "own.yaml").write_text(RECIPE)
    (path / "mk.yaml").write_text(MERGEKIT)


def read_recipe(path: Path) -> None:
    from jaxmerge.cli import merge as command

    for name in ("own", "mk"):
        command.run(path / f"{name}.yaml", path / "out", quiet=True, force=True)


def write_resolved(path: Path) -> None:
    two_models(path)
    merge(path, {"base": f"{path}/base", "models": [f"{path}/a"], "method": "average"})


def read_resolved(path: Path) -> None:
    from jaxmerge.cli import merge as command

    command.run(path / "out" / "recipe.resolved.yaml", path / "again", quiet=True, resume=True)
