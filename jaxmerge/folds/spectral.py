"""Folds that merge kernels in the space of their singular vectors: TSV, Iso-CTS, WUDI.

A kernel is [in, out] in jaxmerge and ``output_axis=1``; torch's [out, in] is ``output_axis=0``.
Only what looks at inputs and outputs differently takes that argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.ranges import Number
from jaxmerge.core.registry import register
from jaxmerge.core.types import Array, Merge, stacked, zeros
from jaxmerge.numerics.linalg import check_matrix, polar, polar_and_values, thin_svd
from jaxmerge.numerics.measures import square_sum
from jaxmerge.numerics.subspaces import outside

__all__ = ["least_interference", "share_ranks", "split_subspaces"]

Axis = Literal[0, 1]


@register
def share_ranks() -> Merge:
    """Give every model an equal share of the rank, and make the shares orthogonal (TSV-M).

    Formula: U = [U_1 .. U_T], s, V alike, of the k = floor(min(m, n) / T) leading singular triples
    of every tau_t; polar(U) diag(s) polar(V)'.

    Shapes: leaves [m, n] with min(m, n) >= T.

    Memory: T x the model, one leaf at a time.

    Source: Gargiulo et al., Task Singular Vectors, CVPR 2025, algorithm 1.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.diag(d)} for d in ([4.0, 0.0], [0.0, 2.0])]
        >>> jm.merge(jm.share_ranks(), None, models)["w"].round(3)
        array([[4., 0.],
               [0., 2.]])
    """

    def reduce(rows, ctx):
        check_matrix(rows[0], "share_ranks()")
        k = min(rows.shape[1:]) // len(rows)
        _check_rank(k, rows)
        u, s, vt = jax.vmap(functools.partial(thin_svd, vectors=k))(rows)
        return _orthogonal(u, vt, s[:, :k].reshape(-1))

    return stacked(reduce, decomposes=True)


@register(shapes=("common",))
def split_subspaces(common: float = 0.8, output_axis: Axis = 1) -> Merge:
    """A common subspace and one for every model, all directions equally strong (Iso-CTS).

    Formula: the leading singular triples of S = sum_t tau_t, and the n leading ones of every
    residual of tau_t off the output directions of those; put side by side, made orthogonal, all
    singular values replaced by their mean: mean(s) polar(U) polar(V)'.  n = round((1 - common)
    min / T), the common part takes what is left of min = min(m, n).

    Args:
        common: share of the rank for the common subspace, in [0, 1]; decides shapes, so it cannot
            be traced.
        output_axis: which axis counts output units; 1 for [in, out], 0 for [out, in].

    Memory: T x the model, one leaf at a time.

    Source: Marczak et al., No Task Left Behind, ICML 2025, algorithm 2.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.diag(d)} for d in ([4.0, 0.0], [0.0, 2.0])]
        >>> jm.merge(jm.split_subspaces(), None, models)["w"].round(3)
        array([[3., 0.],
               [0., 3.]])
    """
    check_range("common", common, 0, 1, one=True)

    def reduce(rows, ctx):
        check_matrix(rows[0], "split_subspaces()")
        count, rank = len(rows), min(rows.shape[1:])
        own_rank = round((rank - int(rank * common)) / count)
        shared = rank - own_rank * count
        if own_rank == 0:  # no room for any model's own: Iso-C
            turned, s = polar_and_values(jnp.sum(rows, 0))
            return jnp.mean(s) * turned
        u, s, vt = thin_svd(jnp.sum(rows, 0), vectors=shared)
        s = s[:shared]
        known = {"right": vt.T} if output_axis == 1 else {"left": u}
        residual = jax.vmap(lambda row: outside(row, **known))(rows)
        own = functools.partial(thin_svd, vectors=own_rank)
        own_u, own_s, own_vt = jax.vmap(own)(residual)
        mean = jnp.mean(jnp.concatenate([own_s[:, :own_rank].reshape(-1), s]))
        left = jnp.concatenate([_side_by_side(own_u), u], 1)
        right = jnp.concatenate([own_vt.reshape(-1, vt.shape[1]), vt], 0)
        return mean * polar(left) @ polar(right)

    return stacked(reduce, decomposes=True)


class Interference(NamedTuple):
    """What `least_interference` remembers of one kernel, [out, in] with its inputs last.

    Attributes:
        total: sum_t tau_t.
        gram: sum_t G_t, G_t = tau_t' tau_t / |tau_t|^2, [in, in].
        wanted: sum_t tau_t G_t.
    """

    total: Array
    gram: Array
    wanted: Array


@register(shapes=("steps",))
def least_interference(
    steps: int | None = 300, learning_rate: Number = 1e-5, output_axis: Axis = 1
) -> Merge:
    """The kernel that disturbs every model least on the inputs its own change responds to (WUDI).

    Formula: minimise sum_t |(tau - tau_t) tau_t'|^2 / |tau_t|^2 (kernels [out, in]) from
    sum_t tau_t by `steps` of Adam; its gradient is 2 (tau sum_t G_t - sum_t tau_t G_t) with
    G_t = tau_t' tau_t / |tau_t|^2, so sums are all that must be remembered.

    Args:
        steps: of Adam; None goes to the minimum at once, tau = (sum tau_t G_t) (sum G_t)^+.
        learning_rate: of Adam.
        output_axis: which axis counts output units; 1 for [in, out], 0 for [out, in].

    Memory: 2 x the model and one [in, in] matrix a kernel, however many models.

    Source: Cheng et al., Whoever Started the Interference Should End It (WUDI-Merging), ICML 2025,
    equation 6.

    Differs: the minimum in closed form is ours; the paper stops early on purpose.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.diag(d)} for d in ([4.0, 0.0], [0.0, 2.0])]
        >>> jm.merge(jm.least_interference(steps=None), None, models)["w"].round(3)
        array([[4., 0.],
               [0., 2.]])
    """
    if steps is not None and not (isinstance(steps, int) and steps >= 0):
        raise ValueError(f"steps must be an integer >= 0 or None, got {steps!r}.")
    turn = (lambda x: x.T) if output_axis == 1 else (lambda x: x)

    def init(leaf):
        check_matrix(leaf, "least_interference()")
        total = zeros(turn(leaf))
        return Interference(total, total.T @ total, total)

    def update(cell, x, ctx):
        x = turn(x)
        square = square_sum(x)
        square = jnp.where(square > 0, square, 1)
        gram = x.T @ x / square
        # [out, in] by [in, in], or twice by [out, out]: what multiplies less
        wanted = (x @ x.T) @ x / square if 2 * x.shape[0] < x.shape[1] else x @ gram
        return Interference(cell.total + x, cell.gram + gram, cell.wanted + wanted)

    def finalize(cell, ctx):
        if steps is None:
            u, s, vt = thin_svd(cell.gram)
            return turn(cell.wanted @ u / jnp.where(s > 0, s, 1)[None, :] @ vt)
        gradient = lambda x, memory: (2 * (x @ cell.gram - cell.wanted), memory)
        return turn(adam(gradient, cell.total, None, steps, learning_rate))

    combine = lambda a, b: jax.tree.map(jnp.add, a, b)
    return Merge(init, update, finalize, combine, decomposes=steps is None)


def adam(gradient: Callable, x: Array, memory: Any, steps: int, rate: Any) -> Array:
    """A fixed number of steps of optax's Adam, its rate a number that may be traced.

    Args:
        gradient: ``(x, memory) -> (gradient, memory)``.
    """
    import optax  # here: merges from files start without it

    # a root with a slope at 0, where a frozen leaf is, and no other value (1e-19 beside 1e-8)
    optimiser = optax.adam(jnp.asarray(rate, x.dtype), eps_root=float(jnp.finfo(x.dtype).tiny))

    def step(i, state):
        x, memory, moments = state
        g, memory = gradient(x, memory)
        updates, moments = optimiser.update(g, moments)
        return optax.apply_updates(x, updates), memory, moments

    return jax.lax.fori_loop(0, steps, step, (x, memory, optimiser.init(x)))[0]


def _side_by_side(u: Array) -> Array:
    """[T, m, k] -> [m, T k], the columns of one model next to each other."""
    return jnp.moveaxis(u, 0, 1).reshape(u.shape[1], -1)


def _orthogonal(u: Array, vt: Array, s: Array) -> Array:
    return (polar(_side_by_side(u)) * s[None, :]) @ polar(vt.reshape(s.size, -1))


def _check_rank(k: int, rows: Array) -> None:
    if k < 1:
        raise ValueError(
            f"{len(rows)} models cannot share the rank of a leaf of shape {rows.shape[1:]}. Merge "
            'fewer models, or route such leaves to "rest" by leaves=[(regex, "rest"), ...].'
        )
