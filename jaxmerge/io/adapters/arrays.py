"""Array math of combined adapters: pruned, dropped, reduced to one, cut to a rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

F32 = np.dtype(np.float32)


def prune(x: np.ndarray, density: float) -> np.ndarray:
    """The floor(density n) entries of largest magnitude, of equal ones the first.

    >>> prune(np.float32([3, -4, 1, 1]), 0.75).tolist()
    [3.0, -4.0, 1.0, 0.0]
    """
    if density >= 1:
        return x
    order = np.argsort(-np.abs(x).reshape(-1), kind="stable")
    mask = np.zeros(x.size, bool)
    mask[order[: int(density * x.size)]] = True
    return x * mask.reshape(x.shape)


def drop(x: np.ndarray, density: float, key: tuple[int, ...]) -> np.ndarray:
    """Entries kept with probability density, divided by it."""
    if density >= 1:
        return x
    if density <= 0:
        return np.zeros_like(x)
    mask = np.random.default_rng(key).random(x.shape) < density
    return (x * mask / density).astype(x.dtype)


def reduce(
    method: str, arrays: Sequence[np.ndarray], weights: Sequence[float], density: float, sign: str,
    key: tuple[int, ...],
) -> np.ndarray:  # fmt: skip
    """Combine arrays of one shape, entry by entry: `method` is one of `APART`.

    >>> pair = [np.float32([1, -1]), np.float32([1, 3])]
    >>> reduce("linear", pair, [0.5, 1], 1, "total", ()).tolist()
    [1.5, 2.5]
    >>> reduce("ties", pair, [1, 1], 1, "total", ()).tolist()
    [1.0, 3.0]
    """
    if method.startswith("dare"):
        arrays = [drop(x, density, (*key, t)) for t, x in enumerate(arrays)]
    elif method != "linear":
        arrays = [prune(x, density) for x in arrays]
    rows = np.stack(arrays)
    scaled = rows * np.asarray(weights, rows.dtype).reshape(-1, *[1] * (rows.ndim - 1))
    if not method.endswith("ties"):
        return scaled.sum(0)
    total = rows.sum(0) if sign == "total" else np.sign(rows).sum(0)
    agree = np.sign(rows) == np.where(total >= 0, 1, -1)
    return (scaled * agree).sum(0) / np.maximum(agree.sum(0), 1)


def cut(product: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best factors of a rank: A = V', B = U S."""
    u, s, v = np.linalg.svd(product.astype(np.float64), full_matrices=False)
    return v[:rank].astype(F32), (u[:, :rank] * s[:rank]).astype(F32)


def cut_factors(down: np.ndarray, up: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of B A without the product: by QR of both and the singular values of R_B R_A'."""
    qb, rb = np.linalg.qr(up.astype(np.float64))
    qa, ra = np.linalg.qr(down.astype(np.float64).T)
    u, s, v = np.linalg.svd(rb @ ra.T)
    rank = min(rank, s.size)
    return (v[:rank] @ qa.T).astype(F32), (qb @ (u[:, :rank] * s[:rank])).astype(F32)
