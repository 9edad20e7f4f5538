"""Facts about a whole row that a stage may ask for: its norm, its k-th magnitude.

Each is a `Measure`: what one leaf contributes is added up over leaves, files and devices, so a
global statistic of a model larger than memory costs a pass over it and a few numbers.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core import Array, Measure, concrete

BINS = 1 << 16


def square_norm() -> Measure:
    """The squared Euclidean norm of the whole row."""
    return Measure(init=lambda: None, observe=lambda x, summary, turn: jnp.vdot(x, x))


def magnitude_bits(x: Array) -> Array:
    """float32 magnitudes order like their bit patterns: |a| < |b|  <=>  bits(a) < bits(b)."""
    return jax.lax.bitcast_convert_type(jnp.abs(x).astype(jnp.float32), jnp.uint32)


def keep_count(density: Any, size: Any) -> Any:
    """How many entries a density keeps: max(1, floor(density * size)), exact for numbers."""
    if concrete(density, size) and getattr(density, "ndim", 0) == 0:
        return max(1, math.floor(float(density) * int(size)))
    return jnp.maximum(1, jnp.floor(density * size).astype(jnp.int32))


def kth_magnitude(density: Any, scope: str = "row") -> Measure:
    """The exact k-th largest |x| (as bits) by radix select, k = keep_count(density, n).

    Two passes of 2^16 counters: the high 16 bits find the bin, the low 16 bits inside that bin pin
    the value.  Histograms add, so leaves, files and devices may be visited in any order.
    """

    def init():
        return {"value": np.uint32(0), "k": None}

    def observe(x, summary, turn):
        bits = magnitude_bits(x).ravel()
        if turn == 0:
            hist = jnp.zeros(BINS, jnp.int32).at[bits >> 16].add(1)
            return {"hist": hist, "n": jnp.int32(x.size)}
        inside = ((bits >> 16) == (summary["value"] >> 16)).astype(jnp.int32)
        return {"hist": jnp.zeros(BINS, jnp.int32).at[bits & 0xFFFF].add(inside)}

    def host(x, summary, turn):
        bits = np.abs(x.astype(np.float32, copy=False)).view(np.uint32).ravel()
        if turn == 0:
            return {"hist": np.bincount(bits >> 16, minlength=BINS), "n": np.int64(x.size)}
        inside = bits[(bits >> 16) == (summary["value"] >> 16)]
        return {"hist": np.bincount(inside & 0xFFFF, minlength=BINS)}

    def refine(summary, total, turn):
        xp = np if concrete(total, summary) else jnp
        k = keep_count(density, total["n"]) if turn == 0 else summary["k"]
        at_least = xp.cumsum(total["hist"][::-1])[::-1]
        b = xp.sum(at_least >= k) - 1
        low = xp.asarray(b, xp.uint32) << xp.uint32(0 if turn else 16)
        return {"value": summary["value"] | low, "k": k - (at_least[b] - total["hist"][b])}

    return Measure(init, observe, refine, passes=2, scope=scope, host=host)
