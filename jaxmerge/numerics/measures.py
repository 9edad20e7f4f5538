"""Facts about a whole row that a stage may ask for: its norm, its k-th magnitude.

Each is a `Measure`: what one leaf contributes is added up over leaves, files and devices, so a
global statistic of a model larger than memory costs a pass over it and a few numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.types import Array, Measure, concrete, leaf_size, numpy_of
from jaxmerge.numerics import brackets, host_order_statistics, order_statistics

__all__ = [
    "keep_count",
    "largest",
    "ranked_magnitude",
    "ranked_magnitudes",
    "square_norm",
    "square_sum",
]


def square_norm(scope: str = "row") -> Measure:
    """The squared Euclidean norm of the whole row, or of each leaf."""
    observe = lambda x, summary, turn: square_sum(x)
    return Measure(lambda: None, observe, scope=scope, by_entry=True)


def square_sum(x: Array) -> Array:
    """The sum of |x|^2 over all entries, in the shape of the leaf: to flatten one that is cut over
    devices along a later axis would gather it.

    >>> float(square_sum(jnp.array([[3.0], [4.0]])))
    25.0
    """
    every = tuple(range(x.ndim))
    return jax.lax.dot_general(jnp.conj(x), x, ((every, every), ((), ())))


def keep_count(density: Any, size: Any) -> Any:
    """How many entries a density keeps, floor(density * size), exact for numbers.

    A list of densities gives an array of counts.
    """
    if concrete(density, size):
        counts = [math.floor(float(d) * int(size)) for d in np.ravel(np.asarray(density))]
        return counts[0] if np.ndim(density) == 0 else np.array(counts)
    return jnp.floor(jnp.asarray(density) * size).astype(jnp.int32)


def ranked_magnitude(
    ranks: Callable[[Any], Any], scope: str = "row", exact: bool = False
) -> Measure:
    """The magnitudes that hold given ranks, exactly, as `order_statistics.magnitude_bits`.

    Args:
        ranks: ``size -> ranks``, 1 for the largest entry, `size` for the smallest, 0 for a bound
            above all of them; a number or an array, put into [0, size].
        scope: "row" ranks all leaves that share this measure together, "leaf" each on its own.
        exact: find the entry that holds a rank, where entries of equal magnitude rank in the order
            in which they stand in the leaf ("leaf" only); see `order_statistics.up_to`.

    The summary is ``{"value": bits, "rank": None}``, the bits in the shape of the ranks; with
    `exact` also ``"place"``, the number of the entry in the leaf.
    """
    assert scope == "leaf" or not exact  # places are numbers in one leaf
    traced = not concrete(ranks(1))

    def ranks_of(size):
        sought = ranks(size)
        xp = numpy_of(sought, size)
        return xp.clip(xp.asarray(sought), 0, size)

    def init():
        return {"value": np.zeros(0, np.uint32), "rank": np.zeros(0, np.int32)}

    def observe(x, summary, turn):
        if turn >= order_statistics.digits():
            if not exact or turn >= order_statistics.digits() + order_statistics.places():
                return {}
            value, place = (summary[k].reshape(-1) for k in ("value", "place"))
            turn -= order_statistics.digits()
            return {"hist": order_statistics.place_count(x, value, place, turn)}
        hist = order_statistics.radix_count(x, summary["value"].reshape(-1), turn)
        return {"hist": hist, "size": np.int32(x.size)}

    def host(row, summary, turn):
        if scope == "leaf":
            value, place = host_order_statistics.in_one_leaf(row, ranks_of(row.size), exact)
            return {"value": value, "place": place} if exact else {"value": value}
        if turn == 0:
            return {"sample": host_order_statistics.sample(row), "size": np.int64(row.size)}
        return host_order_statistics.count(row, summary["intervals"])

    def join(a, b, turn):
        return a.join(b) if isinstance(a, brackets.Tally) else a + b

    def refine(summary, total, turn):
        if not total or "value" in total:
            return total | {"rank": None} if total else summary
        if "hist" not in total:
            return refine_bracket(summary, total)
        if turn >= order_statistics.digits():
            return refine_place(summary, total, turn - order_statistics.digits())
        rank = ranks_of(total["size"]) if turn == 0 else summary["rank"]
        value = summary["value"] if turn else np.zeros(rank.shape, np.uint32)
        flat = order_statistics.radix_refine(
            value.reshape(-1), rank.reshape(-1), total["hist"], turn
        )
        value, left = (a.reshape(rank.shape) for a in flat)
        if exact:
            return {"value": value, "rank": left, "place": np.zeros(rank.shape, np.uint32)}
        return {"value": value, "rank": None if turn == order_statistics.digits() - 1 else left}

    def refine_place(summary, total, turn):
        rank = summary["rank"]
        flat = (summary["place"].reshape(-1), rank.reshape(-1), total["hist"], turn)
        place, left = (a.reshape(rank.shape) for a in order_statistics.place_refine(*flat))
        last = turn == order_statistics.places() - 1
        return summary | {"place": place, "rank": None if last else left}

    def refine_bracket(summary, total):
        if "sample" in total:
            rank = ranks_of(total["size"])
            where = brackets.guess(total["sample"], int(total["size"]), rank.reshape(-1))
        else:
            rank = summary["rank"]
            where = brackets.narrow(summary["intervals"], rank.reshape(-1), total)
        if brackets.settled(where):
            return {"value": brackets.values(where).reshape(rank.shape), "rank": None}
        return {"intervals": where, "rank": rank}

    rest = functools.partial(_other_passes, exact=exact)

    return Measure(
        init, observe, refine, passes=32, scope=scope, host=None if traced else host,
        done=lambda summary: summary["rank"] is None, join=join, rest=rest,
    )  # fmt: skip


def _other_passes(x: Array, summary: dict[str, Any], exact: bool) -> dict[str, Any]:
    """All passes of `ranked_magnitude` behind the first, over the entries of one array."""
    rank = summary["rank"]
    flat = rank.reshape(-1)
    value, left = order_statistics.other_digits(x, summary["value"].reshape(-1), flat)
    found = {"value": value.reshape(rank.shape), "rank": None}
    if exact:
        place = order_statistics.places_among_equals(x, value, left)
        found["place"] = place.reshape(rank.shape)
    return found


def ranked_magnitudes(x: Array, ranks: Any) -> Array:
    """Those magnitudes of one array that hold the given ranks (1 = the largest), in compiled code.

    >>> ranked_magnitudes(jnp.array([3.0, -1.0, 2.0]), np.array([1, 3])).tolist()
    [3.0, 1.0]
    """
    result = _in_compiled(x, ranks, False)
    return order_statistics.bits_to_magnitude(result["value"]).astype(x.dtype)


def largest(x: Array, count: Any, exact: bool) -> Array:
    """A mask of the `count` entries of one array of largest magnitude, in compiled code.

    Args:
        exact: of equal entries the first stay; else all that tie with the last are in too.

    >>> largest(jnp.array([3.0, -1.0, 2.0, 1.0]), 3, True).tolist()
    [True, True, True, False]
    """
    result = _in_compiled(x, count, exact)
    return order_statistics.up_to(x, result["value"], result.get("place"))


def _in_compiled(x: Array, ranks: Any, exact: bool) -> dict[str, Any]:
    measure = ranked_magnitude(lambda size: ranks, "leaf", exact)
    summary = measure.init()
    part = measure.observe(x, summary, 0) | {"size": leaf_size(x)}
    return _other_passes(x, measure.refine(summary, part, 0), exact)
