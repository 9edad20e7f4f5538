"""Transforms that drop entries of a task vector by size: trim, breadcrumbs, Arcee Fusion's rule.

Which entries are the largest is found by counting, never by sorting
(`jaxmerge.numerics.order_statistics`).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmerge.core.hyperparameters import check_range, model_count, per_model
from jaxmerge.core.ranges import Numbers
from jaxmerge.core.registry import register
from jaxmerge.core.types import Array, Transform, leaf_size, leaf_sum, numpy_of
from jaxmerge.numerics.measures import keep_count, ranked_magnitude, ranked_magnitudes
from jaxmerge.numerics.order_statistics import magnitude_bits, up_to

__all__ = ["drop_outliers", "keep_important", "trim"]

Scope = Literal["global", "leaf"]


@register
def trim(
    density: Numbers,
    scope: Scope = "global",
    inclusive: bool | None = None,
    rescale: Literal["l1"] | None = None,
    exact: bool = False,
) -> Transform:
    """Keep the `density` share of entries of largest magnitude, all that tie with the last one too.

    Formula: keep tau[p] where |tau[p]| >= the k-th largest |tau|.

    Args:
        density: share kept, in [0, 1], 0 for nothing; a number, or one for each model.
        scope: "global" ranks the whole task vector (the paper), "leaf" each leaf on its own.
        inclusive: k = floor(density n) + 1 if True, as the official code, whose threshold is the
            entry just outside; k = floor(density n) if False, as per-tensor implementations.  At
            least 1 and at most n.  By default True for "global" and False for "leaf".
        rescale: "l1" multiplies what is kept of a leaf so that its L1 norm stays.
        exact: keep k entries and no more: of equal ones the first in the leaf (row-major), as the
            checkpoint stores it; for scope "leaf".  bfloat16 checkpoints have many equal changes.

    Memory: 0; one pass over the model for "leaf", as a rule two for "global".

    Source: Yadav et al., TIES-Merging, NeurIPS 2023, step 1.  Differs: a density of 1 keeps all.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> method = jm.chain(jm.trim(0.5, scope="leaf"), jm.add())
        >>> jm.merge(method, {"w": np.zeros(4)}, [{"w": np.array([1.0, -4.0, 3.0, -2.0])}])["w"]
        array([ 0., -4.,  3.,  0.])
    """
    check_range("density", density, 0, 1)
    _check_exact(exact, scope)
    more = (scope == "global") if inclusive is None else inclusive

    def ranks(n):
        count = keep_count(density, n) + more
        xp = numpy_of(count)
        return xp.where(_over_models(density) > 0, xp.maximum(count, 1), 0)

    def kernel(x, ctx):
        least, place = (_mine(ctx.measured.get(k), ctx) for k in ("value", "place"))
        return keep(x, up_to(x, least, place, ctx.key), rescale)

    measure = ranked_magnitude(ranks, _axis(scope), exact)
    return Transform(kernel, measure, models=model_count(density))


@register
def drop_outliers(
    density: Numbers,
    gamma: Numbers = 0.01,
    scope: Scope = "leaf",
    rescale: Literal["l1"] | None = None,
    exact: bool = False,
) -> Transform:
    """Drop the `gamma` share of largest magnitude, then keep the largest of the rest (breadcrumbs).

    Formula: with m = max(1, floor(density n)) and g = min(floor(gamma n), n - m), keep the entries
    of rank g + 1 to g + m in |tau|, and what ties with the first or the last of them.

    Args:
        density: share kept, in [0, 1], 0 for nothing; the paper's beta is 1 - density - gamma.
        gamma: share of the largest that is dropped, in [0, 1]; cut to 1 - density.
        scope: "leaf" ranks each leaf on its own (the paper), "global" the whole task vector.
        rescale: "l1" multiplies what is kept of a leaf so that its L1 norm stays.
        exact: keep m entries and no more, as in `trim`.

    Memory: 0.

    Source: Davari and Belilovsky, Model Breadcrumbs, ECCV 2024, section 3.  Differs: stated as the
    share kept; a small leaf, with floor(gamma n) = 0, loses nothing at the top.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> method = jm.chain(jm.drop_outliers(density=0.5, gamma=0.25), jm.add())
        >>> jm.merge(method, {"w": np.zeros(4)}, [{"w": np.array([1.0, -4.0, 3.0, -2.0])}])["w"]
        array([ 0.,  0.,  3., -2.])
    """
    check_range("density", density, 0, 1)
    check_range("gamma", gamma, 0, 1)
    _check_exact(exact, scope)

    def ranks(n):
        retained, dropped = keep_count(density, n), keep_count(gamma, n)
        xp = numpy_of(retained, dropped)
        retained = xp.maximum(retained, 1)
        dropped = xp.minimum(dropped, n - retained)
        # not exact: what ties with the first one kept is kept; exact: nothing up to the one before
        first, last = xp.broadcast_arrays(dropped + (not exact), dropped + retained)
        return xp.stack([first, last])

    def kernel(x, ctx):
        places = ctx.measured.get("place")
        most, least = (
            (_mine(value, ctx), None if places is None else _mine(places[i], ctx))
            for i, value in enumerate(ctx.measured["value"])
        )
        below = ~up_to(x, *most, ctx.key) if exact else magnitude_bits(x) <= most[0]
        mask = below & up_to(x, *least, ctx.key) & (per_model(density, ctx) > 0)
        return keep(x, mask, rescale)

    measure = ranked_magnitude(ranks, _axis(scope), exact)
    return Transform(kernel, measure, models=model_count(density, gamma))


@register
def keep_important(axis: int = -1) -> Transform:
    """Keep the entries whose change is large in a row that the change affects much.

    Formula: importance[p] = |tau[p]| KL(softmax(row of theta) || softmax(row of theta_0)); with
    q(s) the entry at place floor(s (n - 1)) of the n sorted importances of the leaf, keep where
    importance >= q(1/2) + 1.5 (q(3/4) - q(1/4)).

    Args:
        axis: the axis of a row, over which the softmax goes: -1 as in torch checkpoints.

    Memory: 0 (four leaves).

    Source: the Arcee Fusion method of mergekit 0.1, by its published description.  Differs: the
    divergence is computed without cancellation, and quantiles are exact, without a sample.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> method = jm.chain(jm.keep_important(), jm.add())
        >>> model = {"w": np.array([[1.0, 2.0, 3.0, 9.0]])}
        >>> jm.merge(method, {"w": np.zeros((1, 4))}, [model])["w"]
        array([[0., 0., 0., 9.]])
    """

    def kernel(x, ctx):
        importance = jnp.abs(x) * _divergence(x, ctx.base.astype(x.dtype), axis)
        last = leaf_size(x) - 1
        places = jnp.stack([last // 4, last // 2, last - (last + 3) // 4])  # floor(s (n - 1))
        low, middle, high = ranked_magnitudes(importance, last + 1 - places)
        return jnp.where(importance >= middle + 1.5 * (high - low), x, 0)

    return Transform(kernel)


def _divergence(x: Array, base: Array, axis: int) -> Array:
    """KL(softmax(base + x) || softmax(base)) along an axis, exact to rounding for small changes.

    With q = softmax(base) and c = x - E_q[x]:  Z = 1 + E_q[e^c - 1 - c],
    KL = E_q[c (e^c - 1)] / Z - log Z, in which no term of first order is left to cancel.
    """
    if x.ndim == 0:
        return jnp.zeros_like(x)
    q = jax.nn.softmax(base, axis=axis)
    mean = lambda v: jnp.sum(q * v, axis=axis, keepdims=True)
    c = x - mean(x)
    series = c * c / 2 * (1 + c / 3 * (1 + c / 4 * (1 + c / 5 * (1 + c / 6))))
    rest = mean(jnp.where(jnp.abs(c) < 0.1, series, jnp.expm1(c) - c))
    return jnp.maximum(mean(c * jnp.expm1(c)) / (1 + rest) - jnp.log1p(rest), 0)


def keep(x: Array, mask: Array, rescale: str | None = None) -> Array:
    """The entries under the mask, zero elsewhere; "l1" restores the L1 norm of the leaf."""
    survivors = jnp.where(mask, x, 0)
    if rescale is None:
        return survivors
    left = leaf_sum(jnp.abs(survivors))
    return survivors * jnp.where(left > 0, leaf_sum(jnp.abs(x)) / jnp.where(left > 0, left, 1), 1)


def _over_models(value: Any) -> Any:
    """A number, or an array of one for each model."""
    if isinstance(value, tuple | list):
        return numpy_of(*value).stack([numpy_of(*value).asarray(v) for v in value])
    return value


def _mine(measured: Any, ctx: Any) -> Any:
    """What was measured for this model, of one number or a number for each model."""
    return None if measured is None else per_model(measured, ctx)


def _check_exact(exact: bool, scope: str) -> None:
    if exact and scope != "leaf":
        raise ValueError('exact=True ranks equal entries within a leaf: give scope="leaf" too.')


def _axis(scope: str) -> str:
    return "row" if scope == "global" else "leaf"
