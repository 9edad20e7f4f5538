"""Lists of different lengths as one array: -1 stands where there is no example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxmerge.core.types import Array


def padded(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The parts as rows of one array of their type, [parts, longest, ...], -1 behind a short one.

    >>> padded([np.array([3, 4]), np.array([5])])
    array([[ 3,  4],
           [ 5, -1]])
    """
    longest = max(map(len, parts))
    room = lambda x: [(0, longest - len(x)), *[(0, 0)] * (x.ndim - 1)]
    return np.stack([np.pad(x, room(x), constant_values=-1) for x in parts])


def batched(rows: np.ndarray, batch: int) -> np.ndarray:
    """Rows in batches, [steps, batch, ...], -1 behind a short last one.

    >>> batched(np.arange(3), 2)
    array([[ 0,  1],
           [ 2, -1]])
    """
    short = [(0, -len(rows) % batch), *[(0, 0)] * (rows.ndim - 1)]
    whole = np.pad(rows, short, constant_values=-1)
    return whole.reshape(-1, batch, *rows.shape[1:])


def rows_and_weights(at: np.ndarray) -> tuple[Array, Array]:
    """Rows, int32, with 0 in the place of -1, and their weights: 0 there and 1 elsewhere.

    >>> rows_and_weights(np.array([[3, -1]]))
    (array([[3, 0]], dtype=int32), array([[1., 0.]], dtype=float32))
    """
    return np.maximum(at, 0).astype(np.int32), (at >= 0).astype(np.float32)
