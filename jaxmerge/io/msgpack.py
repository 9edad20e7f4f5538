"""Flax's msgpack files (``flax_model.msgpack``) as a model; names join the path with "/"."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.free_memory import memory_free
from jaxmerge.io.safetensors import Like, Stamp, Whole
from jaxmerge.io.untrusted import open_regular


class Msgpack(Whole):
    """A file that `flax.serialization.to_bytes` wrote.  The format has no table of contents, so it
    is read whole; what is no array (a step, a name) is left out.

    Raises:
        UserError: damaged, no array in it, or larger than memory has room for.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)
        with os.fdopen(open_regular(self.path), "rb") as file:
            self.stamps = {self.path: Stamp.of(file.fileno())}
            need, free = 2 * os.fstat(file.fileno()).st_size, memory_free()
            if free is not None and need > free:
                raise UserError(
                    f"{path} is read whole and takes {need / 1e9:.3g} GB, {free / 1e9:.3g} GB are "
                    "free; convert it to safetensors where there are more."
                )
            self._arrays = dict(_leaves(_restored(self.path, file.read())))
        if not self._arrays:
            raise UserError(f"{path} holds no arrays: no model that Flax saved.")
        self.like = {n: Like(x.shape, x.dtype) for n, x in self._arrays.items()}

    def load(self, name: str) -> np.ndarray:
        return self._arrays[name]


def _restored(path: Path, content: bytes) -> Any:
    from flax.serialization import msgpack_restore

    try:
        return msgpack_restore(content)
    except Exception as error:  # of msgpack, numpy, flax: the file may hold anything
        text = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"{path} is no msgpack file of Flax, or is damaged ({text}).") from None


def _leaves(tree: Any, at: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{at}/{key}" if at else str(key))
    elif isinstance(tree, np.ndarray | np.generic) and at:
        yield at, np.asarray(tree)
