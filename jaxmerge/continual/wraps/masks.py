"""Masks of frozen kernels, learnt through scores: W * mask(scores), one slot of scores a task.

Scores are ``<kernel>/scores`` [tasks, *kernel]. A gradient passes straight through the mask: that
of the mask's entry is that of the score (times its sign where magnitudes are compared).

Memory: tasks x the masked kernels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array, Leaves

SCORES = "/scores"


def top_count(size: int, density: float) -> int:
    """Entries that the top fraction keeps of `size`: size - int((1 - density) size), as released.

    >>> top_count(20, 0.3), top_count(9, 0.1), top_count(8, 0.0)
    (6, 1, 0)
    """
    return size - int((1 - density) * size)


def mask(scores: Array, density: float | None) -> Array:
    """0/1 of one task's scores: 1 where s >= 0, or the top fraction of |s| over the leaf.

    Args:
        scores: of one task, like the kernel.
        density: share of entries that are 1, in [0, 1]; None: those of s >= 0.

    >>> scores = jnp.array([1.0, -2.0, 0.5])
    >>> mask(scores, None).tolist(), mask(scores, 0.3).tolist()
    ([1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    """
    if density is None:
        return (scores >= 0).astype(scores.dtype)
    flat = jnp.abs(scores).reshape(-1)
    order = jnp.argsort(flat)[flat.size - top_count(flat.size, density) :]
    return jnp.zeros_like(flat).at[order].set(1).reshape(scores.shape)


def through(scores: Array, density: float | None) -> Array:
    """The mask, differentiable straight through.

    Args:
        scores: of one task, like the kernel.
        density: as in `mask`.

    >>> jax.grad(lambda s: through(s, None).sum())(jnp.array([1.0, -2.0])).tolist()
    [1.0, 1.0]
    """
    hard = jax.lax.stop_gradient(mask(scores, density))
    soft = scores if density is None else jnp.abs(scores)
    return hard + (soft - jax.lax.stop_gradient(soft))  # exactly the mask


def signed_constant(kernel: Array, inputs: int) -> Array:
    """sign(w) sqrt(2 / fan_in): weights that need no training."""
    return jnp.sign(kernel) * jnp.sqrt(jnp.asarray(2 / inputs, kernel.dtype))


def plain(params: Leaves) -> Leaves:
    """The leaves of the model below."""
    return {n: p for n, p in params.items() if not n.endswith(SCORES) and n != OFF}


OFF = "masks/off"  # 1 in a deployment of a merge, whose kernels are masked already
