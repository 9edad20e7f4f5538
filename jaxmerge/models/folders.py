"""A model's folder: weights as safetensors, and JSON files beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmerge.io.key_tables import Entry, export

DTYPES = ("float32", "float16", "bfloat16")


def read_json(path: Path, kind: type = dict) -> Any:
    """What a JSON file holds; an empty `kind` where there is no such file.

    Raises:
      ValueError: no JSON, or something else than a `kind`.
    """
    if not path.exists():
        return kind()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(found, kind):
        raise ValueError(f"{path}: found {type(found).__name__}, expected {kind.__name__}")
    return found


def write_folder(
    folder: Path,
    weights: str,
    table: Iterable[Entry],
    params: Mapping,
    dtype: str,
    texts: Mapping[str, Any],
    tokenizer,
    constants: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a model; files of the same names are replaced.

    Args:
      folder: made when it does not exist.
      weights: the name of the weights' file.
      table, params: the layout, and the parameters under our names.
      dtype: of the floats on disk, one of `DTYPES`.
      texts: file name -> what it holds, written as JSON.
      tokenizer: has `save(folder)`, or None.
      constants: tensors that the layout has and no parameter of ours holds, as they are.

    Raises:
      ValueError: an unknown dtype.
      KeyError: parameters that are missing, all listed.
    """
    from safetensors.numpy import save_file

    if dtype not in DTYPES:
        raise ValueError(f"dtype: found {dtype!r}, expected float32, float16 or bfloat16")
    tensors = export(table, params)
    tensors = {key: np.array(jnp.asarray(t, dtype), order="C") for key, t in tensors.items()}
    tensors |= constants or {}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / weights, metadata={"format": "pt"})
    for name, content in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(folder)
