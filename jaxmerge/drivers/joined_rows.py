"""Many leaves of a row as few long arrays, for an accelerator.

To find a rank an accelerator passes over a row eight times, each in no time; what takes time is to
start a program for every leaf and to wait for its counts.  So the leaves are joined once, and the
first pass is one program, all others together a second one; leaves that are ranked each on its own
have two programs each.  (The first is apart since ranks are exact on the host only: a density times
a size, in float64.)  Only whole numbers are counted so: sums of floats would round differently.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from jaxmerge.core.types import concrete
from jaxmerge.drivers.leaf import LeafInputs, join_rows

PART = 1 << 28  # entries that are counted together: an int32 holds them, a gigabyte is at hand


def lies_on_accelerator(names: Iterable[str], base: Any, model: Any) -> bool:
    """Whether all these leaves of a row lie whole on one accelerator."""
    leaves = [tree[n] for tree in (base, model) for n in names]
    if not concrete(leaves) or not all(isinstance(x, jax.Array) for x in leaves):
        return False
    return on_accelerator(leaves)


def on_accelerator(leaves: list[jax.Array]) -> bool:
    """Whether arrays lie on one device, and it is no CPU."""
    devices = set().union(*(x.devices() for x in leaves))
    return len(devices) == 1 and all(d.platform != "cpu" for d in devices)


def joined(grid: Any, inputs: dict[str, LeafInputs], i: int, zero: bool) -> list[tuple[str, Any]]:
    """The entries of a row at stage i in arrays of at most `PART`, or of one leaf, entries.

    Returns:
        Each array with the name of its first leaf, whose stages are those of all.
    """
    parts: list[list[str]] = []
    room = 0
    for n, leaf in inputs.items():
        size = leaf.base.size
        if size > room:
            parts.append([])
            room = PART
        parts[-1].append(n)
        room -= size
    before = lambda n: grid[n].specs[0][:i]
    return [(p[0], join_rows(list(map(before, p)), [inputs[n] for n in p], zero)) for p in parts]
