"""Replay batches with more mixtures of classes whose prototypes lie close to each other.

Source: Wei et al., Online Prototype Learning for Online Continual Learning (OnPro), ICCV 2023,
section 3.3; weilllllls/OnPro, ``AdaptivePrototypicalFeedback``, with kornia 0.6.8's mix-up.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.types import Array


class Mixed(NamedTuple):
    """Examples between two: x = (1 - by) x_one + by x_two.

    Attributes:
        inputs: float [n, ...].
        one, two: int32 [n], labels; by: float [n].
        weight: float [n], 0 where there is none.
    """

    inputs: Array
    one: Array
    two: Array
    by: Array
    weight: Array


def pairs(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of classes: int [P], int [P].

    Args:
        classes: C.

    >>> [x.tolist() for x in pairs(3)]
    [[0, 0, 1], [1, 2, 2]]
    """
    return np.triu_indices(classes, 1)


def pair_counts(prototypes: Array, there: Array, count: Array, rank: Array) -> Array:
    """int32 [P]: how many of `count` mixtures every pair of classes has.

    Formula: round(count q), half to even, q the softmax over the pairs of 1 / |p_a - p_b|; what the
    sum lacks or has too much is added to, or taken from, the pairs of the lowest rank, one each
    (taken only where there is one to take), and once more from the first on while it lacks.

    Args:
        prototypes: [C, p], as they are (not of length 1).
        there: bool [C]; pairs with another class have none.
        count: int32, how many mixtures there are.
        rank: [P], a random order.

    >>> prototypes = jnp.array([[0.0], [1.0], [9.0]])
    >>> counts = pair_counts(prototypes, jnp.ones(3, bool), jnp.int32(4), jnp.arange(3.0))
    >>> int(counts.sum()), int(counts.argmax())
    (4, 0)
    """
    a, b = pairs(len(prototypes))
    real = there[a] & there[b]
    square = jnp.sum((prototypes[a] - prototypes[b]) ** 2, -1)
    near = jnp.where(real, 1 / jnp.sqrt(jnp.where(real, square, 1)), -jnp.inf)
    q = jnp.where(real, jax.nn.softmax(jnp.where(jnp.any(real), near, 0)), 0)
    counts = jnp.round(q * count).astype(jnp.int32)
    lack = jnp.where(jnp.any(real), count - jnp.sum(counts), 0)
    able = real & ((lack >= 0) | (counts > 0))
    place = jnp.argsort(jnp.argsort(jnp.where(able, rank, jnp.inf)))
    many = jnp.maximum(jnp.sum(able), 1)
    each = jnp.abs(lack) // many + (place < jnp.abs(lack) % many)
    return counts + jnp.where(able, jnp.sign(lack) * each, 0).astype(jnp.int32)


def chosen(labels: Array, weight: Array, wanted: Array, u: Array) -> Array:
    """int32 [n]: an example of the class wanted, the floor(u times their number)-th.

    Args:
        labels: int [M].
        weight: [M], 0 where there is no example.
        wanted: int [n], classes.
        u: [n], in [0, 1).

    >>> chosen(jnp.array([0, 1, 1]), jnp.ones(3), jnp.array([1, 1]), jnp.array([0.0, 0.9])).tolist()
    [1, 2]
    """
    members = (labels == wanted[:, None]) & (weight > 0)
    members = jnp.where(jnp.any(members, 1, keepdims=True), members, weight > 0)
    which = jnp.floor(u * jnp.sum(members, 1)).astype(jnp.int32)
    return jnp.argmax(members & (jnp.cumsum(members, 1) == which[:, None] + 1), 1)


def between(x: Array, one: Array, two: Array, by: Array) -> Array:
    """Mixtures of the rows `one` and `two` of x.

    Args:
        x: [M, ...].
        one, two: int [n], rows.
        by: [n], the share of the second, in [0, 1].

    >>> between(jnp.array([0.0, 4.0]), jnp.array([0]), jnp.array([1]), jnp.array([0.25])).tolist()
    [1.0]
    """
    x = x.astype(by.dtype) if not jnp.issubdtype(x.dtype, jnp.floating) else x
    by = by.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    return (1 - by) * x[one] + by * x[two]


def feedback(
    rows: Array, labels: Array, weight: Array, drawn: Array, real: Array, count: Array,
    prototypes: Array, there: Array, key: Array, base: float | Array, p: float | Array,
) -> Mixed:  # fmt: skip
    """A replay batch of mixtures.

    Of `count` examples the first floor(base count) are those drawn, mixed among each other: with
    probability p at all, then each with probability p, by a number uniform in [0, 0.6]. The others
    are mixtures of pairs of classes, see `pair_counts`, by a number from Beta(0.4, 0.4), for each
    pair of classes with probability p (else by 0: the first example). A class that is not in the
    memory is replaced by any of its examples.

    Args:
        rows: [M, ...] of the memory.
        labels: int [M].
        weight: [M], 0 where there is no example.
        drawn: int [n], rows of the memory in random order, of which the first `real` are examples.
        real: int32, at most n.
        count: how many are wanted, n at most; it may be more than `real`.
        prototypes: [C, p], as they are.
        there: bool [C], classes that have one.
        key: PRNG key.
        base: share that is not mixed by pairs, in [0, 1].
        p: probability of mixing, in [0, 1].

    >>> rows, labels, ones = jnp.array([0.0, 4.0]), jnp.array([0, 1]), jnp.ones(2)
    >>> mixed = feedback(
    ...     rows, labels, ones, jnp.array([1, 0]), jnp.int32(2), jnp.int32(2), jnp.eye(2),
    ...     jnp.ones(2, bool), jax.random.key(0), base=1.0, p=0.0,
    ... )
    >>> mixed.inputs.tolist(), mixed.one.tolist()
    ([4.0, 0.0], [1, 0])
    """
    n, keys = drawn.size, jax.random.split(key, 9)
    u = lambda k, shape=(n,): jax.random.uniform(keys[k], shape)
    paired = jnp.sum(there) > 1
    kept = jnp.minimum(jnp.where(paired, jnp.floor(base * count), count), real).astype(jnp.int32)
    count = jnp.where(paired, count, kept)
    place = jnp.arange(n)
    partner = jnp.argsort(jnp.where(place < kept, u(0), 2.0))
    by = jnp.where((u(1, ()) < p) & (u(2) < p), 0.6 * u(3), 0)
    a, b = pairs(len(prototypes))
    counts = pair_counts(prototypes, there, count - kept, u(4, (len(a),)))
    pair = jnp.searchsorted(jnp.cumsum(counts), place - kept, side="right")
    pair = jnp.clip(pair, 0, max(len(a) - 1, 0))
    a, b = (jnp.asarray(x if len(x) else np.zeros(1, int))[pair] for x in (a, b))
    first, second = chosen(labels, weight, a, u(5)), chosen(labels, weight, b, u(6))
    mixes = jax.random.uniform(keys[7], (max(len(counts), 1),))[pair] < p
    beta = jnp.where(mixes, jax.random.beta(keys[8], 0.4, 0.4, (n,)), 0)
    base_part = place < kept
    one = jnp.where(base_part, drawn, first)
    two = jnp.where(base_part, drawn[partner], second)
    by = jnp.where(base_part, by, beta)
    return Mixed(between(rows, one, two, by), labels[one], labels[two], by,
                 (place < count).astype(by.dtype))  # fmt: skip
