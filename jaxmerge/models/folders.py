"""A model's folder: weights as safetensors, and JSON files beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxmerge.errors import about
from jaxmerge.io import untrusted
from jaxmerge.io.header import CODES
from jaxmerge.io.key_tables import Entry, export
from jaxmerge.io.shard_plan import INDEX, plan_shards

if TYPE_CHECKING:
    from jaxmerge.io.opened_model import Source

T = TypeVar("T")
DTYPES = ("float32", "float16", "bfloat16")
SHIPPED = ("mini", "mini-2k")


def folder_of(model: str) -> Path:
    """Where a model lies: one that comes with the package by its name, any other in that folder.

    >>> folder_of("mini-2k").name, folder_of("models/clip").as_posix()
    ('mini-2k', 'models/clip')
    """
    shipped = Path(str(resources.files("jaxmerge"))) / "assets" / model
    return shipped if model in SHIPPED else Path(model)


def read_json(path: Path, kind: type = dict) -> Any:
    """What a JSON file holds; an empty `kind` where there is no such file.

    Raises:
      ValueError: no JSON, or something else than a `kind`.
    """
    if not path.exists():
        return kind()
    return untrusted.read_json(path, kind)


def config_beside(source: Source, read: Callable[[Mapping[str, Any]], T]) -> T:
    """What `read` makes of the config.json beside the weights of a model.

    Args:
      source: the opened model.
      read: such as `Config.from_hf`.

    Raises:
      UserError (a ValueError): no such file, one that `read` refuses, or the folder of a run, which
        is not its model.
    """
    settings, folder = source.config(), source.folder
    with about(source.ref):
        if not settings:
            raise ValueError("expected a config.json beside the weights")
        if "model_type" not in settings and folder and (folder / "merged").is_dir():
            raise ValueError(f"this is a run, whose model is {folder / 'merged'}")
        return read(settings)


def write_folder(
    folder: Path,
    weights: str,
    table: Iterable[Entry],
    params: Mapping,
    dtype: str | None,
    texts: Mapping[str, Any],
    tokenizer,
    constants: Mapping[str, np.ndarray] | None = None,
    shard_size: int | None = None,
) -> None:
    """Writes a model; files of the same names are replaced.

    Args:
      folder: made when it does not exist.
      weights: the name of the weights' file.
      table, params: the layout, and the parameters under our names.
      dtype: of the floats on disk, one of `DTYPES`; as they are where None.
      texts: file name -> what it holds, written as JSON.
      tokenizer: has `save(folder)`, or None.
      constants: tensors that the layout has and no parameter of ours holds, as they are.
      shard_size: bytes of the largest file; more than one get an index. One file where None.

    Raises:
      ValueError: an unknown dtype.
      KeyError: parameters that are missing, all listed.
    """
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype: found {dtype!r}, expected float32, float16 or bfloat16")
    tensors = export(table, params)
    cast = lambda t: t if dtype is None else jnp.asarray(t, dtype)
    tensors = {key: np.array(cast(t), order="C") for key, t in tensors.items()}
    tensors |= constants or {}
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder, weights, tensors, shard_size)
    for name, content in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)


def _write_tensors(
    folder: Path, weights: str, tensors: Mapping[str, np.ndarray], shard_size: int | None
) -> None:
    from safetensors.numpy import save_file

    like = {key: (CODES[t.dtype], t.shape) for key, t in tensors.items()}
    files = (
        {weights: list(tensors)} if shard_size is None else plan_shards(like, shard_size, weights)
    )
    for file, keys in files.items():
        save_file({key: tensors[key] for key in keys}, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        where = {key: file for file, keys in files.items() for key in keys}
        size = sum(t.nbytes for t in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
