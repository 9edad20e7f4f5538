"""Transforms that drop entries of a task vector at random: DARE and DELLA."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.hyperparameters import check_range, model_count, per_model
from jaxmerge.core.ranges import Numbers
from jaxmerge.core.registry import register
from jaxmerge.core.types import Array, Transform, beside, working_dtype
from jaxmerge.numerics import hash_rng, host_ranks
from jaxmerge.transforms.sparsify import keep

__all__ = ["drop_by_rank", "drop_random"]

Rescale = Literal["inverse", "l1"] | None


@register
def drop_random(density: Numbers, rescale: Rescale = "inverse", masked: bool = False) -> Transform:
    """Drop entries at random and rescale the survivors (the drop and rescale of DARE); needs a key.

    Formula: m[p] ~ Bernoulli(density), tau[p] <- m[p] tau[p] / density.

    Args:
        density: share kept, in [0, 1], 0 for nothing; a number, or one for each model.
        rescale: "inverse" divides by the density, which is unbiased (the paper); "l1" multiplies
            each leaf so that its L1 norm stays, a random factor near 1 / density; None does not.
        masked: take the masks from the side information ``extras=[{"mask": tree}, ...]`` (1 where
            an entry is kept) instead of drawing them, so that another program's draw is repeated;
            no key is needed then.  Leaves without a mask keep all.

    Memory: 0.

    Source: Yu et al., Language Models are Super Mario, ICML 2024, equation 1.  Differs: the random
    numbers come from a hash of the leaf's name, the model, the stage and the index of the entry.

    Example:
        >>> import jax, jaxmerge as jm, numpy as np
        >>> method = jm.chain(jm.drop_random(0.5), jm.add())
        >>> base, model = {"w": np.zeros(8)}, {"w": np.ones(8)}
        >>> out = jm.merge(method, base, [model], key=jax.random.key(0))["w"]
        >>> sorted({float(x) for x in out})
        [0.0, 2.0]
    """
    check_range("density", density, 0, 1)

    def kernel(x, ctx):
        share = per_model(density, ctx)
        if not masked:
            return _survive(x, hash_rng.coin(ctx.key, share, x.shape), share, rescale)
        mask = beside("mask", x, ctx)
        return x if mask is None else _survive(x, mask.astype(bool), share, rescale)

    needs = ("mask",) if masked else ()
    return Transform(kernel, stochastic=not masked, models=model_count(density), needs=needs)


@register
def drop_by_rank(
    density: Numbers, epsilon: Numbers = 0.3, rescale: Rescale = "inverse", axis: int = -1
) -> Transform:
    """Drop entries at random, the small ones of each row more often (MAGPRUNE); needs a key.

    Formula: with r[p] in 0..n-1 the rank of |tau[p]| in its row of n entries, keep with probability
    q[p] = density - epsilon / 2 + epsilon r[p] / (n - 1); tau[p] <- m[p] tau[p] / q[p].

    Gradients go through 1 / q for the mask that was drawn, as in `drop_random`: the mask itself
    jumps, so they are not the slope of the expectation, which does not depend on the density.

    Args:
        density: mean share kept, in [0, 1]; a number, or one for each model.
        epsilon: width of the window of probabilities, which must lie in [0, 1]; a number, or one
            for each model.
        rescale: "inverse" divides by the probability, which is unbiased (the paper); "l1"
            multiplies each leaf so that its L1 norm stays; None does not.
        axis: the axis along which entries are ranked: -1 ranks the inputs of each unit in
            [out, in] kernels, 0 in [in, out] kernels.

    Memory: 0 (one leaf of ranks).  This is the one transform that sorts, each row by itself: it
    needs the rank of every entry, not one threshold, and counting finds no n ranks in fewer passes.
    Leaves on the host are sorted by numpy (`jaxmerge.numerics.host_ranks`), all others by XLA.

    Source: Deep et al., DELLA-Merging, 2024, section 3.1.  Differs: ranks are divided by n - 1, not
    n, so that the mean probability is the density; a row of one entry has probability `density`.

    Example:
        >>> import jax, jaxmerge as jm, numpy as np
        >>> method = jm.chain(jm.drop_by_rank(0.5, epsilon=0.0), jm.add())
        >>> base, model = {"w": np.zeros(8)}, {"w": np.ones(8)}
        >>> out = jm.merge(method, base, [model], key=jax.random.key(0))["w"]
        >>> sorted({float(x) for x in out})
        [0.0, 2.0]
    """
    check_range("density", density, 0, 1)
    check_range("epsilon", epsilon, 0, 1)
    _check_window(density, epsilon)

    def kernel(x, ctx):
        share, width = per_model(density, ctx), per_model(epsilon, ctx)
        n = x.shape[axis] if x.ndim else 1
        rank = ctx.extra.get("rank")
        rank = _ranks(x, axis) if rank is None else rank.astype(x.dtype)
        rank = rank / (n - 1) if n > 1 else 0.5
        chance = jnp.asarray(share - width / 2 + width * rank, x.dtype)
        return _survive(x, hash_rng.coin(ctx.key, chance, x.shape), chance, rescale)

    def host(model, base):
        if not model.size or not model.ndim or working_dtype(base) != np.float32:
            return None
        return {"rank": host_ranks.ranks(model, base, axis)}

    return Transform(kernel, stochastic=True, models=model_count(density, epsilon), host=host)


def _survive(x: Array, mask: Array, chance: Any, rescale: Rescale) -> Array:
    survivors = keep(x, mask, "l1" if rescale == "l1" else None)
    if rescale != "inverse":
        return survivors
    chance = jnp.asarray(chance, x.dtype)  # 0 where nothing is kept: divide by anything else
    return jnp.where(mask, x / jnp.where(chance > 0, chance, 1), 0)


def _ranks(x: Array, axis: int) -> Array:
    """The rank of |x| along an axis, 0 for the smallest; ties by position.

    Magnitude and place in one 64-bit word: words sort six times as fast as an argsort of floats,
    and need no second sort to tell ranks from the order.
    """
    x = jax.lax.stop_gradient(x)
    if x.ndim == 0:
        return jnp.zeros_like(x)
    if x.dtype == jnp.float64:
        order = jnp.argsort(jnp.abs(x), axis=axis)
    else:
        with jax.enable_x64(True):
            bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.uint32).astype(jnp.uint64)
            place = jax.lax.broadcasted_iota(jnp.uint64, x.shape, axis % x.ndim)
            words = jnp.sort(bits << jnp.uint64(32) | place, axis=axis)
            order = words.astype(jnp.uint32).astype(jnp.int32)
    # row by row, so that the file driver sees that rows do not mix
    rank = jnp.arange(x.shape[axis], dtype=x.dtype)
    invert = lambda order: jnp.zeros_like(rank).at[order].set(rank, unique_indices=True)
    for _ in range(x.ndim - 1):
        invert = jax.vmap(invert)
    return jnp.moveaxis(invert(jnp.moveaxis(order, axis, -1)), -1, axis)


def _check_window(density: Any, epsilon: Any) -> None:
    spread = lambda v: list(v) if isinstance(v, tuple | list) else [v]
    many = max(len(spread(density)), len(spread(epsilon)))
    pad = lambda v: spread(v) * (many if len(spread(v)) == 1 else 1)
    wrong = []
    for d, e in zip(pad(density), pad(epsilon), strict=True):
        try:
            check_range("density - epsilon/2", d - e / 2, 0, 1)
            check_range("density + epsilon/2", d + e / 2, 0, 1)
        except ValueError:
            wrong.append(f"density {d} and epsilon {e}")
    if wrong:
        raise ValueError(
            f"density - epsilon/2 and density + epsilon/2 must lie in [0, 1]; {', '.join(wrong)} "
            "leave it. Choose a smaller epsilon."
        )
