"""Which leaves are matrices, and how to decompose one: what the spectral methods stand on.

A leaf acts as a matrix if it has two axes and is the kernel of a dense layer (`by_kernel`).  Tables
of embeddings have two axes too, but their rows are looked up, never multiplied as a whole;
convolution and patch kernels have four.  All these are left to the method's rule for the rest, as
the authors of OPCM do; every method takes `leaves=` to route otherwise.

Everything here treats a matrix and its transpose alike, so [in, out] and [out, in] give one result.

**Speed and accuracy.**  An SVD costs many times an eigendecomposition of the smaller Gram matrix,
but squaring halves the digits: singular values below 2e-4 of the largest drown in float32.  So the
Gram matrix of a float32 leaf is formed and decomposed in float64, which is at least as accurate as
a float32 SVD (a test measures it); float64 leaves go through LAPACK's SVD itself.  Where leading
singular vectors only are asked for, float32 is tried first: if the last of them belongs to a value
of a tenth of the largest or more, it costs a digit or two and takes half of the time.

Kernels of one shape share one compiled program and are decomposed one after another: LAPACK takes
the matrices of a batch one at a time, so stacking them gains nothing on a CPU and costs their room.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array
from jaxmerge.io.architectures.roles import role_of

BLOCK = 1 << 23  # entries of a matrix that are in float64 at a time
LEAST = 0.1  # share of the largest singular value down to which float32 finds vectors


def by_kernel(name: str, leaf: Array) -> str:
    """ "matrix" for kernels of dense layers: two axes, and no table whose rows are looked up.

    Names and shapes decide (`jaxmerge.io.architectures.roles`); recipes ask the config too.

    Args:
        name: of the leaf, "/" or "." between its parts.
        leaf: an array, or anything with a shape.

    Example:
        >>> import numpy as np
        >>> by_kernel("vision/block_03/attn/query/kernel", np.ones((4, 4)))
        'matrix'
        >>> by_kernel("vision/position", np.ones((4, 4)))
        'rest'
    """
    dense = len(leaf.shape) == 2 and role_of(name, tuple(leaf.shape)) == "kernel"
    return "matrix" if dense else "rest"


def check_matrix(x: Array, who: str) -> None:
    """Raise ValueError unless the leaf has two axes."""
    if x.ndim != 2:
        raise ValueError(
            f"{who} takes leaves with two axes, got shape {x.shape}. Route the others elsewhere: "
            'jm.partition({"matrix": ..., "rest": jm.add()}, jm.by_kernel).'
        )


def thin_svd(
    x: Array, double: bool | None = None, vectors: int | None = None
) -> tuple[Array, Array, Array]:
    """The economy singular value decomposition x = (u * s) @ vt, s falling.

    Directions below the numerical rank come as zero vectors: they have no meaning.

    Args:
        x: [m, n], any shape of either side.
        double: work in float64 inside for a float32 matrix; False takes half of the time, and is
            right only for the singular vectors of values above some 1e-2 of the largest.  None
            tries float32 where less than all vectors are asked for, and goes to float64 if the last
            of them has a value below a tenth of the largest.  A vector's error is then at most some
            eps s_1^2 / (s_i^2 - s_j^2), eps = 1.2e-7, s_j the nearest other value.
        vectors: give this many leading singular vectors only, k' of k (and all singular values;
            those behind the k' are good to float32's half of the digits where that was used).

    Returns:
        u [m, k'], s [k], vt [k', n] with k = min(m, n).

    Example:
        >>> u, s, vt = thin_svd(jnp.array([[0.0, 2.0, 0.0], [-1.0, 0.0, 0.0]]))
        >>> [float(v) for v in s.round(6)], bool(jnp.allclose((u * s) @ vt, u @ jnp.diag(s) @ vt))
        ([2.0, 1.0], True)
    """
    return _triples(double, vectors)(x)


def polar(x: Array) -> Array:
    """The nearest matrix with orthonormal rows or columns, u @ vt of the SVD."""
    return polar_and_values(x)[0]


@jax.custom_jvp
def polar_and_values(x: Array) -> tuple[Array, Array]:
    """`polar` and the singular values, falling, by one decomposition.

    Its derivative has no differences of singular values in it, so equal ones do no harm.
    """
    u, s, vt = thin_svd(x)
    return u @ vt, s


@polar_and_values.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (x,), (dx,) = primals, tangents
    u, s, vt = _by_svd(x, None)
    inner, one = u.T @ dx @ vt.T, _inverse(s, x)
    turn = (inner - inner.T) * _inverse(s[:, None] + s[None, :], x)
    left = (dx @ vt.T - u @ inner) * one[None, :]
    right = one[:, None] * (u.T @ dx - inner @ vt)
    return (u @ vt, s), ((u @ turn + left) @ vt + u @ right, jnp.diagonal(inner))


def _by_svd(x: Array, vectors: int | None) -> tuple[Array, Array, Array]:
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    known = (s > _noise(x, x.dtype) * s[0])[:vectors]
    u, vt = u[:, :vectors], vt[:vectors]
    return jnp.where(known[None, :], u, 0), s, jnp.where(known[:, None], vt, 0)


@functools.cache
def _triples(double: bool | None, vectors: int | None) -> Callable:
    """The decomposition; vmap walks through float32 matrices one by one.

    Its derivative is that of the SVD in the matrix's own dtype: transformations replay compiled
    code outside of the context in which float64 exists.  Where it does not exist, in directions
    without a singular value and among equal ones, it is 0: so a task vector of zeros, such as that
    of a frozen leaf, has the gradient 0.
    """

    @jax.custom_batching.sequential_vmap
    def by_gram(x):
        with jax.enable_x64(double is not False):
            if double is not None or vectors is None or vectors >= min(x.shape):
                return _from_gram(x, jnp.float32 if double is False else jnp.float64, vectors)
            first = _from_gram(x, jnp.float32, vectors)
            again = lambda: _from_gram(x, jnp.float64, vectors)
            largest, last = first[1][0], first[1][vectors - 1]
            enough = (largest > 1e-12) & (last >= LEAST * largest)  # squares of less are lost
            return jax.lax.cond(enough, lambda: first, again)

    decompose = jax.custom_jvp(
        lambda x: _by_svd(x, vectors) if x.dtype == jnp.float64 else by_gram(x)
    )

    @decompose.defjvp
    def derivative(primals, tangents):
        (x,), (dx,) = primals, tangents
        u, s, vt = _by_svd(x, None)
        inner, one = u.T @ dx @ vt.T, _inverse(s, x)
        apart = _inverse(jnp.square(s)[None, :] - jnp.square(s)[:, None], x)
        du = u @ (apart * (inner * s[None, :] + s[:, None] * inner.T))
        dv = vt.T @ (apart * (s[:, None] * inner + inner.T * s[None, :]))
        du += (dx @ vt.T - u @ inner) * one[None, :]
        dv += (dx.T @ u - vt.T @ inner.T) * one[None, :]
        cut = slice(vectors)
        return (u[:, cut], s, vt[cut]), (du[:, cut], jnp.diagonal(inner), dv.T[cut])

    return decompose


def _from_gram(x: Array, wide: Any, vectors: int | None) -> tuple[Array, Array, Array]:
    """`thin_svd` by the eigendecomposition of the smaller Gram matrix in the dtype `wide`."""
    squares, u = jnp.linalg.eigh(_gram(x, wide), symmetrize_input=False)
    squares, u = squares[::-1], u[:, ::-1]  # eigenvalues come rising
    s = jnp.sqrt(jnp.maximum(squares, jnp.finfo(wide).tiny))
    known = (squares > _noise(x, wide) * squares[0])[:vectors]
    u = jnp.where(known[None, :], u[:, :vectors], 0)
    other = product((u / s[None, :vectors]).T, x, int(x.shape[0] <= x.shape[1]))
    u, s = u.astype(x.dtype), s.astype(x.dtype)
    return (other, s, u.T) if x.shape[0] > x.shape[1] else (u, s, other)


def _gram(x: Array, dtype: Any) -> Array:
    """The Gram matrix [k, k] of the shorter side."""
    long = int(x.shape[0] <= x.shape[1])

    def add(total, at, block):
        y = block.astype(dtype)
        return total + (y @ y.T if long else y.T @ y)

    return _over_blocks(add, jnp.zeros((min(x.shape),) * 2, dtype), x, long, dtype)


def product(a: Array, x: Array, axis: int = 1) -> Array:
    """a @ x (axis 1) or x @ a.T (axis 0), computed in the dtype of a and rounded to that of x.

    Columns (rows) are taken in blocks, so no copy of all of x is made in a wider dtype.
    """
    shape = (len(a), x.shape[1]) if axis else (x.shape[0], len(a))

    def put(out, at, block):
        y = block.astype(a.dtype)
        y = a @ y if axis else y @ a.T
        return jax.lax.dynamic_update_slice_in_dim(out, y.astype(x.dtype), at, axis)

    return _over_blocks(put, jnp.zeros(shape, x.dtype), x, axis, a.dtype)


def _over_blocks(step: Callable, state: Array, x: Array, axis: int, dtype: Any) -> Array:
    """A fold ``state = step(state, at, block)`` over x, cut along an axis where it is large and
    computed with in another dtype."""
    rows = max(1, BLOCK // max(1, x.shape[1 - axis]))
    if x.shape[axis] <= rows or x.dtype == dtype:
        return step(state, 0, x)
    whole, rest = divmod(x.shape[axis], rows)
    block = lambda at, size: jax.lax.dynamic_slice_in_dim(x, at, size, axis)
    one = lambda i, state: step(state, i * rows, block(i * rows, rows))
    state = jax.lax.fori_loop(0, whole, one, state)
    return step(state, whole * rows, block(whole * rows, rest)) if rest else state


def _inverse(values: Array, x: Array) -> Array:
    """1 / values, and 0 where they are noise beside the largest that belongs to the matrix."""
    known = jnp.abs(values) > _noise(x, x.dtype) * jnp.max(jnp.abs(values))
    return jnp.where(known, 1 / jnp.where(known, values, 1), 0)


def _noise(x: Array, dtype: Any) -> float:
    """Singular values (in a Gram matrix: their squares) below this share of the first are noise."""
    return max(x.shape) * float(jnp.finfo(dtype).eps)
