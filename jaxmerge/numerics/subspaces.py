"""The part of a matrix inside of a span of columns, of rows or of both, and the rest of it.

One formula for what projects an update, a gradient or a task vector: `jaxmerge.continual` (spans
behind the optimiser, bases that grow, CoSO's history, both factors of OSFT) and `jaxmerge.folds`
(OPCM, Iso-CTS). Bases have a fixed width; columns that are zero count for nothing, so that the rank
of one decides no shape and needs no mask.

>>> import jax.numpy as jnp
>>> first = jnp.array([[1.0], [0.0]])  # the first of two axes
>>> outside(jnp.ones((2, 2)), left=first).tolist()
[[0.0, 0.0], [1.0, 1.0]]
>>> outside(jnp.ones((2, 2)), right=first).tolist()
[[0.0, 1.0], [0.0, 1.0]]
>>> outside(jnp.ones((2, 2)), first, first).tolist()
[[0.0, 1.0], [1.0, 1.0]]
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from jaxmerge.core.types import Array
from jaxmerge.numerics.precision import full_precision

__all__ = ["inside", "outside"]


@full_precision
def inside(
    x: Array, left: Array | None = None, right: Array | None = None, where: Array | None = None
) -> Array:
    """L L' x, x R R', or with both L (where * L' x R) R'.

    Args:
        x: [in, out], or a convolution's [height, width, in, out], whose rows are all axes but the
            last; with `right` alone [.., out].
        left: L, orthonormal columns and zeros, as many rows as x: [in, k], or [height, width, in,
            k].
        right: R [out, k], orthonormal columns and zeros.
        where: bool [k, k], which pairs of a column of L and one of R count; None: all.

    Raises:
        ValueError: neither a left nor a right basis.

    >>> inside(jnp.ones((2, 1)), jnp.array([[1.0], [0.0]])).tolist()
    [[1.0], [0.0]]
    """
    if left is None:
        if right is None:
            raise ValueError("A projection needs a basis on the left, on the right or on both.")
        return (x @ right) @ right.T
    rows, count = math.prod(left.shape[:-1]), left.shape[-1]  # there may be no column
    columns, flat = jnp.reshape(left, (rows, count)), jnp.reshape(x, (rows, -1))
    seen = columns.T @ flat
    if right is None:
        return (columns @ seen).reshape(x.shape)
    seen = seen @ right
    if where is not None:
        seen = jnp.where(where, seen, 0)
    return ((columns @ seen) @ right.T).reshape(x.shape)


def outside(
    x: Array, left: Array | None = None, right: Array | None = None, where: Array | None = None
) -> Array:
    """x without its part inside: x - L L' x, x - x R R', or x - L (where * L' x R) R'.

    Args:
        x, left, right, where: as for `inside`.

    >>> outside(jnp.ones((2, 1)), jnp.array([[1.0], [0.0]])).tolist()
    [[0.0], [1.0]]
    """
    return x - inside(x, left, right, where)
