"""A CLIP model on disk: a folder in Hugging Face's layout.

`load` reads `config.json`, safetensors, the tokenizer and the preprocessing of a folder into a
`Model`; `save` writes a folder that transformers loads as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.models.clip.config import Config
from jaxmerge.models.clip.modeling import param_shapes
from jaxmerge.models.clip.params import absorb, export, hf_table
from jaxmerge.models.clip.preprocess import Preprocess, load_preprocess
from jaxmerge.models.clip.tokenize import Tokenizer, load_tokenizer

BUFFERS = (
    "vision_model.embeddings.position_ids",
    "text_model.embeddings.position_ids",
    "embeddings.position_ids",
)


@dataclass(frozen=True)
class Model:
    """A config, its parameters, and what turns texts and pictures into its inputs."""

    config: Config
    params: Mapping[str, jax.Array]
    tokenizer: Tokenizer | None = None
    preprocess: Preprocess | None = None


def load(ref: str | Path) -> Model:
    """Reads a model from a folder in Hugging Face's layout.

    Returns:
      A `Model`; parameters are float32 whatever the files hold.

    Raises:
      FileNotFoundError: no such folder, or no config.json or weights in it.
      ValueError: weights that do not fit the config, all offenders listed.
    """
    folder = Path(ref)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder}: expected a folder with config.json")
    config = Config.from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    tensors = _read(folder)
    if config.text is None or config.vision is None:
        prefix = "vision_model." if config.text is None else "text_model."
        if not any(key.startswith(prefix) for key in tensors):
            tensors = {prefix + key: value for key, value in tensors.items()}
    params = absorb(hf_table(config), tensors, param_shapes(config), BUFFERS)
    return Model(
        config,
        {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items()},
        load_tokenizer(folder, config.text.context) if config.text is not None else None,
        load_preprocess(folder, config),
    )


def _read(folder: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
    from safetensors.numpy import load_file

    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    elif (folder / "model.safetensors").exists():
        files = ["model.safetensors"]
    else:
        raise FileNotFoundError(f"{folder}: expected model.safetensors or its index")
    tensors = {}
    for file in files:
        tensors |= load_file(folder / file)
    return tensors


def save(model: Model | tuple[Config, Mapping], folder: str | Path, dtype="float32") -> None:
    """Writes a model as a folder that `load` and transformers read.

    Args:
      model: a `Model`, or a config and its parameters.
      folder: made when it does not exist.
      dtype: of the floats on disk, "float32", "float16" or "bfloat16".
    """
    from safetensors.numpy import save_file

    if not isinstance(model, Model):
        model = Model(*model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {**model.config.to_hf(), "dtype": dtype}
    tensors = export(hf_table(model.config), model.params)
    tensors = {key: np.array(jnp.asarray(t, dtype), order="C") for key, t in tensors.items()}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    processing = model.preprocess
    if processing is None and model.config.vision is not None:
        processing = Preprocess(model.config.vision.image)
    if processing is not None:
        text = json.dumps(processing.to_hf(), indent=1)
        (folder / "preprocessor_config.json").write_text(text + "\n")
