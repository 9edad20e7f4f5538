"""A leaf from end to end, whole or as a piece: what the file driver calls for each.

A piece is merged as a whole leaf is.  Where sums over the leaf couple its pieces, they pass more
than once: `part_sums` says what a piece adds to every sum, `merge_part` merges it given the totals.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import numpy as np

from jaxmerge.drivers.files.elementwise_proof import with_sums
from jaxmerge.drivers.leaf import finish_leaf, fold_leaf, merge_leaf


def merge_whole(specs, closing, key, measured, sides, zero, base, models) -> Any:
    """One leaf, or a piece of it, through the compiled functions, as the in-memory driver does."""
    if closing is None:
        return merge_leaf(specs, base, models, key, measured, sides, zero)
    cell = fold_leaf(specs, base, models, key, measured, sides, zero)
    return finish_leaf(specs, cell, base, key, np.int32(len(models)), closing)


@functools.partial(jax.jit, static_argnums=(5, 8, 9))
def part_sums(
    specs, closing, key, measured, sides, zero, base, models, rounds, turn, totals
) -> Any:
    """What a piece of a leaf adds to every sum of one round, the totals of those before given.

    Args:
        rounds: of every sum, in order.
        turn: the round that is added up.
        totals: of the sums of earlier rounds, in order.
    """
    parts: list = []
    number, known = itertools.count(), iter(totals)

    def take(part):
        at = rounds[next(number)]
        if at < turn:
            return next(known)
        found = part()
        if at == turn:
            parts.append(found)
        return found

    _with_sums(take, specs, closing, key, measured, sides, zero, base, models)
    return parts


@functools.partial(jax.jit, static_argnums=5)
def merge_part(specs, closing, key, measured, sides, zero, base, models, totals) -> Any:
    """A piece of a leaf, given every sum over the leaf."""
    known = iter(totals)
    take = lambda part: next(known)
    return _with_sums(take, specs, closing, key, measured, sides, zero, base, models)


def _with_sums(take, specs, closing, key, measured, sides, zero, base, models) -> Any:
    def run(specs, closing, key, measured, sides, base, models):
        return merge_whole(specs, closing, key, measured, sides, zero, base, models)

    return with_sums(run, take, specs, closing, key, measured, sides, base, models)
