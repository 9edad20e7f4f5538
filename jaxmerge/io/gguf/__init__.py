"""GGUF files as models: read leaf by leaf under Hugging Face's names, and written.

    container   the header, believed only as far as the bytes go
    tensors     the tensors of a file, dequantised when they are read
    names       names and row orders against Hugging Face's
    config      config.json from the metadata, and back
    tokenizer   tokenizer.json and the chat template from the metadata, and back
    writer      a model as a GGUF file

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.computed import Computation, Computed
from jaxmerge.io.gguf.config import config_of, kind_of
from jaxmerge.io.gguf.names import IGNORED, Kind, keys_of, place_of, to_ours
from jaxmerge.io.gguf.tensors import Tensors
from jaxmerge.io.gguf.tokenizer import files_of
from jaxmerge.io.safetensors import Like


class Model:
    """A GGUF file as Hugging Face would have the model.

    Attributes:
        stored: the tensors as the file has them.
        leaves: name -> array, dequantised when read.
        config: config.json.
    """

    def __init__(self, path: Path):
        self.stored = Tensors(path)
        try:
            self.config = config_of(self.stored, str(path))
            self.leaves = _leaves(self.stored, self.config, str(path))
        except BaseException:
            self.stored.close()
            raise

    def folder(self) -> Path:
        """A folder with what belongs to the model besides its weights; deleted at the end."""
        where = Path(tempfile.mkdtemp(prefix="jaxmerge-gguf-"))
        weakref.finalize(self.leaves, shutil.rmtree, where, ignore_errors=True)
        texts: dict[str, Any] = {"config.json": self.config}
        ids = {k: v for k, v in self.config.items() if k.endswith("_token_id")}
        texts |= {"generation_config.json": ids} if ids else {}
        try:
            context = self.config.get("max_position_embeddings")
            texts |= files_of(self.stored.metadata, context)
        except UserError:
            pass  # a model without tokenizer; `tokenizer_problem` says why
        for name, content in texts.items():
            (where / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return where


def tokenizer_problem(path: Path) -> str:
    """Why a GGUF file's tokenizer cannot be rebuilt; empty if it can."""
    stored = Tensors(path)
    try:
        files_of(stored.metadata, None)
    except UserError as error:
        return str(error)
    finally:
        stored.close()
    return ""


def _leaves(stored: Tensors, config: dict[str, Any], who: str) -> Computed:
    _, kind = kind_of(stored.metadata, who)
    computed: dict[str, Computation] = {}
    strange, wrong = [], []
    for name, tensor in stored.tensors.items():
        keys = keys_of(name, kind, tensor.shape[0] if tensor.shape else 0)
        if not keys and name not in IGNORED:
            strange.append(name)
        for key in keys:
            try:
                computed[key] = _computation(stored, name, key, kind, config)
            except UserError as error:
                wrong.append(str(error))
    if strange:
        wrong.insert(0, f"tensors that {kind.family} does not have: {', '.join(strange[:5])}")
    if wrong:
        raise UserError(f"{who}: {'; '.join(wrong[:5])}.")
    return Computed(stored, computed, IGNORED)


def _computation(
    stored: Tensors, name: str, key: str, kind: Kind, config: dict[str, Any]
) -> Computation:
    place, shape = place_of(key, kind), stored.tensors[name].shape
    heads = heads_of(key, config)
    dtype = stored.dtype(name)
    if place.kind == "heads" and shape[0] % (2 * heads):
        raise UserError(f"{name!r} has {shape[0]} rows for {heads} heads")
    if place.kind == "plus_one":
        dtype = np.dtype(np.float32)
    if place.kind == "expert":
        shape = shape[1:]
    if place.kind == "column":
        shape = (1, int(np.prod(shape)))
    load = partial(_load, stored, name, key, kind, heads)
    return Computation(Like(shape, dtype), load, [name])


def _load(stored: Tensors, name: str, key: str, kind: Kind, heads: int) -> np.ndarray:
    return to_ours(place_of(key, kind), stored.values(name), heads)


def heads_of(key: str, config: dict[str, Any]) -> int:
    """How many heads the rows of a leaf of queries or keys make."""
    heads = config["num_attention_heads"]
    return config.get("num_key_value_heads", heads) if ".k_proj." in key else heads
