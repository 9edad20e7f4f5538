"""Contrasts between examples: what is alike is pulled together, the rest of the batch apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array


def unit(x: Array) -> Array:
    """Rows of length 1; zeros stay zeros, with the gradient 0.

    Args:
        x: [..., d].

    >>> unit(jnp.array([[2.0, 0.0], [0.0, 0.0]])).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    square = jnp.sum(x**2, -1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1))


def supervised(
    z: Array, labels: Array, weight: Array, temperature: float | Array, base: float = 0.07
) -> Array:
    """Supervised contrast: examples of a label are alike.

    Formula: mean over rows i of -(T / base) mean over the others j of i's label of
    log(exp(z_i z_j / T) / sum over k other than i of exp(z_i z_k / T)).

    Args:
        z: [M, p], rows of length 1, all views of all examples.
        labels: int [M].
        weight: [M], 0 for rows that are no example.
        temperature: T, positive.
        base: of the factor T / base, positive.

    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2; the factor T / base
    is that of HobbitLong/SupContrast. A row without another of its label counts 0.

    >>> abs(float(supervised(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2), 0.1)))
    0.0
    """
    real = weight > 0
    others = real[None] & ~jnp.eye(len(z), dtype=bool)
    log = jax.nn.log_softmax(jnp.where(others, z @ z.T / temperature, -1e30), -1)
    alike = others & (labels[:, None] == labels)
    mean = jnp.sum(jnp.where(alike, log, 0), -1) / jnp.maximum(jnp.sum(alike, -1), 1)
    return -(temperature / base) * jnp.sum(jnp.where(real, mean, 0)) / jnp.sum(real)


def prototypes(z: Array, labels: Array, weight: Array, classes: int) -> tuple[Array, Array]:
    """The mean row of each class [C, p] (zeros where it has none), and bool [C]: it has one.

    Args:
        z: [M, p].
        labels: int [M].
        weight: [M], 0 for rows that are no example.
        classes: C.

    >>> mean, there = prototypes(jnp.eye(2), jnp.array([0, 0]), jnp.ones(2), 2)
    >>> mean.tolist(), there.tolist()
    ([[0.5, 0.5], [0.0, 0.0]], [True, False])
    """
    on = (labels == jnp.arange(classes)[:, None]) & (weight > 0)
    count = jnp.sum(on, -1, keepdims=True)
    return on.astype(z.dtype) @ z / jnp.maximum(count, 1), count[:, 0] > 0


def between(one: Array, two: Array, there: Array, temperature: float | Array) -> Array:
    """Contrast of two views of the same things: each is alike its other view alone.

    Formula: mean over the 2 K rows i of -log(exp(s_ii' / T) / sum over k other than i of
    exp(s_ik / T)), s the cosines, i' the other view.

    Args:
        one, two: [C, p].
        there: bool [C], the K that count; where there is none the contrast is 0.
        temperature: T, positive.

    Source: Chen et al., SimCLR, ICML 2020, eq. 1; of prototypes: Wei et al., OnPro, ICCV 2023,
    eq. 4.

    >>> abs(float(between(jnp.eye(1), jnp.eye(1), jnp.ones(1, bool), 0.1)))  # there is no other
    0.0
    """
    rows = unit(jnp.concatenate([one, two]))
    real = jnp.concatenate([there, there])
    many = len(one)
    others = real[None] & ~jnp.eye(2 * many, dtype=bool)
    log = jax.nn.log_softmax(jnp.where(others, rows @ rows.T / temperature, -1e30), -1)
    place = jnp.arange(2 * many)
    own = log[place, (place + many) % (2 * many)]
    return -jnp.sum(jnp.where(real, own, 0)) / jnp.maximum(jnp.sum(real), 1)
