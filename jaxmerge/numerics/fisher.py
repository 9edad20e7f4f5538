"""Sums of squared gradients: the diagonal Fisher information and its kin, all of them here.

    sum_i w_i g_i^2        g_i the gradient of item i: of an example, of an example under one label,
                           or of the mean over a batch

What it is depends on the labels for which the gradient of the log-probability is taken: all, each
weighted by its probability (the true Fisher information); the data's own (the empirical one); drawn
from the model; the most probable ones.  A batch's mean squared is smaller than the mean of squares,
so what a published strength means depends on the batches of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array, Leaves
from jaxmerge.numerics.precision import full_precision

_sum_over = full_precision(jnp.tensordot)


def sum_of_squares(
    gradient: Callable[[Any], Leaves],
    items: Any,
    weights: Array,
    start: Leaves,
    *,
    chunk: int = 1,
    running: bool = False,
) -> Leaves:
    """``start + sum_i w_i g_i^2``, in the dtypes of `start`; items of weight 0 do not count.

    Args:
        gradient: ``item -> leaves``.
        items: leaves [N, ...].
        weights: [N], all >= 0.
        chunk: items differentiated at once, by `vmap`.
        running: square g_1 + ... + g_i instead of g_i (gradients that are never zeroed), with
            ``chunk=1``.

    Memory: `chunk` + 2 models.

    >>> zero = {"w": jnp.zeros(())}
    >>> float(sum_of_squares(lambda x: {"w": x}, jnp.arange(3.0), jnp.ones(3), zero)["w"])
    5.0
    """
    if chunk > 1:
        pad = -len(weights) % chunk
        cut = lambda x: jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)).reshape(
            -1, chunk, *x.shape[1:]
        )

        def add_chunk(total, part):
            examples, w = part
            grads = jax.vmap(gradient)(examples)
            fold = lambda t, g: t + _sum_over(w, jnp.square(g.astype(t.dtype)), 1)
            return jax.tree.map(fold, total, grads), None

        return jax.lax.scan(add_chunk, start, jax.tree.map(cut, (items, weights)))[0]

    def add(carry, part):
        total, sums = carry
        item, w = part
        cast = lambda g, t: jnp.where(w > 0, g.astype(t.dtype), 0)
        grads = jax.tree.map(cast, gradient(item), total)
        sums = jax.tree.map(jnp.add, sums, grads) if running else grads
        square = lambda t, g: t + jnp.where(w > 0, w.astype(t.dtype) * g**2, 0)
        total = jax.tree.map(square, total, sums)
        return (total, sums), None

    zero = jax.tree.map(jnp.zeros_like, start)
    return jax.lax.scan(add, (start, zero), (items, weights))[0][0]


def batch_squares(
    gradient: Callable[[Any, Array], Leaves],
    data: Any,
    size: int,
    key: Array,
    running: bool = False,
) -> tuple[Leaves, Array]:
    """``sum_b n_b g_b^2`` over batches, and how many there are: their quotient is the importance.

    With ``size=1`` that is the mean over examples of the squared gradient of each, the diagonal of
    the Fisher information.  Batches that hold no example (weight 0 throughout) do not count.

    Args:
        gradient: ``(batch, key) -> leaves``, the gradient of the batch's mean loss.
        data: a `Batch` with `weight`, leaves ``[N, ...]``.
        size: examples of a batch.
        running: ``sum_b (g_1 + ... + g_b)^2`` instead.

    Source: GT-RIPL/Continual-Learning-Benchmark, ``regularization.py`` (importance of EWC);
    `running` as in the release of MagMax.
    """
    parts = in_batches(data, size)
    keys = jax.random.split(key, parts.weight.shape[0])
    counts = jnp.sum(parts.weight, 1)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts), keys[0])
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    filled = counts > 0
    weights = filled.astype(counts.dtype) if running else counts
    total = sum_of_squares(
        lambda item: gradient(*item), (parts, keys), weights, zero, running=running
    )
    return total, jnp.sum(filled, dtype=jnp.int32)


def in_batches(data: Any, size: int) -> Any:
    """Leaves ``[N, ...]`` as ``[ceil(N / size), size, ...]``, filled up with zeros (weight 0)."""

    def cut(x):
        short = -x.shape[0] % size
        x = jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(cut, data)


def model_labels(kind: Literal["predicted", "sampled"], scores: Array, key: Any) -> Array:
    """Labels [B] that the model gives, from logits or log-probabilities [B, C]."""
    return jax.random.categorical(key, scores) if kind == "sampled" else scores.argmax(-1)
