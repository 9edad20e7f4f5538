"""Transforms that drop entries of a task vector: by magnitude (trim) or at random (DARE)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.core import Transform, check_range
from jaxmerge.measures import kth_magnitude, magnitude_bits
from jaxmerge.spec import register

__all__ = ["dare", "trim"]


@register(static=("density",))
def trim(density: float, scope: Literal["leaf", "global"] = "global") -> Transform:
    """Keep the `density` share of entries of largest magnitude, all that tie with the last one too.

    Formula: keep tau[p] where |tau[p]| >= k-th largest |tau|, k = max(1, floor(density n)).

    Args:
        density: share kept, in (0, 1].
        scope: "global" ranks the whole task vector (the paper), "leaf" each leaf on its own.

    Source: Yadav et al., TIES-Merging, NeurIPS 2023, step 1.
    """
    check_range("density", density, 0, 1, open_low=True)
    if scope not in ("leaf", "global"):
        raise ValueError(f"scope must be 'leaf' or 'global', got {scope!r}.")

    def kernel(x, ctx):
        return jnp.where(magnitude_bits(x) >= ctx.measured["value"], x, 0)

    return Transform(kernel, kth_magnitude(density, "row" if scope == "global" else "leaf"))


@register
def dare(density: float) -> Transform:
    """Drop entries at random and rescale the survivors, unbiased; needs a key.

    Formula: m ~ Bernoulli(density), tau = m tau / density.

    Source: Yu et al., Language Models are Super Mario, ICML 2024.
    """
    check_range("density", density, 0, 1, open_low=True)

    def kernel(x, ctx):
        return jnp.where(jax.random.bernoulli(ctx.key, density, x.shape), x / density, 0)

    return Transform(kernel, stochastic=True)
