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
from jaxmerge.drivers.leaf import LeafInputs, finish_leaf, fold_leaf, merge_leaf


def merge_whole(specs, closing, inputs: LeafInputs, zero: bool) -> Any:
    """One leaf, or a piece of it, through the compiled functions, as the in-memory driver does."""
    if closing is None:
        return merge_leaf(specs, inputs, zero)
    cell = fold_leaf(specs, inputs, zero)
    return finish_leaf(specs, cell, inputs.behind(np.int32(len(inputs.models)), closing))


@functools.partial(jax.jit, static_argnames=("zero", "rounds", "turn"))
def part_sums(specs, closing, inputs: LeafInputs, zero: bool, rounds, turn: int, totals) -> Any:
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
        sums = part()
        if at == turn:
            parts.append(sums)
        return sums

    _with_sums(take, specs, closing, inputs, zero)
    return parts


@functools.partial(jax.jit, static_argnames="zero")
def merge_part(specs, closing, inputs: LeafInputs, zero: bool, totals) -> Any:
    """A piece of a leaf, given every sum over the leaf."""
    known = iter(totals)
    return _with_sums(lambda part: next(known), specs, closing, inputs, zero)


def _with_sums(take, specs, closing, inputs: LeafInputs, zero: bool) -> Any:
    run = lambda specs, closing, inputs: merge_whole(specs, closing, inputs, zero)
    return with_sums(run, take, specs, closing, inputs)
