"""Side information about a leaf (its Fisher or Gram matrix, a mask), whole or for a piece of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxmerge.drivers.files.job import Job
from jaxmerge.drivers.measuring import side
from jaxmerge.io.safetensors import Leaves, Like


def sides_of(job: Job, name: str, only: slice = slice(None)) -> tuple:
    """The side information of every model about one leaf."""
    return tuple(side(e, name) for e in (job.extras or ({},) * len(job.models))[only])


def piece_of_sides(job: Job, name: str, start: int, stop: int, shape: tuple[int, ...]) -> tuple:
    """The same about entries start:stop, in the shape of the piece, zeros behind them; what does
    not have the leaf's shape goes along whole."""
    whole = job.like[name].shape

    def piece(v):
        if like_of(v, name).shape != whole:
            return v[name]
        entries = (
            v.read(name, start, stop) if isinstance(v, Leaves) else v[name].reshape(-1)[start:stop]
        )
        entries = np.asarray(entries)
        more = np.zeros(math.prod(shape) - entries.size, entries.dtype)
        return (np.concatenate([entries, more]) if more.size else entries).reshape(shape)

    return tuple(
        {k: piece(v) for k, v in e.items() if name in v}
        for e in job.extras or ({},) * len(job.models)
    )


def like_of(side: Any, name: str) -> Like:
    """What side information about one leaf is, without reading it from a file."""
    leaf = getattr(side, "like", side)[name]
    return Like(tuple(leaf.shape), np.dtype(leaf.dtype))
