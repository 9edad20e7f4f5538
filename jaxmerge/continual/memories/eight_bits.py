"""Features in a byte each, for memories that store activations instead of examples."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxmerge.core.types import Array


class Bytes(NamedTuple):
    """Rows of numbers.

    Attributes:
        values: int8 [N, ...].
        scale: float32 [N], of each row; the number is value scale.
    """

    values: Array
    scale: Array


def packed(x: Array) -> Bytes:
    """Each row's numbers by 127 over its largest magnitude, rounded: within scale / 2 of them.

    Args:
        x: [N, ...].

    >>> b = packed(jnp.array([[0.5, -1.0, 0.0], [0.0, 0.0, 0.0]]))
    >>> b.values.tolist(), [round(s, 5) for s in b.scale.tolist()]
    ([[64, -127, 0], [0, 0, 0]], [0.00787, 0.0])
    """
    most = jnp.max(jnp.abs(x), range(1, x.ndim))
    by = jnp.where(most > 0, 127 / jnp.where(most > 0, most, 1), 0)
    values = jnp.round(x * by.reshape(-1, *[1] * (x.ndim - 1)))
    return Bytes(values.astype(jnp.int8), (most / 127).astype(jnp.float32))


def unpacked(b: Bytes, dtype: DTypeLike = jnp.float32) -> Array:
    """The numbers again.

    Args:
        b: of `packed`.
        dtype: of the numbers.

    >>> unpacked(Bytes(jnp.array([[2, -1]], jnp.int8), jnp.array([0.5]))).tolist()
    [[1.0, -0.5]]
    """
    return b.values.astype(dtype) * b.scale.reshape(-1, *[1] * (b.values.ndim - 1)).astype(dtype)
