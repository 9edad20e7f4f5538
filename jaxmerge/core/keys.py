"""PRNG keys of the cells: by the name of the leaf, not by the order in which leaves are visited."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import jax

from jaxmerge.core.types import Array


def leaf_key(key: Any, name: str) -> Any:
    """The key of one leaf: by name, not by position, so the order of leaves never matters."""
    return None if key is None else jax.random.fold_in(key, zlib.crc32(name.encode()))


def cell_key(key: Any, step: Any, stage: int) -> Any:
    """The key of one cell at one stage, from its leaf's key."""
    if key is None:
        return None
    if isinstance(key, Piece):
        return key._replace(key=cell_key(key.key, step, stage))
    return jax.random.fold_in(jax.random.fold_in(key, step), stage)


class Piece(NamedTuple):
    """The key of a piece of a leaf that is cut, with which `jaxmerge.numerics.hash_rng` draws what
    the whole leaf would.

    Attributes:
        key: of the leaf, the model and the stage; None where nothing is drawn.
        start: uint32 scalar, the number of the piece's first entry in the flattened leaf.
    """

    key: Any
    start: Array
