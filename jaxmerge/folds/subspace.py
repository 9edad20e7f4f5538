"""Folds that look at the subspace already taken: the two halves of OPCM.

`add_projected` adds each matrix without what it would overwrite, `keep_mean_norm` wraps any fold
and gives the merged task vector the mean norm of those that entered.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.registry import register
from jaxmerge.core.types import Array, Cell, Context, Measure, Merge, concrete, working_dtype, zeros
from jaxmerge.folds.vectors import root
from jaxmerge.numerics.linalg import check_matrix, thin_svd
from jaxmerge.numerics.measures import square_norm, square_sum
from jaxmerge.numerics.subspaces import inside

__all__ = ["add_projected", "keep_mean_norm"]


@register(static=("alpha",))
def add_projected(alpha: float = 0.5, zero_diag: bool = False, double: bool | None = None) -> Merge:
    """Add each matrix off the leading subspace of the sum so far (the projection of OPCM).

    Formula: S <- S + tau - U (M * U' tau V) V', with S = U diag(s) V' the economy SVD of the sum
    so far, M = 1 on the leading r x r block, r = the number of leading singular values whose sum
    stays within alpha * sum(s); with `zero_diag`, M = 1 on the diagonal too.  The first model is
    taken as it is.

    Args:
        alpha: share of the nuclear norm whose subspace is protected, in [0, 1].
        zero_diag: clear the diagonal of U' tau V as well.
        double: decompose float32 leaves in float64 inside (`jaxmerge.numerics.linalg`); by default
            where alpha > 0.5 or the diagonal needs small singular vectors too.  Without it a
            step takes 0.6 of the time.  Its error, as a share of the norm of the task vector, is
            c * eps * s_1^2 / (s_r^2 - s_(r+1)^2) with eps = 1.2e-7 and c below 1 (0.002 to 0.62
            over gaps of 1e-5 to 0.7 of s_r with r = k / 4), and never below rounding: with equal
            values at the cut the subspace itself is arbitrary, and so is the result.

    Shapes: leaves [m, n]; transposed leaves give the transposed result.

    Memory: 1 x the model; inside one leaf some 4 copies of it.

    Source: Tang et al., Merging Models on the Fly Without Retraining (OPCM), NeurIPS 2025.

    Differs: the paper speaks of clearing the diagonal and the authors' released code means to, but
    clears a copy, so the published recursion is ``zero_diag=False``.  Full singular bases are not
    needed: what they add is multiplied by zero.  At alpha=1 the whole subspace is protected, where
    the released code protects nothing (no cumulative sum exceeds the total).  Directions below the
    numerical rank, arbitrary in any SVD, are left alone.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> one, two = np.diag([4.0, 1.0]), np.array([[7.0, 5.0], [3.0, 2.0]])
        >>> jm.merge(jm.add_projected(0.9), {"w": np.zeros((2, 2))}, [{"w": one}, {"w": two}])["w"]
        array([[4., 5.],
               [3., 3.]])
    """
    check_range("alpha", alpha, 0, 1, one=True)
    known = concrete(alpha)
    if double is None:
        double = zero_diag or not (known and alpha <= 0.5)

    def later(total, x):
        k = min(x.shape)
        # leading values exceed the average, so at most alpha * k of them stay within the share
        most = k if zero_diag or not known else min(k, int(alpha * k) + 1)
        u, s, vt = thin_svd(total, double, most)
        upto = jnp.cumsum(s)
        within = (upto <= alpha * upto[-1])[:most]
        protected = within[:, None] & within[None, :]
        if zero_diag:
            protected |= jnp.eye(k, dtype=bool)
        return total + x - inside(x, u, vt.T, protected)

    def update(total, x, ctx):
        check_matrix(x, "add_projected()")
        return jax.lax.cond(ctx.step == 0, lambda s, x: x, later, total, x)

    return Merge(zeros, update, decomposes=True)


class Normed(NamedTuple):
    """The cell of `keep_mean_norm` on one leaf.

    Attributes:
        inner: the cell of the wrapped fold.
        norms: the sum of the norms of the whole rows so far, a scalar, the same on every leaf.
        count: how many rows.
    """

    inner: Cell
    norms: Array
    count: Array


@register
def keep_mean_norm(inner: Merge) -> Merge:
    """Wrap a fold (or a routed merge): give its result the mean norm of the rows that entered.

    Formula: (mean_t |tau_t|) S / |S|, S the result of `inner`, norms over all merged leaves.

    Args:
        inner: a fold, a `partition` of folds, or a chain of transforms before one.

    Raises:
        ValueError: `inner` has transforms after its fold (put them after this one), or measures
            of its own.

    Memory: that of `inner` and two scalars a leaf; files are read once more.

    Source: the scaling of OPCM (Tang et al., NeurIPS 2025), whose lambda_t = |S| / mean |tau|
    never needs to be kept.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([3.0, 0.0])}, {"w": np.array([0.0, 4.0])}]
        >>> merged = jm.merge(jm.keep_mean_norm(jm.add()), {"w": np.zeros(2)}, models)
        >>> merged["w"].round(3)  # the sum is of norm 5, the models of norm 3.5 on average
        array([2.1, 2.8])
    """
    if not isinstance(inner, Merge):
        raise TypeError(f"keep_mean_norm() wraps a Merge such as jm.add(), got {inner!r}.")
    if inner.route is not None or inner.before:
        return _wrap(inner, square_norm(), _cells_norm(inner))
    _check_plain(inner)

    def init(leaf):
        norms = jnp.zeros((), working_dtype(leaf))
        return Normed(inner.init(leaf), norms, jnp.zeros((), jnp.int32))

    def update(cell, x, ctx):
        norm = root(ctx.measured).astype(cell.norms.dtype)
        return Normed(inner.update(cell.inner, x, ctx), cell.norms + norm, cell.count + 1)

    def finalize(cell, ctx):
        size = root(ctx.measured)
        factor = jnp.where(size > 0, cell.norms / cell.count / jnp.where(size > 0, size, 1), 0)
        merged = inner.finalize(cell.inner, ctx)
        return factor.astype(merged.dtype) * merged

    join = inner.combine
    combine = join and (
        lambda a, b: Normed(join(a.inner, b.inner), a.norms + b.norms, a.count + b.count)
    )

    return Merge(
        init, update, finalize, combine,
        measure=square_norm(), closing=_cells_norm(inner), models=inner.models,
        stochastic=inner.stochastic, elementwise=inner.elementwise, needs=inner.needs,
        keeps_rows=inner.keeps_rows, decomposes=inner.decomposes,
    )  # fmt: skip


def _cells_norm(inner: Merge) -> Measure:
    """The squared norm of the merged row, from the cells of all leaves."""

    def observe(cell, summary, turn):
        if not jax.tree.leaves(cell.inner):
            return jnp.zeros((), jnp.float32)  # keep_base: no change
        x = inner.finalize(cell.inner, Context(base=None, step=cell.count))
        return square_sum(x)

    return Measure(init=lambda: None, observe=observe, by_entry=inner.elementwise)


def _wrap(inner: Merge, row: Measure, closing: Measure) -> Merge:
    """`keep_mean_norm` on every leaf's own fold, all sharing two measures: one norm over all."""
    if inner.after:
        raise ValueError(_AFTER.format(inner))
    if inner.route is not None:
        route = inner.route
        return inner._replace(route=lambda name, like: _wrap(route(name, like), row, closing))
    plain = inner._replace(before=(), spec=inner.core)
    return keep_mean_norm(plain)._replace(before=inner.before, measure=row, closing=closing)


_AFTER = (
    "keep_mean_norm() wraps a fold without transforms after it, got {}. Put them after: "
    "jm.chain(jm.keep_mean_norm(fold), jm.scale(...))."
)


def _check_plain(inner: Merge) -> None:
    if inner.after:
        raise ValueError(_AFTER.format(inner))
    if any(m is not None for m in (inner.measure, inner.opening, inner.closing)):
        raise ValueError(f"keep_mean_norm() cannot wrap {inner}, which measures whole rows itself.")
