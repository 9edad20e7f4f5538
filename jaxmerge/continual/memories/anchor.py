"""A quadratic pull towards earlier weights, one slot a task in the memory of one; importances.

    pull(theta) = sum_k sum_j I_kj (theta_j - theta*_kj)^2         tasks k, weights j

A sum of parabolas is a parabola: with A = sum_k I_k, the centre m = (sum_k I_k theta*_k) / A and
what is left at the centre, rest = pull(m),

    pull(theta) = sum_j A_j (theta_j - m_j)^2 + rest

so a slot for every task costs two models, not 2 T, and nothing is approximated.  `add` puts a new
parabola in; `move` keeps one parabola at the newest weights with the importances summed (the
"online" form).

Memory: 2 models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.continual.records import Batch
from jaxmerge.core.types import Array, Leaves
from jaxmerge.numerics.fisher import batch_squares, in_batches


class Anchor(NamedTuple):
    """``sum weight (theta - centre)^2 + rest``."""

    weight: Leaves
    centre: Leaves
    rest: Array


def none(leaves: Leaves) -> Anchor:
    """No pull, centred at some weights.

    Args:
        leaves: name -> array, where the pull is centred.

    >>> float(pull(none({"w": jnp.ones(2)}), {"w": jnp.zeros(2)}))
    0.0
    """
    zero = jax.tree.map(jnp.zeros_like, dict(leaves))
    kind = jnp.result_type(*jax.tree.leaves(zero)) if zero else jnp.float32
    return Anchor(zero, dict(leaves), jnp.zeros((), kind))


def pull(anchor: Anchor, params: Leaves) -> Array:
    """The value at `params`; leaves that the anchor does not know are free.

    Args:
        anchor: of `none`, `add` or `move`.
        params: name -> array.

    >>> w = lambda x: {"w": jnp.array([x])}
    >>> float(pull(Anchor(w(2.0), w(1.0), jnp.zeros(())), w(4.0)))
    18.0
    """
    parts = [jnp.sum(w * (params[n] - anchor.centre[n]) ** 2) for n, w in anchor.weight.items()]
    return sum(parts, anchor.rest)


def add(anchor: Anchor, importance: Leaves, params: Leaves) -> Anchor:
    """One more parabola, ``sum I (theta - params)^2``.

    Args:
        anchor: of `none`, `add` or `move`.
        importance: I, name -> array like the leaf, 0 or more.
        params: theta*, name -> array.

    >>> a = add(none({"w": jnp.zeros(1)}), {"w": jnp.ones(1)}, {"w": jnp.array([1.0])})
    >>> a = add(a, {"w": 3 * jnp.ones(1)}, {"w": jnp.array([5.0])})
    >>> float(a.centre["w"][0]), float(pull(a, {"w": jnp.zeros(1)}))  # 1 * 1 + 3 * 25
    (4.0, 76.0)
    """
    weight, centre, rest = {}, {}, anchor.rest
    for n, old in anchor.weight.items():
        new, apart = importance[n], params[n] - anchor.centre[n]
        weight[n] = old + new
        share = jnp.where(weight[n] == 0, 0, new / jnp.where(weight[n] == 0, 1, weight[n]))
        centre[n] = anchor.centre[n] + share * apart
        rest = rest + jnp.sum(old * share * apart**2)
    return Anchor(weight, centre, rest)


def move(anchor: Anchor, importance: Leaves, params: Leaves) -> Anchor:
    """One parabola at the newest weights, importances summed over tasks.

    Args:
        anchor: of `none`, `add` or `move`.
        importance: I, name -> array like the leaf, 0 or more.
        params: theta*, name -> array.

    >>> w = lambda x: {"w": jnp.array([x])}
    >>> moved = move(Anchor(w(2.0), w(1.0), jnp.zeros(())), w(3.0), w(5.0))
    >>> float(moved.weight["w"][0]), float(moved.centre["w"][0])
    (5.0, 5.0)
    """
    weight = {n: old + importance[n] for n, old in anchor.weight.items()}
    return Anchor(weight, {n: params[n] for n in weight}, jnp.zeros_like(anchor.rest))


# ------------------------------------------------------------------ importances, batch by batch


def squares(
    gradient: Callable[[Batch, Array], Leaves], data: Batch, size: int, key: Array
) -> Leaves:
    """Squared gradients of batch means, ``sum_b n_b g_b^2 / number of batches``.

    See `jaxmerge.numerics.fisher.batch_squares`.

    Args:
        gradient: ``(batch, key) -> leaves``, of the mean over the batch.
        data: a `Batch`, leaves ``[N, ...]``.
        size: examples of a batch, 1 or more.
        key: PRNG key.

    >>> from jaxmerge.continual.records import Batch
    >>> data = Batch(jnp.array([1.0, 3.0]), jnp.zeros(2), jnp.zeros(2, int), jnp.ones(2))
    >>> gradient = lambda batch, key: {"w": jnp.sum(batch.inputs * batch.weight)}
    >>> float(squares(gradient, data, 1, jax.random.key(0))["w"])  # (1 + 9) / 2
    5.0
    """
    total, batches = batch_squares(gradient, data, size, key)
    return jax.tree.map(lambda t: t / jnp.maximum(batches, 1), total)


def magnitudes(gradient: Callable[[Batch], Leaves], data: Batch, size: int) -> Leaves:
    """Running mean of ``|gradient of a batch's sum| / n``, as MAS's code keeps it.

        Omega <- (Omega j n + |g|) / ((j + 1) n)            batch j = 0, 1, .. of n examples

    With ``size=1`` the mean over examples of |g|.  An uneven last batch is weighted as in the code:
    n is its own size.

    Args:
        data: a `Batch`, leaves ``[N, ...]``.
        size: examples of a batch, 1 or more.
        gradient: ``(batch) -> leaves``, of the **sum** over the batch.

    Source: rahafaljundi/MAS-Memory-Aware-Synapses, ``MAS_based_Training.py``.

    >>> from jaxmerge.continual.records import Batch
    >>> data = Batch(jnp.array([1.0, 3.0]), jnp.zeros(2), jnp.zeros(2, int), jnp.ones(2))
    >>> gradient = lambda batch: {"w": jnp.sum(-batch.inputs * batch.weight)}
    >>> float(magnitudes(gradient, data, 1)["w"])
    2.0
    """

    def one(carry, batch):
        total, j = carry
        n = jnp.sum(batch.weight)
        new = lambda t, g: jnp.where(
            n > 0, (t * j * n + jnp.abs(g)) / ((j + 1) * jnp.maximum(n, 1)), t
        )
        return (jax.tree.map(new, total, gradient(batch)), j + (n > 0)), None

    parts = in_batches(data, size)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (total, _), _ = jax.lax.scan(one, (zero, jnp.int32(0)), parts)
    return total
