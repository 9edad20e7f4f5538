"""A CLIP model on disk: folders of Hugging Face and of OpenCLIP, and plain state dicts.

`load` reads the config, the weights, the tokenizer and the preprocessing into a `Model`; `save`
writes a folder that transformers (or OpenCLIP) loads. A folder with an image tower only, as
fine-tuned towers are published, loads alone or onto a full base.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.io.key_tables import Entry, absorb, fits
from jaxmerge.io.opened_model import Source
from jaxmerge.io.sources import open_source
from jaxmerge.models.clip.config import Config
from jaxmerge.models.clip.modeling import param_shapes
from jaxmerge.models.clip.open_clip import (
    OPENAI_BUFFERS,
    config_from_open_clip,
    config_from_shapes,
    config_to_open_clip,
)
from jaxmerge.models.clip.params import hf_table, open_clip_table
from jaxmerge.models.clip.preprocess import MEAN, STD, Preprocess, load_preprocess
from jaxmerge.models.clip.tokenize import Tokenizer, load_tokenizer
from jaxmerge.models.folders import config_beside, read_json, write_folder

POSITION_IDS = "embeddings.position_ids"
BUFFERS = (
    *(POSITION_IDS, f"vision_model.{POSITION_IDS}", f"text_model.{POSITION_IDS}"),
    *("attn_mask", *OPENAI_BUFFERS),
)


@dataclass(frozen=True)
class Model:
    """A config, its parameters, and what turns texts and pictures into its inputs."""

    config: Config
    params: Mapping[str, jax.Array]
    tokenizer: Tokenizer | None = None
    preprocess: Preprocess | None = None


def load(
    ref: str | os.PathLike,
    *,
    base: Model | str | os.PathLike | None = None,
    config: Config | None = None,
    allow_pickle: bool = False,
) -> Model:
    """Reads a model.

    Args:
      ref: a folder (Hugging Face's or OpenCLIP's layout, sharded or not), one safetensors file, or
        `org/name[@revision]` on the hub.
      base: a full model; the one at `ref` may then be an image tower alone, and everything that it
        lacks comes from the base.
      config: the architecture, where the files do not say it or say it wrongly.
      allow_pickle: read `.bin` and `.pt` state dicts, through an unpickler that makes tensors only.

    Returns:
      A `Model`; parameters are float32 whatever the files hold.

    Raises:
      UserError (a ValueError): nothing to read at `ref`, or only a pickle.
      ValueError: weights that do not fit the config, all offenders listed; an architecture that is
        not CLIP's; a base of another architecture.

    Memory: the model once, and once more while it is read.

    >>> import tempfile
    >>> from jaxmerge.models.clip.config import Vision
    >>> from jaxmerge.models.clip.modeling import init
    >>> tower = Vision(image=16, patch=8, width=16, layers=1, heads=2, hidden=32)
    >>> config, folder = Config(tower, None, projection_dim=8), tempfile.mkdtemp()
    >>> save((config, init(config, jax.random.key(0))), folder)
    >>> load(folder).config == config
    True
    """
    ref = os.fspath(ref)
    _refuse_jit(ref)
    source = open_source(ref, allow_pickle=allow_pickle)
    try:
        model = _read(source, config)
    finally:
        source.close()
    return model if base is None else _onto(base, model, ref)


def _read(source: Source, config: Config | None) -> Model:
    folder = source.folder
    shapes = {key: tuple(like.shape) for key, like in source.like.items()}
    fused = any("resblocks" in key for key in shapes)
    processing = None
    if fused:
        settings = read_json(folder / "open_clip_config.json") if folder else {}
        if config is None:
            config = config_from_open_clip(settings) if settings else config_from_shapes(shapes)
        picture = settings.get("preprocess_cfg", {})
        if picture:
            mean, std = (tuple(picture.get(k, v)) for k, v in (("mean", MEAN), ("std", STD)))
            processing = Preprocess(config.image_tower.image, mean, std)
    elif config is None:
        config = config_beside(source, Config.from_hf)
    params = absorb(layout_of(source, config), source, param_shapes(config), BUFFERS)
    tokenizer = None
    if config.text is not None and folder is not None:
        tokenizer = load_tokenizer(folder, config.text.context)
    if processing is None:
        processing = load_preprocess(folder, config)
    params = {name: jnp.asarray(np.asarray(leaf, np.float32)) for name, leaf in params.items()}
    return Model(config, params, tokenizer, processing)


def layout_of(keys: Collection[str], config: Config) -> list[Entry]:
    """The table of the layout that a checkpoint with these keys has."""
    if any("resblocks" in key for key in keys):
        return open_clip_table(config)
    table = hf_table(config)
    if not any(key.startswith(("vision_model.", "text_model.")) for key in keys):
        # transformers 5 leaves the tower's name out where there is nothing else.
        tower = "text_model." if config.vision is None else "vision_model."
        table = [entry._replace(key=entry.key.removeprefix(tower)) for entry in table]
    return table


def _onto(base: Model | str | os.PathLike, tower: Model, ref: str) -> Model:
    base = base if isinstance(base, Model) else load(base)
    wrong = []
    for part in ("vision", "text", "activation", "eps", "projection_dim"):
        mine, theirs = getattr(tower.config, part), getattr(base.config, part)
        if mine is not None and mine != theirs:
            wrong += _differences(part, mine, theirs)
    if wrong:
        raise ValueError(f"{ref} is not of the architecture of its base: {'; '.join(wrong)}")
    return replace(base, params=dict(sorted({**base.params, **tower.params}.items())))


def _differences(part: str, mine, theirs) -> list[str]:
    if theirs is None or not hasattr(mine, "__dataclass_fields__"):
        return [f"{part}: found {mine}, the base has {theirs}"]
    return [
        f"{part}.{field.name}: found {getattr(mine, field.name)}, the base has"
        f" {getattr(theirs, field.name)}"
        for field in fields(mine)
        if getattr(mine, field.name) != getattr(theirs, field.name)
    ]


def _refuse_jit(ref: str) -> None:
    path = Path(ref)
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ValueError(
                f"{path} is a TorchScript archive (as OpenAI published CLIP), a program and not a"
                " state dict. Convert it once where torch is installed: state ="
                f" torch.jit.load({path.name!r}, 'cpu').state_dict(); safetensors.torch.save_file("
                "{k: v.contiguous() for k, v in state.items()}, 'clip.safetensors')"
            )


def save(
    model: Model | tuple[Config, Mapping[str, jax.Array]],
    folder: str | os.PathLike,
    dtype: str = "float32",
    layout: str = "hf",
) -> None:
    """Writes a model as a folder that `load` reads, and transformers or OpenCLIP as well.

    Args:
      model: a `Model`, or a config and its parameters.
      folder: made when it does not exist; files of the same names are replaced.
      dtype: of the floats on disk, "float32", "float16" or "bfloat16".
      layout: "hf" (config.json, model.safetensors) or "open_clip" (open_clip_config.json,
        open_clip_model.safetensors).

    Raises:
      ValueError: an unknown dtype or layout, or a model that the layout cannot hold.
      KeyError: parameters that are missing, all listed.
      ValueError: parameters that are not the config's or of another shape, all listed.

    >>> import tempfile
    >>> from jaxmerge.models.clip.config import Vision
    >>> from jaxmerge.models.clip.modeling import init
    >>> tower = Vision(image=16, patch=8, width=16, layers=1, heads=2, hidden=32)
    >>> config, folder = Config(tower, None, projection_dim=8), tempfile.mkdtemp()
    >>> save((config, init(config, jax.random.key(0))), folder)
    >>> sorted(os.listdir(folder))
    ['config.json', 'model.safetensors', 'preprocessor_config.json']
    """
    if layout not in ("hf", "open_clip"):
        raise ValueError(f"layout: found {layout!r}, expected hf or open_clip")
    if not isinstance(model, Model):
        model = Model(*model)
    processing = model.preprocess
    if processing is None and model.config.vision is not None:
        processing = Preprocess(model.config.vision.image)
    if layout == "hf":
        table = hf_table(model.config)
        texts = {"config.json": {**model.config.to_hf(), "dtype": dtype}}
        if processing is not None:
            texts["preprocessor_config.json"] = processing.to_hf()
        weights = "model.safetensors"
    else:
        table = open_clip_table(model.config)
        picture = processing or Preprocess(model.config.image_tower.image)
        config = config_to_open_clip(model.config, picture.mean, picture.std)
        texts, weights = {"open_clip_config.json": config}, "open_clip_model.safetensors"
    fits(model.params, param_shapes(model.config))
    write_folder(Path(folder), weights, table, model.params, dtype, texts, model.tokenizer)
