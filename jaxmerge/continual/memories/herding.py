"""Which examples stand for a class: those whose mean stays nearest to the mean of all of them.

Source: Rebuffi et al., iCaRL, CVPR 2017, algorithm 4 (after Welling, Herding Dynamical Weights to
Learn, ICML 2009).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array, Tree


def ranks(features: Array, labels: Array, weight: Array, classes: int, most: int) -> Array:
    """int32 [N]: the place at which herding takes an example of its class; `most`: it does not.

    Formula: p_k = argmin over the examples x of the class not taken yet of
    |m - (f(x) + sum of f(p_j), j < k) / k|, m the mean of the class, features of length 1.

    Args:
        features: [N, d].
        labels: int [N].
        weight: [N], 0 where there is no example.
        classes: how many there are.
        most: examples that are taken of a class at most.

    >>> f = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> ranks(f, jnp.zeros(3, int), jnp.ones(3), 1, 2).tolist()
    [1, 2, 0]
    """
    length = jnp.linalg.norm(features, axis=-1, keepdims=True)
    f = features / jnp.maximum(length, 1e-12)

    def one(c):
        mine = (labels == c) & (weight > 0)
        mean = jnp.sum(jnp.where(mine[:, None], f, 0), 0) / jnp.maximum(jnp.sum(mine), 1)

        def take(carry, k):
            total, rank = carry
            far = jnp.sum((mean - (total + f) / (k + 1)) ** 2, -1)
            free = mine & (rank == most)
            at = jnp.argmin(jnp.where(free, far, jnp.inf))
            ok = jnp.any(free)
            rank = rank.at[at].set(jnp.where(ok, k, rank[at]))
            return (total + jnp.where(ok, f[at], 0), rank), None

        start = jnp.zeros(f.shape[1], f.dtype), jnp.full(labels.shape, most, jnp.int32)
        (_, rank), _ = jax.lax.scan(take, start, jnp.arange(most, dtype=jnp.int32))
        return rank

    return jnp.min(jax.lax.map(one, jnp.arange(classes)), 0)


def refill(
    size: int, classes: int, old: Tree, new: Tree, ranks: Array, labels: Array
) -> tuple[Tree, Array, Array]:
    """The examples of a memory with equal shares for the classes: size // classes present of each.

    Old and new examples of a class that comes back take turns: the best of either, the second of
    either, and so on. Of more classes than there is room for, as many as fit have one example.

    Args:
        size: examples of the memory.
        classes: how many there are.
        old: leaves [size, ...].
        new: leaves [N, ...].
        ranks: int [size + N], of the old ones, then the new ones; `size` or more: not to be taken.
        labels: int [size + N].

    Returns:
        Leaves [size, ...], their ranks, int32 how many there are; they come first.

    >>> old, new = jnp.zeros(2), jnp.array([1.0, 2.0, 3.0])
    >>> place, labels = jnp.array([9, 9, 1, 0, 0]), jnp.array([0, 0, 0, 0, 1])
    >>> rows, rank, count = refill(2, 2, old, new, place, labels)
    >>> rows.tolist(), int(count)
    ([2.0, 3.0], 2)
    """
    there = ranks < size
    kind = jnp.where(there, labels, classes)
    order = jnp.lexsort((ranks, kind))  # stable: of equals the old one is first
    many = jnp.zeros(classes + 1, jnp.int32).at[kind].add(1)
    first = jnp.cumsum(many) - many
    place = jnp.arange(len(order), dtype=jnp.int32) - first[kind[order]]
    ranks = jnp.zeros_like(place).at[order].set(place)
    share = jnp.maximum(size // jnp.maximum(jnp.sum(many[:classes] > 0), 1), 1)
    stay = there & (ranks < share)
    stay &= jnp.cumsum(stay) <= size
    at = jnp.argsort(~stay, stable=True)[:size]
    join = lambda a, b: jnp.concatenate([a, b.astype(a.dtype)])[at]
    rank = jnp.where(stay, ranks, size)[at].astype(jnp.int32)
    return jax.tree.map(join, old, new), rank, jnp.sum(stay, dtype=jnp.int32)
