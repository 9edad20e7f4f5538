"""Folds whose result depends on the order of models: running averages and their kin.

The cell is the merged task vector so far; the first model is taken as it is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.core.hyperparameters import check_range, per_model
from jaxmerge.core.ranges import Number, Numbers
from jaxmerge.core.registry import register
from jaxmerge.core.types import Array, Merge, zeros
from jaxmerge.folds.spectral import adam
from jaxmerge.numerics.linalg import check_matrix, thin_svd

__all__ = ["balance_projections", "ema"]


@register
def ema(decay: Numbers = 0.99) -> Merge:
    """The exponential moving average of the models.

    Formula: m <- decay m + (1 - decay) tau_t, from m = tau_1.

    Args:
        decay: in [0, 1]; a list gives one for each model, whose first is not used.

    Memory: 1 x the model.

    Source: Roth et al., A Practitioner's Guide to Continual Multimodal Pretraining, NeurIPS 2024
    (there with training from the average: a schedule, not a merge).

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


@register(static=("epsilon",), shapes=("steps",))
def balance_projections(
    alpha: Number = 0.8,
    steps: int = 200,
    learning_rate: Number = 1e-4,
    decay: Number = 0.999,
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

    Memory: 1 x the model; inside one leaf some 12 to 16 copies of it.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.diag([2.0, 0.0])}, {"w": np.diag([0.0, 2.0])}]
        >>> jm.merge(jm.balance_projections(steps=0), None, models)["w"]  # where the descent begins
        array([[1., 0.],
               [0., 1.]])
    """
    check_range("alpha", alpha, 0, 1, one=True)
    check_range("decay", decay, 0, 1)
    check_range("epsilon", epsilon, 0, 1, one=True)
    if not (isinstance(steps, int) and steps >= 0):
        raise ValueError(f"steps must be an integer >= 0, got {steps!r}.")

    def later(merged, x):
        goals = jnp.stack([merged, x])
        leading = jax.vmap(_leading)(goals)
        squares = leading @ leading.mT
        fewer = x.shape[1] < 2 * x.shape[0]  # multiplications with the square of the longer side
        longer = leading.mT @ leading if fewer else None

        def gradients(w):
            gap = w[None] - goals
            right = gap @ leading.mT @ leading if longer is None else gap @ longer
            return 2 * (squares @ gap + right), gap

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

    return Merge(zeros, update, decomposes=True)


def _shortest(dots: Array) -> Array:
    """The share of the first of two vectors in their shortest convex combination."""
    between = dots[1, 1] - dots[0, 1]
    length = dots[0, 0] + dots[1, 1] - 2 * dots[0, 1]
    share = jnp.clip(between / jnp.where(length > 0, length, 1), 0, 1)
    return jnp.where(length > 0, share, 0.5)
