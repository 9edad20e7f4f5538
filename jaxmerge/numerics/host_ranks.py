"""The rank of every magnitude in its row, on the host: sixteen bits are sorted, the rest repaired.

numpy sorts integers of 16 bits by radix, ties by position, at 3 to 4 ns an entry in rows of any
length; words of 64 bits that hold magnitude and place take 6 with the AVX2 of a Zen 4, 10 to 18
with its AVX-512, which numpy prefers, and XLA 35 and more.  So a row is put in order by 16 bits of
the logarithms of its magnitudes: 16 octaves down from the largest, in steps of 1 / 4096.
Neighbours that agree in them, one normal entry in 25 in rows of 768 and one in 7 in rows of 3,072,
are then put in order by all bits.  Where much is out of order, as below an outlier or among entries
that differ in their last bits alone, the rows are sorted anew, by the low bits and then by the high
ones.  With all that belongs to it an entry takes 9 to 12 ns; up to 20 in rows that are sorted anew.
"""

from __future__ import annotations

import numpy as np

from jaxmerge.numerics.host_rows import by_span

BLOCK = 1 << 15  # entries that are sorted at a time: what is held of them stays in the cache
SHIFT = 11  # bits of a magnitude below the sixteen that are sorted
SPAN = (1 << 16 + SHIFT) - 1  # how far below a row's largest they tell magnitudes apart
REPAIRS = 8  # more than one neighbour in so many out of order are too many to repair


def ranks(model: np.ndarray, base: np.ndarray, axis: int) -> np.ndarray:
    """The rank of |model - base| along an axis, 0 for the smallest, equal ones as they stand.

    Args:
        model, base: arrays of one shape with at least one axis, of dtypes that float32 holds.

    Returns:
        Unsigned integers in the shape of the leaf.

    >>> ranks(np.array([[3.0, -1.0, 3.0]], np.float32), np.zeros((1, 3), np.float32), 1).tolist()
    [[1, 0, 2]]
    """
    n = model.shape[axis]
    kind = np.uint16 if n <= 1 << 16 else np.uint32
    rows = [np.moveaxis(x, axis, -1) for x in (model, base)]
    out = np.empty(rows[0].shape, kind)
    flat, first, second = (x.reshape(-1, n) for x in (out, *rows))
    many = max(1, min(BLOCK // n, len(flat)))
    rank = np.tile(np.arange(n, dtype=kind), many)

    def run(start, stop):
        start, stop = -(-start // n), -(-stop // n)  # whole rows
        for at in range(start, stop, many):
            part = slice(at, min(at + many, stop))
            block = flat[part].reshape(-1)
            block[_order(_magnitudes(first[part], second[part]))] = rank[: block.size]

    by_span(out.size, run, 4 * BLOCK)
    return np.moveaxis(out, -1, axis)


def _magnitudes(model: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The bits of |model - base| as float32, which compare as the numbers do."""
    wide = (x.astype(np.float32, copy=False) for x in (model, base))
    bits = np.subtract(*wide, order="C").view(np.uint32)
    bits &= np.uint32((1 << 31) - 1)
    return bits


def _order(bits: np.ndarray) -> np.ndarray:
    """Where the entries of each row stand, its smallest first, one row after the other."""
    low = np.maximum(bits.max(axis=-1, keepdims=True), np.uint32(SPAN)) - np.uint32(SPAN)
    keys = ((np.maximum(bits, low) - low) >> np.uint32(SHIFT)).astype(np.uint16)
    order = _by_sixteen(keys)
    found = bits.take(order).reshape(bits.shape)
    wrong = np.count_nonzero(found[:, 1:] < found[:, :-1])
    if wrong > bits.size // REPAIRS:
        order = _by_sixteen(bits.astype(np.uint16))
        high = (bits >> np.uint32(16)).astype(np.uint16)
        return order.take(_by_sixteen(high.take(order).reshape(bits.shape)))
    if wrong:
        at = _beside_equal(keys.take(order))
        row = (at // bits.shape[1]).astype(np.uint64)
        words = row << np.uint64(32) | found.take(at)  # nearly in order, so quickly sorted
        order[at] = order.take(at).take(words.argsort(kind="stable"))
    return order


def _by_sixteen(keys: np.ndarray) -> np.ndarray:
    """The order of every row by 16 bits, equal ones as they stand."""
    order = keys.argsort(axis=-1, kind="stable")
    order += keys.shape[1] * np.arange(len(keys))[:, None]
    return order.reshape(-1)


def _beside_equal(keys: np.ndarray) -> np.ndarray:
    """Where an entry of a sorted array stands beside its equal."""
    equal, beside = keys[1:] == keys[:-1], np.zeros(keys.size, bool)
    beside[1:] = equal
    beside[:-1] |= equal
    return np.flatnonzero(beside)
