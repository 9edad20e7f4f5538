"""What happens to one leaf, compiled once per shape; every driver calls these functions.

A leaf's way through a merge is ``base, models -> before* -> fold -> after* -> merged leaf``.  Each
function below takes the stages as a triple of specs (`Pipeline.specs`), which is a pytree of
numbers, and builds them again inside jit.  So one compilation serves all leaves of one shape and
every value of a factor, and the memory, file and sharded drivers give the same bits.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.shard_alike import shard_alike

from jaxmerge.core.types import Array, Context, Measure, Merge, Transform, cell_key, working_dtype


def delta(model: Array, base: Array, zero: bool = False) -> Array:
    """One leaf of the task vector, in the working dtype."""
    dtype = working_dtype(base)
    x = model.astype(dtype) - base.astype(dtype)
    return jnp.where(jnp.isfinite(x), x, 0) if zero else x


@jax.jit
def start_leaf(specs, base):
    """The cell of one leaf before any model."""
    return specs[1].build().init(base)


@jax.jit
def start_alike(specs, base):
    """The same, every array of the leaf's shape cut over devices as the leaf is.

    Nothing in a cell of zeros depends on the leaf, so the compiler would put it on one device.
    """
    alike = lambda x: shard_alike(base, x)[1] if jnp.shape(x) == base.shape else x
    return jax.tree.map(alike, start_leaf(specs, base))


@functools.partial(jax.jit, static_argnames="zero")
def update_leaf(specs, cell, base, models, key, step, measured, extras, zero=False):
    """Fold models (a tuple of leaves) into the cell of one leaf, in one compiled pass."""
    before, fold, _ = _build(specs)
    for t, model in enumerate(models):
        x = _enter(before, len(before), base, model, key, step + t, extras[t], measured[t], zero)
        ctx = _context(base, step + t, key, len(before), extras[t], measured[t][-1])
        cell = fold.update(cell, x, ctx)
    return cell


@jax.jit
def combine_leaf(specs, first, second):
    """The cell of the models of two cells, in that order."""
    return specs[1].build().combine(first, second)


@jax.jit
def finish_leaf(specs, cell, base, key, step, measured):
    """The merged leaf of the model, in the dtype of the base."""
    before, fold, after = _build(specs)
    x = _leave(before, fold, after, len(after), cell, base, key, step, measured)
    return (base.astype(x.dtype) + x).astype(base.dtype)


@functools.partial(jax.jit, static_argnames="zero")
def fold_leaf(specs, base, models, key, measured, extras, zero=False):
    """All models folded: the cell of one leaf."""
    step = jnp.zeros((), jnp.int32)
    cell = _opaque(start_leaf(specs, base))
    return update_leaf(specs, cell, base, models, key, step, measured, extras, zero)


@functools.partial(jax.jit, static_argnames="zero")
def merge_leaf(specs, base, models, key, measured, extras, zero=False):
    """Fold and finish one leaf in one compiled pass over memory; no facts about the whole row."""
    cell = fold_leaf(specs, base, models, key, measured, extras, zero)
    none = (None,) * (1 + len(specs[2]))
    # A count that the compiler cannot see, as in a stream: else it would divide by a reciprocal.
    count = jax.lax.optimization_barrier(jnp.int32(len(models)))
    return finish_leaf(specs, cell, base, key, count, none)


@functools.partial(jax.jit, static_argnames="zero")
def row_leaf(before, base, model, key, step, extra, measured, zero=False):
    """One leaf of a row behind the transforms `before` (their specs)."""
    stages = [s.build() for s in before]
    return _enter(stages, len(stages), base, model, key, step, extra, measured, zero)


@functools.partial(jax.jit, static_argnames=("i", "turn", "zero"))
def observe_leaf(specs, i, summary, turn, base, model, key, step, extra, measured, zero=False):
    """What one leaf of a row contributes, in pass `turn`, to the measure of stage i."""
    before, fold, _ = _build(specs)
    x = _enter(before, i, base, model, key, step, extra, measured, zero)
    measure = before[i].measure if i < len(before) else fold.measure
    return _observe(measure, x, summary, turn)


@functools.partial(jax.jit, static_argnames="turn")
def observe_opening(specs, summary, turn, cell):
    """What one leaf contributes to the opening measure."""
    return _observe(specs[1].build().opening, cell, summary, turn)


@functools.partial(jax.jit, static_argnames=("i", "turn"))
def observe_cell(specs, i, summary, turn, cell, base, key, step, measured):
    """What one leaf contributes to the closing measure (i = 0) or to that of transform i - 1."""
    before, fold, after = _build(specs)
    if i == 0:
        return _observe(fold.closing, cell, summary, turn)
    x = _leave(before, fold, after, i - 1, cell, base, key, step, measured)
    return _observe(after[i - 1].measure, x, summary, turn)


@jax.jit
def result_leaf(specs, cell, base, key, step, measured):
    """The merged leaf behind all its transforms, still a task vector."""
    before, fold, after = _build(specs)
    return _leave(before, fold, after, len(after), cell, base, key, step, measured)


def _opaque(cell):
    """The same cell, but the compiler cannot see that it is zero, as it cannot in a stream.

    Where a product is added to it, both are rounded together (fused multiply-add).  Of a plain
    zero nothing but the product would be left, and of two products the compiler may round either.
    """
    zero = jax.lax.optimization_barrier(jnp.int32(0))
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), cell)


def _observe(measure: Measure | None, x: Any, summary: Any, turn: int) -> Any:
    if measure is None:
        raise ValueError("Nothing is measured at this stage.")
    return measure.observe(x, summary, turn)


def _build(specs) -> tuple[list[Transform], Merge, list[Transform]]:
    before, fold, after = specs
    return [s.build() for s in before], fold.build(), [s.build() for s in after]


def _context(base, step, key, stage, extra, measured) -> Context:
    return Context(base, step, cell_key(key, step, stage), extra, measured)


def _enter(before, upto, base, model, key, step, extra, measured, zero) -> Array:
    x = delta(model, base, zero)
    for i, t in enumerate(before[:upto]):
        x = t.kernel(x, _context(base, step, key, i, extra, measured[i]))
    return x


def _leave(before, fold, after, upto, cell, base, key, step, measured) -> Array:
    x = fold.finalize(cell, _context(base, step, key, len(before) + 1, {}, measured[0]))
    for j, t in enumerate(after[:upto]):
        stage = len(before) + 2 + j
        x = t.kernel(x, _context(base, step, key, stage, {}, measured[1 + j]))
    return x
