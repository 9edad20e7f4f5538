"""A Gaussian for each class: the mean and covariance of its features.

Memory: classes x (d + d^2) numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxmerge.core.types import Array


class Gaussians(NamedTuple):
    """Statistics of classes.

    Attributes:
        mean: [C, d].
        root: [C, d, d], lower Cholesky factors of the covariances.
        known: bool [C].
    """

    mean: Array
    root: Array
    known: Array


def empty(classes: int, d: int, dtype: DTypeLike = jnp.float32) -> Gaussians:
    """No class is known.

    Args:
        classes: C.
        d: width of the features.
        dtype: of the statistics.

    >>> empty(3, 2).root.shape
    (3, 2, 2)
    """
    zero = jnp.zeros((classes, d, d), dtype)
    return Gaussians(jnp.zeros((classes, d), dtype), zero, jnp.zeros(classes, bool))


def learn(
    old: Gaussians, features: Array, labels: Array, weight: Array, new: Array, ridge: float
) -> Gaussians:
    """Statistics of the classes `new` that have an example and are not known; others stay.

    Formula: m = mean, S = sum (f - m)(f - m)' / (n - 1) + ridge I. A class with one example has
    S = ridge I.

    Args:
        old: of `empty` or `learn`.
        features: [N, d].
        labels: int [N].
        weight: [N], 0 where there is no example.
        new: bool [C].
        ridge: 0 or more; positive where a class may have fewer than d + 1 examples.

    >>> features, labels = jnp.array([[0.0], [2.0]]), jnp.zeros(2, int)
    >>> now = learn(empty(2, 1), features, labels, jnp.ones(2), jnp.ones(2, bool), 0.0)
    >>> float(now.mean[0, 0]), round(float(now.root[0, 0, 0]) ** 2, 3), now.known.tolist()
    (1.0, 2.0, [True, False])
    """
    eye = jnp.eye(features.shape[1], dtype=features.dtype)

    def one(c):
        on = jnp.where((labels == c) & (weight > 0), 1, 0).astype(features.dtype)
        n = jnp.sum(on)
        mean = on @ features / jnp.maximum(n, 1)
        apart = (features - mean) * on[:, None]
        cov = apart.T @ apart / jnp.maximum(n - 1, 1) + ridge * eye
        return mean, jnp.linalg.cholesky(cov), n > 0

    mean, root, met = jax.lax.map(one, jnp.arange(old.known.shape[0]))
    new = new & met & ~old.known
    pick = lambda a, b: jnp.where(new.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return Gaussians(pick(mean, old.mean), pick(root, old.root), old.known | new)
