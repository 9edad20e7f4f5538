"""Small models and recipes that attacks are made of."""

from __future__ import annotations

import json

import numpy as np
import yaml
from safetensors.numpy import save_file

LEAVES = {"model.layers.0.mlp.up.weight": np.ones((4, 4), np.float32)}


def folder(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    save_file(LEAVES, path / "model.safetensors")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def recipe(tmp_path, **more):
    content = {"base": str(tmp_path / "base"), "models": [str(tmp_path / "a")], "method": "average"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content | more))
    return tmp_path / "r.yaml"


def two_models(tmp_path):
    """A base and a model in folders, and where they lie."""
    folder(tmp_path / "base", config={"a": 1})
    folder(tmp_path / "a")
    return tmp_path
