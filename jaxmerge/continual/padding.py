"""Lists of different lengths as one array: -1 stands where there is no example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmerge.core.types import Array


def filled(parts: Sequence[np.ndarray], length: int = 0) -> np.ndarray:
    """One array of the type of the parts, [parts, the longest one or `length`, ...].

    >>> filled([np.array([3, 4]), np.array([5])])
    array([[ 3,  4],
           [ 5, -1]])
    """
    longest = max(length, *map(len, parts))
    room = lambda x: [(0, longest - len(x)), *[(0, 0)] * (x.ndim - 1)]
    return np.stack([np.pad(x, room(x), constant_values=-1) for x in parts])


def in_batches(rows: np.ndarray, batch: int) -> np.ndarray:
    """[steps, batch, ...]; the last batch may be short.

    >>> in_batches(np.arange(3), 2)
    array([[ 0,  1],
           [ 2, -1]])
    """
    short = [(0, -len(rows) % batch), *[(0, 0)] * (rows.ndim - 1)]
    whole = np.pad(rows, short, constant_values=-1)
    return whole.reshape(-1, batch, *rows.shape[1:])


def weighed(at: np.ndarray) -> tuple[Array, Array]:
    """Rows, int32, 0 where there is none, and their weights: 0 there, 1 else.

    >>> weighed(np.array([[3, -1]]))
    (array([[3, 0]], dtype=int32), array([[1., 0.]], dtype=float32))
    """
    return np.maximum(at, 0).astype(np.int32), (at >= 0).astype(np.float32)
