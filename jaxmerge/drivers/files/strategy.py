"""How a leaf is merged: with all models at once, with one after another, or in pieces.

What it takes is estimated from the compiled programs; that a leaf may be cut is proven from their
traces, once for every pipeline, shape and dtype.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxmerge.core import names
from jaxmerge.core.types import working_dtype
from jaxmerge.drivers.files.chunks import (
    MIN_PIECE,
    bounds,
)
from jaxmerge.drivers.files.elementwise_proof import by_rows, sums
from jaxmerge.drivers.files.job import Job, piece_key
from jaxmerge.drivers.files.leaf_program import merge_whole
from jaxmerge.drivers.files.memory_budget import (
    PIECEWISE,
    ROOM,
    input_bytes,
    needs,
)
from jaxmerge.drivers.files.side_information import like_of
from jaxmerge.drivers.leaf import LeafInputs
from jaxmerge.drivers.measuring import host_of
from jaxmerge.io.safetensors import Like

LONGEST_ROW = 1 << 22  # entries; leaves of longer rows are not cut into rows
PROGRAM = 12 << 20  # bytes that compiling one more program for the pieces of a leaf takes
SORTED = 8  # bytes that mixing the entries of a row takes for every byte of its inputs


def entry_bytes(job: Job, name: str) -> int:
    """Bytes of all inputs of one entry."""
    return max(1, input_bytes(job, name) // job.like[name].size)


def row_programs(job: Job) -> int:
    """Bytes that compiling a program of sorts and reductions by row takes."""
    return PROGRAM * (2 * len(job.models) + 1)


class Cut(NamedTuple):
    """How a leaf may be cut into pieces.

    Attributes:
        rounds: of the sums over the leaf that couple its entries.
        row: pieces are whole rows, of this many entries; 0 where any will do.
    """

    rounds: tuple[int, ...] = ()
    row: int = 0


class Strategy:
    """The way of every leaf, with what was estimated and proven so far.

    Args:
        zero: entries that are not finite count as no change.
        out_dtype: of the output, None for that of each leaf.
        overflow: what becomes of values beyond the output's dtype.
    """

    def __init__(self, zero: bool, out_dtype: Any, overflow: str = "raise"):
        self.zero, self.out_dtype, self.overflow = zero, out_dtype, overflow
        self.proofs: dict[Any, Any] = {}
        self.needs: dict[Any, tuple[int, int]] = {}

    def of(
        self, job: Job, name: str, cut: Cut | None, measured: tuple, closing: tuple | None
    ) -> tuple[str, int]:
        """How one leaf is merged, and the bytes that it takes."""
        if cut == Cut():
            return "pieces", PIECEWISE
        together, apart = self.needs_of(job, name, measured, closing)
        if cut is not None and min(together, apart) > ROOM:
            sorts = cut.row and host_of(job.grid[name], self.zero) is None  # else numpy does
            more = row_programs(job) if sorts else 0
            rounds = PROGRAM * max(cut.rounds, default=0)
            return "pieces", PIECEWISE + rounds + more + SORTED * cut.row * entry_bytes(job, name)
        return ("at once", together) if together <= max(ROOM, apart) else ("one by one", apart)

    def needs_of(self, job: Job, name: str, measured: tuple, closing: tuple | None) -> tuple:
        """Bytes that a whole leaf takes with all models at once, and with one after another."""
        code = self.code(job, name, measured, closing)
        if code not in self.needs:
            like = self.base_like(job, name)
            self.needs[code] = needs(job, name, like, measured, closing, self.zero)
        return self.needs[code]

    def code(self, job: Job, name: str, measured: tuple, closing: tuple | None) -> Any:
        """The same for leaves that the same programs merge."""
        kinds = tuple(m.like[name].dtype for m in job.models)
        form = jax.tree.structure((job.grid[name].specs, measured, closing))
        sides = [{k: like_of(v, name) for k, v in e.items() if name in v} for e in job.extras]
        known = tuple(tuple((k, e[k].shape, e[k].dtype) for k in sorted(e)) for e in sides)
        return form, job.like[name], kinds, known

    def cut(self, job: Job, name: str, measured: tuple, closing: tuple | None) -> Cut | None:
        """How the leaf may be cut; None if its entries are coupled otherwise.
        Proven once for every pipeline, shape and dtype."""
        like = job.like[name]
        if like.size < 2 * MIN_PIECE:
            return None
        code = self.code(job, name, measured, closing)
        if code not in self.proofs:
            self.proofs[code] = self._proof(job, name, measured, closing)
        return self.proofs[code]

    def _proof(self, job: Job, name: str, measured: tuple, closing: tuple | None) -> Cut | None:
        like, specs = self.base_like(job, name), job.grid[name].specs
        sides = tuple(
            {k: jax.ShapeDtypeStruct(*like_of(v, name)[:2]) for k, v in e.items() if name in v}
            for e in job.extras or ({},) * len(job.models)
        )
        key, models = (
            piece_key(job, name, 0),
            [Like(like.shape, m.like[name].dtype) for m in job.models],
        )

        def run(base, models, sides):
            inputs = LeafInputs(base, models, key, measured=measured, extras=sides)
            return merge_whole(specs, closing, inputs, self.zero)

        rounds = sums(run, like, tuple(models), sides)
        if rounds is not None:
            return Cut(rounds)
        row = math.prod(like.shape[1:])
        rounds = by_rows(run, like, tuple(models), sides) if row <= LONGEST_ROW else None
        return None if rounds is None else Cut(rounds, row)

    def base_like(self, job: Job, name: str) -> Like:
        """The base as the leaf functions see it: wide where the output keeps more than it has."""
        like = job.like[name]
        narrow = self.overflow == "clip" and bounds(like.dtype) is not None
        wide = narrow or self.target(like) != like.dtype
        return Like(like.shape, np.dtype(working_dtype(like))) if wide else like

    def target(self, like: Like) -> np.dtype:
        return np.dtype(self.out_dtype) if self.out_dtype and names.is_float(like) else like.stored
