"""A ResNet on disk: torchvision's state dicts and Hugging Face's folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.io.key_tables import absorb, fits
from jaxmerge.io.sources import open_source
from jaxmerge.models.folders import config_beside, read_json, write_folder
from jaxmerge.models.resnet.config import Config
from jaxmerge.models.resnet.modeling import param_shapes
from jaxmerge.models.resnet.params import (
    BUFFER,
    config_from_hf,
    config_from_shapes,
    config_to_hf,
    hf_table,
    is_hf,
    plain_key,
    torchvision_table,
)


@dataclass(frozen=True)
class Model:
    """A config, its parameters (with `head/kernel` and `head/bias` where there is a classifier),
    and the names of the classes where the files have them."""

    config: Config
    params: Mapping[str, jax.Array]
    classes: tuple[str, ...] | None = None


def load(ref: str | os.PathLike, *, allow_pickle: bool = False) -> Model:
    """Reads a ResNet of basic blocks.

    Args:
      ref: a folder, a safetensors file, or `org/name[@revision]` on the hub. The architecture is
        read from config.json in transformers' layout, from the shapes in torchvision's.
      allow_pickle: read `.pth` files, through an unpickler that makes tensors only.

    Returns:
      A `Model`, parameters float32.

    Raises:
      UserError (a ValueError): nothing to read at `ref`, or only a pickle.
      ValueError: weights that do not fit, all offenders listed; another architecture.
    """
    source = open_source(os.fspath(ref), allow_pickle=allow_pickle)
    try:
        stored = [key for key in source if not key.endswith(BUFFER)]
        names = None
        if is_hf(stored):
            config, keys = config_beside(source, config_from_hf), {key: key for key in stored}
            prefix = "resnet." if any(key.startswith("resnet.") for key in stored) else ""
            head = "classifier.1.weight" in keys
            table = hf_table(config, head, prefix)
            if head and (labels := source.config().get("id2label")):
                names = tuple(labels[key] for key in sorted(labels, key=int))
        else:
            keys = {plain_key(key): key for key in stored}
            shapes = {plain: tuple(source.like[key].shape) for plain, key in keys.items()}
            config, head = config_from_shapes(shapes), "fc.weight" in keys
            table = torchvision_table(config, head)
            if source.folder is not None:
                labels = read_json(source.folder / "classes.json", list)
                names = tuple(labels) or None
        tensors = {plain: source[key] for plain, key in keys.items()}
        out = len(tensors["classifier.1.bias" if is_hf(stored) else "fc.bias"]) if head else None
        params = absorb(table, tensors, _shapes(config, out))
    finally:
        source.close()
    params = {name: jnp.asarray(np.asarray(leaf, np.float32)) for name, leaf in params.items()}
    return Model(config, params, names)


def _shapes(config: Config, classes: int | None) -> dict[str, tuple[int, ...]]:
    head = {"head/kernel": (config.features, classes), "head/bias": (classes,)}
    return param_shapes(config) | (head if classes is not None else {})


def save(
    model: Model | tuple[Config, Mapping],
    folder: str | os.PathLike,
    dtype: str = "float32",
    layout: str | None = None,
) -> None:
    """Writes a folder that `load` reads, and transformers or torchvision as well.

    Args:
      model: a `Model`, or a config and its parameters.
      folder: made when it does not exist; files of the same names are replaced.
      dtype: of the floats on disk, "float32", "float16" or "bfloat16".
      layout: "hf" (transformers; the stem of ImageNet only) or "torchvision" (a state dict in
        model.safetensors, and classes.json); by default "hf" where that can hold the model.

    Raises:
      ValueError: an unknown dtype or layout, a model that the layout cannot hold, parameters that
        are not the config's.
      KeyError: parameters that are missing, all listed.
    """
    if layout not in (None, "hf", "torchvision"):
        raise ValueError(f"layout: found {layout!r}, expected hf or torchvision")
    if not isinstance(model, Model):
        model = Model(*model)
    config, head = model.config, "head/kernel" in model.params
    layout = layout or ("hf" if config.stem == "imagenet" else "torchvision")
    count = model.params["head/kernel"].shape[1] if head else None
    fits(model.params, _shapes(config, count))
    names = model.classes or ([f"class {k}" for k in range(count)] if count else None)
    texts = {}
    if layout == "hf":
        table = hf_table(config, head, "resnet." if head else "")
        texts["config.json"] = {**config_to_hf(config, names if head else None), "dtype": dtype}
    else:
        table = torchvision_table(config, head)
        if head and model.classes:
            texts["classes.json"] = list(model.classes)
    norms = [e.key.removesuffix("running_mean") for e in table if e.key.endswith("running_mean")]
    counts = {f"{norm}{BUFFER}": np.zeros((), np.int64) for norm in norms}
    write_folder(Path(folder), "model.safetensors", table, model.params, dtype, texts, None, counts)
