"""How task vectors relate: cosines, where signs conflict, what their largest entries share.

`diagnose` reads every leaf of all models once (and once more to find the largest entries) and keeps
a few numbers a pair of models.  They add up, so the whole model is the sum of its leaves:

    diagnosis = diagnose(base, models, density=0.1)
    diagnosis.whole.cosine                      # [T, T]
    diagnosis.leaves["norm/scale"].conflict     # the same of one leaf
    diagnosis.ranks["block_0/query/kernel"]     # effective rank of each model's change, [T]

Models may be lazy mappings that read leaves from files; nothing bigger than one leaf of every model
is held in memory.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.core import names
from jaxmerge.core.composition import chain
from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.types import Array, Leaves, Tree
from jaxmerge.core.validation import grid_of
from jaxmerge.drivers.leaf import delta
from jaxmerge.drivers.measuring import measure_row
from jaxmerge.folds.elementwise import add
from jaxmerge.numerics.order_statistics import bits_to_magnitude
from jaxmerge.transforms.sparsify import trim

__all__ = ["Diagnosis", "Pairs", "diagnose", "effective_rank", "pairs_of"]

BLOCK = 1 << 20  # entries of one model at a time; counts of a block are exact in float32


class Pairs(NamedTuple):
    """What was counted for every pair of T task vectors, over one leaf or many; each [T, T].

    Attributes:
        dot: inner products, float64.
        moved: entries that both change.
        opposed: entries that both change, in opposite directions.
        shared: entries that are among the largest of both.
        size: entries in all, a number.
    """

    dot: np.ndarray
    moved: np.ndarray
    opposed: np.ndarray
    shared: np.ndarray
    size: int

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(
            self.dot + other.dot,
            self.moved + other.moved,
            self.opposed + other.opposed,
            self.shared + other.shared,
            self.size + other.size,
        )

    @property
    def norms(self) -> np.ndarray:
        """Euclidean norm of each task vector, [T]."""
        return np.sqrt(np.diag(self.dot))

    @property
    def cosine(self) -> np.ndarray:
        """Cosines; NaN with a task vector that is zero."""
        return _ratio(self.dot, np.outer(self.norms, self.norms))

    @property
    def conflict(self) -> np.ndarray:
        """The share of entries that two models both change and pull apart; 1/2 by chance."""
        return _ratio(self.opposed, self.moved)

    @property
    def overlap(self) -> np.ndarray:
        """The share of the largest entries that two models have in common; by chance, density."""
        counts = np.diag(self.shared)
        return _ratio(self.shared, np.sqrt(np.outer(counts, counts)))


class Diagnosis(NamedTuple):
    """The whole, every leaf, and the effective ranks ([T] for each leaf with two axes or more)."""

    whole: Pairs
    leaves: dict[str, Pairs]
    ranks: dict[str, np.ndarray]


def diagnose(
    base: Tree,
    models: Sequence[Tree],
    density: float = 0.1,
    ranks: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Compare the task vectors of models.

    Args:
        base: theta_0, a pytree or a flat (lazy) mapping.
        models: at least one, with the leaves of the base.
        density: which share of the entries of each task vector counts as its largest, ranked over
            the whole model as TIES does.
        ranks: also compute effective ranks, one eigenvalue problem a kernel and model.
        progress: called with the number of entries done and of all.

    Raises:
        ValueError: no model, or leaves that do not fit the base, all of them named.

    Memory: one leaf of the base and of every model, in float32.

    Example:
        >>> base = {"w": np.zeros(4, np.float32)}
        >>> models = [{"w": np.float32([1, 1, 0, 0])}, {"w": np.float32([1, -1, 0, 0])}]
        >>> pairs = diagnose(base, models, density=0.5).whole
        >>> [float(x[0, 1]) for x in (pairs.cosine, pairs.conflict, pairs.overlap)]
        [0.0, 0.5, 1.0]
    """
    check_range("density", density, 0, 1, open_low=True)
    if not models:
        raise ValueError("There is nothing to compare: give the base and at least one model.")
    base, rows = names.flatten(base)[0], [names.flatten(m)[0] for m in models]
    like = getattr(base, "like", base)
    names.check_same(like, *(getattr(row, "like", row) for row in rows))
    largest = chain(trim(density, "global"), add())
    grid = grid_of(largest, like)
    if not grid:
        raise ValueError("The base has no floating-point leaf, so there is nothing to compare.")
    bounds = [_bound(grid, base, row) for row in rows]
    leaves, effective = {}, {}
    done, total = 0, sum(like[n].size for n in grid)
    for n in grid:
        changes = [_parts(np.asarray(delta(row[n], base[n]))) for row in rows]
        leaves[n] = pairs_of(changes, bounds)
        if ranks and like[n].ndim > 1:
            effective[n] = np.array([effective_rank(x) for x in changes])
        done += like[n].size
        if progress is not None:
            progress(done, total)
    return Diagnosis(functools.reduce(operator.add, leaves.values()), leaves, effective)


def _parts(x: np.ndarray) -> np.ndarray:
    """An array of real numbers: both parts of complex ones, side by side."""
    return x if x.dtype.kind != "c" else x.reshape(*x.shape, 1).view(np.finfo(x.dtype).dtype)


def pairs_of(changes: Sequence[np.ndarray], bounds: Iterable[float]) -> Pairs:
    """The `Pairs` of one leaf of every task vector.

    Args:
        bounds: for each model the magnitude from which an entry counts among its largest.
    """
    flat = [np.ravel(x) for x in changes]
    size, bounds = flat[0].size, list(bounds)
    none = lambda kind: np.zeros((len(flat), len(flat)), kind)
    whole = Pairs(none(np.float64), none(np.int64), none(np.int64), none(np.int64), size)
    for start in range(0, size, BLOCK):
        block = np.stack([x[start : start + BLOCK] for x in flat])
        up, down = (block > 0).astype(np.float32), (block < 0).astype(np.float32)
        least = np.asarray(bounds, block.dtype)[:, None]
        large = ((np.abs(block) >= least) & (block != 0)).astype(np.float32)
        apart, wide = up @ down.T, block.astype(np.float64)
        whole += Pairs(
            wide @ wide.T,
            _count((up + down) @ (up + down).T),
            _count(apart + apart.T),
            _count(large @ large.T),
            0,
        )
    return whole


def effective_rank(x: Array) -> float:
    """The exponential of the entropy of the singular values, all axes but the last made one.

    Formula: exp(-sum_i p_i log p_i), p_i = s_i / sum_j s_j; between 1 and min(in, out).  From the
    eigenvalues of the smaller Gram matrix in float64, whose accuracy is ample for an entropy.

    Args:
        x: a kernel, [..., out].

    Source: Roy & Vetterli, The effective rank, EUSIPCO 2007.

    Example:
        >>> round(effective_rank(np.eye(4)), 6), round(effective_rank(np.ones((4, 3))), 6)
        (4.0, 1.0)
    """
    x = np.asarray(x, np.float64)
    x = x.reshape(-1, x.shape[-1])
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    squares = np.linalg.eigvalsh(gram)
    noise = max(gram.shape) * np.finfo(np.float64).eps * max(squares[-1], 0)
    s = np.sqrt(squares[squares > noise])
    if s.size == 0:
        return 0.0
    p = s / s.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def _bound(grid: Any, base: Leaves, row: Leaves) -> float:
    summaries = measure_row(grid, base, row, None, np.int32(0), {})
    return float(bits_to_magnitude(next(iter(summaries.values()))[0]["value"]))


def _count(x: np.ndarray) -> np.ndarray:
    return np.rint(x).astype(np.int64)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)
