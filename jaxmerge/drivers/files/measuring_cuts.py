"""Whether a large leaf may be cut where facts about it are gathered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Measure
from jaxmerge.drivers.files.elementwise_proof import by_rows, elementwise
from jaxmerge.drivers.files.job import Job, piece_key
from jaxmerge.drivers.files.memory_budget import ROOM, input_bytes, row_bytes
from jaxmerge.drivers.files.strategy import Strategy
from jaxmerge.drivers.leaf import LeafInputs, fold_leaf
from jaxmerge.io.safetensors import Like


def cuts_row(job: Job, n: str) -> int:
    """Whether the facts about a row may be gathered piece by piece: there is one, about the plain
    task vector, and it adds up over entries.  Sums of floats are cut only where they must be."""
    p = job.grid[n]
    first, *others = [*(t.measure for t in p.before), p.fold.measure]
    if first is None or any(others) or first.scope != "row" or not (p.before or p.fold.measure):
        return 0
    return int(first.host is not None or (first.by_entry and row_bytes(job, n) > ROOM))


def cuts_cells(
    job: Job, strategy: Strategy, n: str, measure: Measure | None, measured: tuple
) -> int:
    """Whether a fact about the folded cells may be gathered piece by piece: it adds up over
    entries, and the fold treats them on their own.  Sums of floats are cut only where they must
    be."""
    p, like = job.grid[n], strategy.base_like(job, n)
    if job.extras or measure is None or measure.scope != "row":
        return 0
    if any(t.measure for t in p.after) or not (measure.by_entry or measure.host):
        return 0
    kinds = tuple(m.like[n].dtype for m in job.models[: len(measured)])
    code = strategy.code(job, n, measured, None), kinds, measure
    if code not in strategy.proofs:
        key = piece_key(job, n, 0)

        def fold(base, models):
            none = ({},) * len(models)
            inputs = LeafInputs(base, models, key, measured=measured, extras=none)
            return fold_leaf(p.specs, inputs, strategy.zero)

        models = tuple(Like(like.shape, k) for k in kinds)
        counts = measure.host is not None or _integers(measure, fold, like, models)
        strategy.proofs[code] = counts, _apart(fold, like, models)
    counts, row = strategy.proofs[code]
    return row if (row == 1 and counts) or input_bytes(job, n) > ROOM // 2 else 0


def _apart(fold: Callable, like: Like, models: tuple[Like, ...]) -> int:
    """How long the pieces of a leaf are that a fold treats on their own; 0 if it mixes more."""
    if elementwise(fold, like, models):
        return 1
    return math.prod(like.shape[1:]) if by_rows(fold, like, models) == () else 0


def _integers(measure: Measure, fold: Callable, like: Like, models: Sequence[Like]) -> bool:
    observe = lambda base, models: measure.observe(fold(base, models), measure.init(), 0)
    part = jax.eval_shape(observe, *_structs(like, models))
    return all(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(part))


def _structs(like: Like, models: Sequence[Like]):
    struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    return struct(like), tuple(map(struct, models))
