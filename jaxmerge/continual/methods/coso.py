"""Continuous subspace optimisation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import basis
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, Pattern, Positive, Share, methods
from jaxmerge.continual.wraps.kernels import fan_in, matching, projected
from jaxmerge.core.types import Array
from jaxmerge.errors import listed
from jaxmerge.numerics.subspaces import outside


class Subspace(NamedTuple):
    """What `coso` remembers of a kernel [in, out], [height width in, out] of a convolution.

    Attributes:
        history: the span of earlier tasks' gradients, [out, capacity].
        sketch: [out, r2], Frequent Directions of this task's gradients.
        vectors, values: [out, r2], [r2] of the last refresh.
        size: Frobenius norm of all gradients that the sketch took up, before they were projected.
        space: P [out, r1].
        first, second: Adam's moments [r1, in].
    """

    history: basis.Basis
    sketch: Array
    vectors: Array
    values: Array
    size: Array
    space: Array
    first: Array
    second: Array


@methods.register
def coso(
    rank: Count = 15,
    sketch: Count = 100,
    every: Count = 1,
    threshold: Share = 0.98,
    rate: Positive = 1e-3,
    weight_decay: NonNegative = 0.0,
    b1: Share = 0.9,
    b2: Share = 0.999,
    eps: Positive = 1e-6,
    target: Pattern = ".*",
) -> Method:
    """CoSO: Adam in a small subspace of the gradient, taken afresh and orthogonal to the past.

    Formula, for a kernel W = K' [out, in] with gradient G and history M (a convolution's inputs are
    the entries of a patch):

        G <- G - M M' G;  every `every` steps G = U S V', P = U[:, :rank], and the sketch of
        Frequent Directions takes up U[:, :r2] diag(S[:r2]), shrinking by its (r2 + 1)-th value;
        R = P' G; Adam on R (eps is added to the root before the correction);
        W <- W - step P (a / (sqrt v + eps));  W <- W - rate weight_decay W

    When the next task starts, M is extended by the leading vectors of the sketch whose cumulated
    share of the energy is strictly below `threshold` (one fewer than would reach it, perhaps none);
    of what is only rounding of the gradients none joins.

    Args:
        rank: r1, columns of the subspace of a step.
        sketch: r2 > r1, at most min(in, out).
        every: K, steps between two choices of the subspace.
        rate, weight_decay, b1, b2, eps: of its own Adam, which replaces the optimiser for these
            kernels: give the setup ``sgd(1.0)`` for them (`optimisers.by_name`), whose proposal is
            the gradient itself; any other is refused, unless its rate is traced.
        threshold: share of the energy, in [0, 1].
        target: regular expression of the kernels (the authors': attention output projections).

    Memory: out (out + 2 r2 + r1) + 2 r1 in numbers a kernel.

    Source: CoSO, NeurIPS 2025 (arXiv 2505.11816); its release's ``coso_projector.py`` and a public
    copy of its AdamW.

    Differs:
        Signs of singular vectors are fixed (the entry of largest magnitude is positive): moments
        survive a refresh in the coordinates of the old P, so the released result depends on them.
        Columns of P are taken off M once more, so that those which a gradient of small rank leaves
        open do not write into it.
        A task with one refresh, where the released code fails, keeps the vectors of that one.
        Weight decay acts inside the history too, as released.

    >>> coso(rank=4, sketch=8)
    coso(rank=4, sketch=8)
    """
    if rank >= sketch:
        raise ValueError(f"coso: rank must be below sketch, got rank={rank}, sketch={sketch}.")

    def init(model, params, batch, stored):
        chosen = projected("coso", model, params, target)
        sizes = {n: (fan_in(params[n]), params[n].shape[-1]) for n in chosen}
        if small := [f"{n} {list(s)}" for n, s in sizes.items() if min(s) < sketch]:
            raise ValueError(
                f"coso: sketch must be at most min(in, out), got {sketch} for {listed(small)}"
            )
        return {n: _empty(params[n]) for n in chosen}

    def _empty(kernel):
        inputs, out = fan_in(kernel), kernel.shape[-1]
        zero = lambda *shape: jnp.zeros(shape, kernel.dtype)
        return Subspace(
            basis.empty(out, dtype=kernel.dtype), zero(out, sketch), zero(out, sketch),
            zero(sketch), zero(), zero(out, rank), zero(rank, inputs), zero(rank, inputs),
        )  # fmt: skip

    def begin(model, params, memory, border):
        def extended(own):
            energy = jnp.cumsum(own.values**2)
            total = jnp.where(energy[-1] > 0, energy[-1], 1)
            real = basis.real(own.values, own.vectors.shape[0], own.size)
            count = jnp.sum((energy / total < threshold) & real).astype(jnp.int32)
            zero = jax.tree.map(jnp.zeros_like, own)
            new = basis.fresh(own.history, own.vectors.T)
            return zero._replace(history=basis.append(own.history, new, count))

        return params, {n: extended(own) for n, own in memory.items()}

    def update(model, step, updates):
        memory, updates = dict(step.memory), dict(updates)
        for n, own in memory.items():
            shape = updates[n].shape
            kernel, whole = (x.reshape(-1, shape[-1]).T for x in (step.params[n], -updates[n]))
            g = outside(whole, own.history.vectors)
            stay = lambda own, *_: own
            due = step.count % every == 0
            own = jax.lax.cond(due, _refresh, stay, own, g, jnp.linalg.norm(whole), step.count)
            r = own.space.T @ g
            first, second = b1 * own.first + (1 - b1) * r, b2 * own.second + (1 - b2) * r**2
            t = (step.count + 1).astype(g.dtype)
            size = rate * jnp.sqrt(1 - b2**t) / (1 - b1**t)
            moved = -size * (own.space @ (first / (jnp.sqrt(second) + eps)))
            updates[n] = (moved - rate * weight_decay * (kernel + moved)).T.reshape(shape)
            memory[n] = own._replace(first=first, second=second)
        return updates, memory

    def _refresh(own: Subspace, g: Array, size: Array, count: Any) -> Subspace:
        u, s, _ = jnp.linalg.svd(g, full_matrices=False)
        u = signed(u)
        taken = u[:, :sketch] * s[:sketch]
        u1, s1, _ = jnp.linalg.svd(jnp.concatenate([own.sketch, taken], 1), full_matrices=False)
        edge = s1[sketch] if s1.shape[0] > sketch else jnp.zeros_like(s1[0])
        shrunk = jnp.sqrt(jnp.maximum(s1[:sketch] ** 2 - edge**2, 0))
        first = count == 0
        vectors = jnp.where(first, u[:, :sketch], signed(u1)[:, :sketch])
        values = jnp.where(first, s[:sketch], shrunk)
        # of a gradient of small rank some columns of U are arbitrary: they must not lie in M
        space = outside(u[:, :rank], own.history.vectors)
        return own._replace(
            sketch=vectors * values, vectors=vectors, values=values,
            size=jnp.hypot(own.size, size), space=space,
        )  # fmt: skip

    return Method(
        init=init, begin=begin, update=update, steps=True,
        claims=lambda model, params: matching(model, params, target),
    )  # fmt: skip


def signed(u: Array) -> Array:
    """Columns with their entry of largest magnitude positive."""
    top = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), 0)[None], 0)
    return u * jnp.where(top < 0, -1, 1)
