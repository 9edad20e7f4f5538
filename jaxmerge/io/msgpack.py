"""Flax's msgpack files (``flax_model.msgpack``) as a model; names join the path with "/"."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError, bounded, library_message
from jaxmerge.io.free_memory import memory_free
from jaxmerge.io.header import CODES
from jaxmerge.io.safetensors import Like, Stamp, Whole
from jaxmerge.io.untrusted import memory_at_most, open_regular


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
            content = file.read()
        most = ROOM + MULTIPLE * len(content)
        try:
            with memory_at_most(most):  # a byte may stand for a mapping
                self._arrays = _restored(self.path, content)
        except MemoryError:
            raise UserError(f"{path} unpacks to more than {most:,} bytes.") from None
        if not self._arrays:
            raise UserError(f"{path} holds no arrays: no model that Flax saved.")
        odd = [f"{n!r} ({x.dtype})" for n, x in self._arrays.items() if x.dtype not in CODES]
        if odd:
            raise UserError(f"{path}: of a dtype that no leaf of a model has: {bounded(odd)}.")
        self.like = {n: Like(x.shape, x.dtype) for n, x in self._arrays.items()}

    def load(self, name: str) -> np.ndarray:
        return self._arrays[name]


ROOM, MULTIPLE = 64 << 20, 3  # bytes that reading a file may take: so many, and times its size


def _restored(path: Path, content: bytes) -> dict[str, np.ndarray]:
    from flax.serialization import msgpack_restore

    try:
        return dict(_leaves(msgpack_restore(content)))
    except MemoryError:
        raise
    except Exception as error:  # of msgpack, numpy, flax: the file may hold anything
        text = f"{path} is no msgpack file of Flax, or is damaged ({library_message(error)})."
        raise UserError(text) from None


def _leaves(tree: Any, at: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{at}/{key}" if at else str(key))
    elif isinstance(tree, np.ndarray | np.generic) and at:
        yield at, np.asarray(tree)
