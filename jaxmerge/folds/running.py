"""Folds whose result depends on the order of models: running averages and their kin.

The cell is the merged task vector so far; the first model is taken as it is.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.registry import register
from jaxmerge.core.types import Array, Merge, check_choice, check_range, per_model, zeros
from jaxmerge.folds.spectral import adam
from jaxmerge.numerics import order_statistics
from jaxmerge.numerics.linalg import check_matrix, thin_svd
from jaxmerge.numerics.measures import keep_count, ranked_magnitude, ranked_magnitudes

__all__ = ["absorb_ties", "balance_projections", "ema", "ema_with_reference"]


@register
def ema(decay: Any = 0.99) -> Merge:
    """The exponential moving average of the models.

    Formula: m <- decay m + (1 - decay) tau_t, from m = tau_1.

    Args:
        decay: in [0, 1]; a list gives one for each model, whose first is not used.

    Memory: 1 x the model.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.full(1, v)} for v in (0.0, 8.0, 8.0)]
        >>> jm.merge(jm.ema(0.5), {"w": np.zeros(1)}, models)["w"]
        array([6.])
    """
    check_range("decay", decay, 0, 1)

    def update(cell, x, ctx):
        d = jnp.asarray(per_model(decay, ctx), x.dtype)
        return jnp.where(ctx.step == 0, x, cell + (1 - d) * (x - cell))

    return Merge(zeros, update, elementwise=True)


@register
def ema_with_reference(momentum: Any = 0.9) -> Merge:
    """The average of itself, the new model and the model before it (three-way EMA).

    Formula: m <- momentum m + (1 - momentum) (tau_t + tau_{t-1}) / 2, from m = tau_1.

    Args:
        momentum: in [0, 1].

    Memory: 2 x the model.
    """
    check_range("momentum", momentum, 0, 1)

    def update(cell, x, ctx):
        m, reference = cell
        kept = jnp.asarray(momentum, x.dtype)
        return jnp.where(ctx.step == 0, x, m + (1 - kept) * ((x + reference) / 2 - m)), x

    return Merge(
        lambda leaf: (zeros(leaf), zeros(leaf)), update, lambda cell, ctx: cell[0], elementwise=True
    )


@register(static=("density",))
def absorb_ties(
    density: float = 0.2, factor: Any = 0.3, scope: Literal["global", "leaf"] = "global"
) -> Merge:
    """Add the TIES merge of what is merged so far and the new model.

    Formula: S <- S + factor * sum of {trim(S), trim(tau)} that agree with the sign of their sum;
    S = factor * tau_1 after the first model; trim keeps the floor(density n) + 1 entries of largest
    magnitude (as many as the official TIES) and what ties with the last of them.

    Args:
        density: share of the entries kept, in (0, 1].
        factor: of every step.
        scope: "global" ranks the whole of S and of tau, "leaf" each leaf on its own.

    Memory: 1 x the model.  For "global", those before it are read again before every model: from
    files, T (T - 1) reads more for T models.
    """
    check_range("density", density, 0, 1, open_low=True)
    check_choice("scope", scope, ("global", "leaf"))
    ranks = lambda n: keep_count(density, n) + 1

    def least(ctx, *rows):
        """The smallest magnitudes that are kept."""
        if scope == "leaf":
            return [ranked_magnitudes(x, np.array([ranks(x.size)]))[0] for x in rows]
        return [order_statistics.bits_to_magnitude(found["value"]) for found in ctx.measured]

    def later(total, x, least_x, least_total):
        trim = lambda x, least: jnp.where(jnp.abs(x) >= least.astype(x.dtype), x, 0)
        a, b = trim(total, least_total), trim(x, least_x)
        up = a + b >= 0
        return jnp.where(
            up, jnp.maximum(a, 0) + jnp.maximum(b, 0), jnp.minimum(a, 0) + jnp.minimum(b, 0)
        )

    def update(total, x, ctx):
        change = jnp.where(ctx.step == 0, x, later(total, x, *least(ctx, x, total)))
        return total + jnp.asarray(factor, x.dtype) * change

    if scope == "leaf":
        return Merge(zeros, update)
    return Merge(zeros, update, measure=ranked_magnitude(ranks), opening=ranked_magnitude(ranks))


@register(static=("epsilon",), shapes=("steps",))
def balance_projections(
    alpha: Any = 0.8,
    steps: int = 200,
    learning_rate: Any = 1e-4,
    decay: Any = 0.999,
    epsilon: float = 0.99999,
) -> Merge:
    """Between the merged kernel and the new one, by descent on both kernels' own subspaces (DOP).

    Formula: from W = (W_1 + W_2) / 2 (merged, new), `steps` of Adam on a_1 L_1 + a_2 L_2,
    L_i = |T_i' (W - W_i)|^2 + |(W - W_i) T_i'|^2, T_i = tau_i cut to the leading singular values
    that hold less than `epsilon` of their sum; at every step a <- decay a + (1 - decay) g, g the
    shares of the shortest convex combination of grad L_1 / L_1 and grad L_2 / L_2 (multiple
    gradient descent), from a = (alpha, 1 - alpha).

    Args:
        alpha: weight of what is merged already, in [0, 1].
        steps: of Adam, for every model after the first.
        learning_rate: of Adam.
        decay: of the weights a; 1 keeps them at alpha.
        epsilon: share of the nuclear norm, in [0, 1].

    Memory: 1 x the model; inside one leaf some 12 copies of it.
    """
    check_range("alpha", alpha, 0, 1, one=True)
    check_range("decay", decay, 0, 1)
    check_range("epsilon", epsilon, 0, 1, one=True)
    if not (isinstance(steps, int) and steps >= 0):
        raise ValueError(f"steps must be an integer >= 0, got {steps!r}.")

    def later(merged, x):
        goals = jnp.stack([merged, x])
        kept = jax.vmap(_leading)(goals)
        squares = kept @ kept.mT

        def gradients(w):
            gap = w[None] - goals
            return 2 * (squares @ gap + gap @ kept.mT @ kept), gap

        def combined(w, a):
            grads, gap = gradients(w)
            losses = jnp.sum(gap * grads, (1, 2)) / 2
            unit = grads / jnp.where(losses > 0, losses, 1)[:, None, None]
            first = _shortest(jnp.einsum("imn,jmn->ij", unit, unit))
            share = jnp.asarray(decay, w.dtype)
            a = share * a + (1 - share) * jnp.stack([first, 1 - first])
            return jnp.einsum("i,imn->mn", a, grads), a

        a = jnp.stack([jnp.asarray(alpha, x.dtype), 1 - jnp.asarray(alpha, x.dtype)])
        return adam(combined, (merged + x) / 2, a, steps, learning_rate)

    def update(merged, x, ctx):
        check_matrix(x, "balance_projections()")
        wide = x.shape[0] <= x.shape[1]  # squares of the smaller side
        turned = later if wide else lambda merged, x: later(merged.T, x.T).T
        return jax.lax.cond(ctx.step == 0, lambda merged, x: x, turned, merged, x)

    def _leading(x):
        u, s, vt = thin_svd(x)
        upto = jnp.cumsum(s)
        return (u * jnp.where(upto < epsilon * upto[-1], s, 0)[None, :]) @ vt

    return Merge(zeros, update)


def _shortest(dots: Array) -> Array:
    """The share of the first of two vectors in their shortest convex combination."""
    between = dots[1, 1] - dots[0, 1]
    length = dots[0, 0] + dots[1, 1] - 2 * dots[0, 1]
    share = jnp.clip(between / jnp.where(length > 0, length, 1), 0, 1)
    return jnp.where(length > 0, share, 0.5)
