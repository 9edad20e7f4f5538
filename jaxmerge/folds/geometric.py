"""The arc between two vectors.

What one vector is, the whole leaf or each of its rows or columns, says ``per``; see
`jaxmerge.folds.vectors`.  With ``base=None`` the task vectors are the weights themselves, which is
how SLERP is mostly used.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.ranges import Number
from jaxmerge.core.registry import register
from jaxmerge.core.types import Merge, collected
from jaxmerge.folds import vectors

__all__ = ["arc"]

Per = Literal["leaf", "row", "column"]


@register
def arc(t: Number, per: Per = "leaf", colinear: float = 1.0) -> Merge:
    """The point at `t` on the arc between two vectors, their lengths turning into each other.

    Formula: (sin((1-t) w) a + sin(t w) b) / sin w, w the angle between a and b; the chord
    (1-t) a + t b where the arc is not determined: |cos w| > `colinear`, or a vector is zero.

    Args:
        t: 0 gives the first vector, 1 the second; within [0, 1] for points between them.
        per: what one vector is, see `jaxmerge.folds.vectors`.
        colinear: in (0, 1].

    Memory: 2 x the model.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = {"w": np.array([2.0, 0.0])}, {"w": np.array([0.0, 2.0])}
        >>> jm.merge(jm.arc(0.5), None, [one, two])["w"].round(3)
        array([1.414, 1.414])
    """
    check_range("t", t, -float("inf"), one=True)
    check_range("colinear", colinear, 0, 1, open_low=True, one=True)

    def reduce(rows, ctx):
        a, b = rows
        (ua, la), (ub, lb) = vectors.unit(a, per), vectors.unit(b, per)
        cos = vectors.dot(ua, ub, per)
        # by half chords: exact for small angles too, where arccos loses half its digits
        angle = 2 * jnp.arctan2(vectors.length(ua - ub, per), vectors.length(ua + ub, per))
        sin = jnp.sin(angle)
        eps = jnp.finfo(a.dtype).eps
        straight = (jnp.abs(cos) > colinear) | (sin < 16 * eps) | (la == 0) | (lb == 0)
        sin = jnp.where(straight, 1, sin)
        first = jnp.where(straight, 1 - t, jnp.sin((1 - t) * angle) / sin)
        second = jnp.where(straight, t, jnp.sin(t * angle) / sin)
        return (first * a + second * b).astype(a.dtype)

    return collected(reduce, models=(2, 2))
