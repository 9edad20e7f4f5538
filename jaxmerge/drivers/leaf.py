"""What happens to one leaf, compiled once per shape; every driver calls these functions.

A leaf's way through a merge is ``base, models -> before* -> fold -> after* -> merged leaf``.  Each
function below takes the stages as a triple of specs (`Pipeline.specs`), which is a pytree of
numbers, and builds them again inside jit.  So one compilation serves all leaves of one shape and
every value of a factor, and the memory, file and sharded drivers give the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.core.keys import cell_key
from jaxmerge.core.stage_specs import spec_of
from jaxmerge.core.types import Array, Context, Measure, Merge, Transform, working_dtype
from jaxmerge.numerics.precision import full_precision


class LeafInputs(NamedTuple):
    """What is computed with on one leaf, besides the stages and the cell: a pytree.

    Attributes:
        base: the leaf of the base.
        models: the leaf in every model that is folded; none behind the fold.
        key: of the leaf, None where nothing is drawn.
        step: int32, the number of the first of the models, None for 0; behind the fold how many
            models were folded.
        measured: for every model, what each stage receives; behind the fold what each stage does.
        extras: side information about the leaf, for every model.
    """

    base: Any
    models: tuple = ()
    key: Any = None
    step: Any = None
    measured: tuple = ()
    extras: tuple = ()

    def only(self, t: int) -> LeafInputs:
        """The inputs of model t alone."""
        one = slice(t, t + 1)
        models, measured, extras = self.models[one], self.measured[one], self.extras[one]
        return LeafInputs(self.base, models, self.key, self.step + t, measured, extras)

    def behind(self, count: Any, measured: tuple) -> LeafInputs:
        """The inputs of what comes behind the fold of so many models."""
        return LeafInputs(self.base, (), self.key, count, measured)


def _compiled(f: Callable, **options: Any) -> Callable:
    """`jax.jit` at full precision: projections and Gram matrices are as exact on a TPU as here."""
    return jax.jit(full_precision(f), **options)


def delta(model: Array, base: Array, zero: bool = False) -> Array:
    """One leaf of the task vector, in the working dtype."""
    dtype = working_dtype(base)
    x = model.astype(dtype) - base.astype(dtype)
    return jnp.where(jnp.isfinite(x), x, 0) if zero else x


@_compiled
def start_leaf(specs, base):
    """The cell of one leaf before any model."""
    return specs[1].build().init(base)


def start_at_once(specs, base):
    """The same, uncompiled: zeros of one shape are one program for all methods."""
    cell = full_precision(specs[1].build().init)(jnp.asarray(base))
    return jax.tree.map(jnp.asarray, cell)


@_compiled
def start_alike(specs, base):
    """The same, every array of the leaf's shape cut over devices as the leaf is.

    Nothing in a cell of zeros depends on the leaf, so the compiler would put it on one device: a
    zero that it cannot see is added, times what it must read the leaf for.
    """
    zero = jax.lax.optimization_barrier(jnp.int32(0))
    nothing = lambda dtype: (base == base).astype(dtype) * zero.astype(dtype)
    alike = lambda x: x + nothing(x.dtype) if jnp.shape(x) == base.shape else x
    return jax.tree.map(alike, start_leaf(specs, base))


@functools.partial(_compiled, static_argnames="zero")
def update_leaf(specs, cell, inputs, zero=False):
    """Fold models into the cell of one leaf, in one compiled pass."""
    for t in range(len(inputs.models)):
        cell = _update_once(specs, cell, inputs.only(t), zero)
    return cell


@functools.partial(_compiled, static_argnames="zero")
def _update_once(specs, cell, inputs, zero):
    """The same for one model; traced once for all models of a leaf."""
    before, fold, _ = _build(specs)
    x = _enter(before, inputs, 0, zero)
    with named(fold):
        return fold.update(cell, x, _context(inputs, len(before), inputs.measured[0][-1], 0))


# the same in the memory of the cell, for who owns it and needs it no more
update_donated = jax.jit(update_leaf, static_argnums=3, donate_argnums=1)


@_compiled
def combine_leaf(specs, first, second):
    """The cell of the models of two cells, in that order."""
    return specs[1].build().combine(first, second)


@_compiled
def finish_leaf(specs, cell, inputs):
    """The merged leaf of the model, in the dtype of the base."""
    base, x = inputs.base, _leave(*_build(specs), cell, inputs)
    return (base.astype(x.dtype) + x).astype(base.dtype)


@functools.partial(_compiled, static_argnames="zero")
def fold_leaf(specs, inputs, zero=False):
    """All models folded: the cell of one leaf."""
    cell = _opaque(start_leaf(specs, inputs.base))
    return update_leaf(specs, cell, inputs._replace(step=jnp.zeros((), jnp.int32)), zero)


@functools.partial(_compiled, static_argnames="zero")
def merge_leaf(specs, inputs, zero=False):
    """Fold and finish one leaf in one compiled pass over memory; no facts about the whole row."""
    cell = fold_leaf(specs, inputs, zero)
    none = (None,) * (1 + len(specs[2]))
    # A count that the compiler cannot see, as in a stream: else it would divide by a reciprocal.
    count = jax.lax.optimization_barrier(jnp.int32(len(inputs.models)))
    return finish_leaf(specs, cell, inputs.behind(count, none))


@functools.partial(_compiled, static_argnames="zero")
def row_leaf(before, inputs, zero=False):
    """One leaf of a row behind the transforms `before` (their specs)."""
    return _enter(list(map(_built, before)), inputs, 0, zero)


@functools.partial(_compiled, static_argnames="zero")
def join_rows(before, inputs, zero=False):
    """The entries of many leaves of a row, each behind its transforms, as one array."""
    rows = [_enter(list(map(_built, b)), x, 0, zero) for b, x in zip(before, inputs, strict=True)]
    return jnp.concatenate([row.reshape(-1) for row in rows])


@functools.partial(_compiled, static_argnames=("i", "turn"))
def observe_part(specs, i, summary, turn, x):
    """What entries contribute, in pass `turn`, to the measure of stage i."""
    before, fold, _ = _build(specs)
    return _observe(before[i].measure if i < len(before) else fold.measure, x, summary, turn)


@functools.partial(_compiled, static_argnames=("i", "turn", "zero"))
def observe_leaf(specs, i, summary, turn, inputs, zero=False):
    """What one leaf of a row contributes, in pass `turn`, to the measure of stage i."""
    before = list(map(_built, specs[0][:i]))
    return observe_part(specs, i, summary, turn, _enter(before, inputs, 0, zero))


@functools.partial(_compiled, static_argnames="i")
def rest_of_part(specs, i, summary, x):
    """The summary of entries after all passes behind the first."""
    before, fold, _ = _build(specs)
    measure = before[i].measure if i < len(before) else fold.measure
    if measure is None or measure.rest is None:
        raise ValueError("Nothing is measured in later passes at this stage.")
    return measure.rest(x, summary)


@functools.partial(_compiled, static_argnames=("i", "zero"))
def rest_of_leaf(specs, i, summary, inputs, zero=False):
    """The same for one leaf of a row that is measured on its own."""
    before = list(map(_built, specs[0][:i]))
    return rest_of_part(specs, i, summary, _enter(before, inputs, 0, zero))


@functools.partial(_compiled, static_argnames="turn")
def observe_opening(specs, summary, turn, cell):
    """What one leaf contributes to the opening measure."""
    return _observe(specs[1].build().opening, cell, summary, turn)


@functools.partial(_compiled, static_argnames=("i", "turn"))
def observe_cell(specs, i, summary, turn, cell, inputs):
    """What one leaf contributes to the closing measure (i = 0) or to that of transform i - 1."""
    before, fold, after = _build(specs)
    if i == 0:
        return _observe(fold.closing, cell, summary, turn)
    x = _leave(before, fold, after[: i - 1], cell, inputs)
    return _observe(after[i - 1].measure, x, summary, turn)


@_compiled
def result_leaf(specs, cell, inputs):
    """The merged leaf behind all its transforms, still a task vector."""
    return _leave(*_build(specs), cell, inputs)


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
    return list(map(_built, before)), _built(fold), list(map(_built, after))


def _built(spec: Any) -> Any:
    """A stage that knows its spec."""
    stage = spec.build()
    return stage._replace(**{"core" if isinstance(stage, Merge) else "spec": spec})


def _context(inputs: LeafInputs, stage: int, measured: Any, t: int | None = None) -> Context:
    """What a stage may look at: of model t, or behind the fold."""
    step = inputs.step if t is None else inputs.step + t
    extra = {} if t is None else inputs.extras[t]
    return Context(inputs.base, step, cell_key(inputs.key, step, stage), extra, measured)


def _enter(before: list[Transform], inputs: LeafInputs, t: int, zero: bool) -> Array:
    x = delta(inputs.models[t], inputs.base, zero)
    for i, stage in enumerate(before):
        with named(stage):
            x = stage.kernel(x, _context(inputs, i, inputs.measured[t][i], t))
    return x


def _leave(before, fold, after, cell, inputs: LeafInputs) -> Array:
    with named(fold):
        x = fold.finalize(cell, _context(inputs, len(before) + 1, inputs.measured[0]))
    for j, stage in enumerate(after):
        with named(stage):
            x = stage.kernel(x, _context(inputs, len(before) + 2 + j, inputs.measured[1 + j]))
    return x


def named(stage: Merge | Transform) -> Any:
    """The operations inside bear the name of the stage in traces and in compiled programs."""
    return jax.named_scope(getattr(spec_of(stage).factory, "__name__", "stage"))
