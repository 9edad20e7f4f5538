"""A CLIP checkpoint under our names, read leaf by leaf: for pools larger than memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np

from jaxmerge.io.key_tables import absorb
from jaxmerge.io.sources import open_source
from jaxmerge.models.clip import checkpoint
from jaxmerge.models.clip.config import Config
from jaxmerge.models.clip.modeling import param_shapes


class Lazy(Mapping):
    """Parameters of a checkpoint, float32, of which a leaf is read whenever it is asked for.

    Only float leaves of the towers that `config` has; nothing is kept.
    """

    def __init__(self, ref: str | os.PathLike, config: Config):
        self._source = open_source(os.fspath(ref))
        self._shapes = param_shapes(config)
        table = checkpoint.layout_of(self._source, config)
        missing = [e.key for e in table if e.key not in self._source]
        if missing:
            self.close()
            raise ValueError(f"{ref}: lacks {', '.join(missing)}; is it of another architecture?")
        self._entries = {name: entry for entry in table for name in entry.names}

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        leaves = absorb([entry], {entry.key: self._source[entry.key]}, self._shapes)
        return np.asarray(leaves[name], np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        """Give back what is open."""
        self._source.close()


def lazy(ref: str | os.PathLike, config: Config) -> Lazy:
    """Opens a checkpoint as a mapping of our names to arrays, without reading weights.

    Args:
        ref: as for `load`; Hugging Face's or OpenCLIP's layout.
        config: the architecture, with ``text=None`` for an image tower alone.

    Raises:
        UserError (a ValueError): nothing to read at `ref`.
        ValueError: tensors that the architecture needs are missing.

    Memory: one leaf.

    >>> import jax, tempfile
    >>> from jaxmerge.models.clip.config import Vision
    >>> from jaxmerge.models.clip.modeling import init
    >>> tower = Vision(image=16, patch=8, width=16, layers=1, heads=2, hidden=32)
    >>> config, folder = Config(tower, None, projection_dim=8), tempfile.mkdtemp()
    >>> checkpoint.save((config, init(config, jax.random.key(0))), folder)
    >>> lazy(folder, config)["vision/projection/kernel"].shape
    (16, 8)
    """
    return Lazy(ref, config)
