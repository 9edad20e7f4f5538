"""Merging in memory, models one after another: one state, however many there are.

    state  = init(method, base, key=key)
    state  = update(method, state, base, model)
    params = merged(method, state, base)               # ask at any time; nothing is consumed

A model is any pytree of arrays, or a flat mapping of names to arrays.  All are pure: run them
eagerly, or inside your own jit, vmap, grad or shard_map.

The array work is done by `jaxmerge.drivers.leaf`, compiled **per shape of a leaf**; the file driver
calls the same functions, so a merge gives the same bits in memory and from disk.
`jaxmerge.drivers.measuring` gathers what couples leaves, `jaxmerge.core.validation` refuses what
does not fit.  Sharded leaves stay sharded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmerge.core import names
from jaxmerge.core.finite import refuse_nonfinite, refuse_overflow
from jaxmerge.core.types import Array, Cell, Leaves, Merge, Slots, Tree, concrete, zeros
from jaxmerge.core.validation import (
    check_count,
    check_joinable,
    check_method,
    check_nonfinite,
    check_order,
    check_state,
    flat_extra,
    folds_of,
    grid_of,
    refuse_growth,
)
from jaxmerge.drivers.explicit_axes import explicit, implicit, refuse_traced_explicit
from jaxmerge.drivers.leaf import (
    LeafInputs,
    combine_leaf,
    finish_leaf,
    start_alike,
    start_at_once,
    update_leaf,
)
from jaxmerge.drivers.measuring import (
    beside_on_host,
    measure_cells,
    measure_opening,
    measure_row,
    side,
)
from jaxmerge.numerics.blas_threads import leaf_by_leaf, shared_out

Nonfinite = Literal["raise", "zero"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MergeState:
    """All that a continual merge remembers: one pytree; donate it, checkpoint it as it is.

    Attributes:
        step: int32, how many models were merged.
        key: the root PRNG key, or None.
        cells: leaf name -> the method's cell.
        folds: names of the folds that made the cells; static, () where it is not known.

    The base is passed to every call instead of being kept here, so donating the state never
    deletes the caller's copy of the pretrained weights.
    """

    step: Array
    key: jax.Array | None
    cells: dict[str, Cell]
    folds: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})


def init(
    method: Merge, base: Tree, *, key: jax.Array | None = None, models: int | None = None
) -> MergeState:
    """The state before any model was merged, sharded as the base is.

    Args:
        method: any registered method, or a chain of stages.
        base: theta_0, a pytree.
        key: PRNG key, needed by stochastic methods.
        models: how many models will come.  Methods that keep all rows then have room for them from
            the start, so that the state keeps its form and `jax.lax.scan` can run over `update`.

    Memory: the method's cells.

    Raises:
        ValueError: no leaf; or, with `models`, a fold whose cell takes its form from the first
            model (RegMean's, from the Gram matrix).

    Example:
        >>> import jaxmerge as jm
        >>> base, method = {"w": jnp.zeros(2)}, jm.karcher()
        >>> stacked = {"w": jnp.array([[2.0, 0.0], [0.0, 2.0]])}
        >>> state = jm.init(method, base, models=2)
        >>> step = lambda state, model: (jm.update(method, state, base, model), None)
        >>> jm.merged(method, jax.lax.scan(step, state, stacked)[0], base)["w"].round(3)
        Array([1.414, 1.414], dtype=float32)
    """
    check_method(method, key)
    refuse_traced_explicit("jm.init", base)
    flat = implicit(names.flatten(base)[0])
    if not flat:
        raise ValueError(
            "init needs the base, found no leaf in it; to merge weights instead of changes, "
            "pass zeros: jax.tree.map(jnp.zeros_like, model)."
        )
    grid = grid_of(method, flat)
    cells = {
        n: (start_alike if _spread(flat[n]) else start_at_once)(p.specs, flat[n])
        for n, p in grid.items()
    }
    if models is not None:
        cells = _with_room(grid, flat, cells, models)
    return MergeState(jnp.zeros((), jnp.int32), key, cells, folds_of(grid))


def _with_room(grid, base: Leaves, cells: dict[str, Cell], models: int) -> dict[str, Cell]:
    """The cells in the form that they have after that many models."""
    late = {repr(p.fold): n for n, p in grid.items() if p.fold.needs and cells[n] == ()}
    if late:
        raise ValueError(
            "; ".join(f"{fold} (for example on leaf {n!r})" for fold, n in late.items())
            + " takes the form of its cell from the first model: update once before lax.scan, "
            "and leave models= out."
        )
    none = lambda c: isinstance(c, tuple) and not c
    room = lambda n, c: Slots(zeros(base[n]) for _ in range(models)) if none(c) else c
    return {
        n: jax.tree.map(lambda c, n=n: room(n, c), cell, is_leaf=none)
        if grid[n].fold.keeps_rows
        else cell
        for n, cell in cells.items()
    }


def _spread(leaf: Any) -> bool:
    """Whether a leaf lies on several devices, or may: inside jit that cannot be seen."""
    if isinstance(leaf, Tracer):
        return True
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def update(
    method: Merge,
    state: MergeState,
    base: Tree,
    model: Tree,
    *,
    nonfinite: Nonfinite = "raise",
    **extra: Tree,
) -> MergeState:
    """Merge one more model into the state.

    Args:
        extra: side information about this model, each a tree like the model (``fisher=...``).
        nonfinite: refuse NaN and Inf, or count them as no change.  (Inside jit values cannot be
            refused, and models are not counted: sums and means of NaN are NaN, what compares
            magnitudes or signs may drop it.)
        method: the one that made the state.
        state: of `init` or `update`; it is not consumed.
        base: theta_0, a pytree.
        model: a tree with the leaves of the base.

    To reuse the memory of the old state, compile and donate it:
    ``jax.jit(functools.partial(jm.update, method), donate_argnums=0)``.

    Raises:
        ValueError: as `merge`; or the state belongs to another base or method; or, inside
            `jax.lax.scan`, it would grow.

    Example:
        >>> import jaxmerge as jm
        >>> base, method = {"w": jnp.zeros(2)}, jm.magmax(0.5)
        >>> state = jm.init(method, base)
        >>> for model in ({"w": jnp.array([4.0, 1.0])}, {"w": jnp.array([-2.0, -6.0])}):
        ...     state = jm.update(method, state, base, model)
        >>> int(state.step), jm.merged(method, state, base)["w"]
        (2, Array([ 2., -3.], dtype=float32))
    """
    check_method(method, getattr(state, "key", None))
    check_order(state, MergeState, "jm.update(method, state, base, model)")
    zero = check_nonfinite(nonfinite)
    refuse_traced_explicit("jm.update", base, model)
    base, model = (implicit(names.flatten(x)[0]) for x in (base, model))
    names.check_same(base, model, who="the model")
    grid = grid_of(method, base)
    check_state(method, grid, state, base)
    extra = flat_extra(method, base, extra, "this model")
    if concrete(state.step):
        check_count(method, int(state.step) + 1, least=False)
        full = [n for n, c in state.cells.items() if _room(c) <= int(state.step)]
        if full:
            raise ValueError(
                f"The state was made for {int(state.step)} models and has no room for one more: "
                "jm.init(method, base, models=...) with their number, or without it."
            )
    if not zero:
        refuse_nonfinite(grid, base, [model])
    with shared_out(sum(p.decomposes for p in grid.values())) as there:
        cells = there(absorb(grid, base, state.cells, model, state.key, state.step, extra, zero))
    refuse_growth(grid, state, cells)
    return MergeState(state.step + 1, state.key, cells, state.folds)


def absorb(
    grid, base, cells, model, key, step, extra, zero, fold: Callable = update_leaf
) -> dict[str, Cell]:
    """The cells after one more model, folded by `update_leaf` or, in their memory, by
    `update_donated`."""
    summaries = measure_row(grid, base, model, key, step, extra, zero)
    summaries = measure_opening(grid, cells, summaries)
    inputs = lambda n, p: LeafInputs(
        base[n], (model[n],), p.key(key, n), step, (summaries[n],), (side(extra, n),)
    )
    folded = lambda n, p: fold(p.specs, cells[n], beside_on_host(p, inputs(n, p), zero), zero)
    read = lambda n: (cells[n], base[n], model[n])
    return leaf_by_leaf(lambda n: folded(n, grid[n]), grid, read)


def merged(method: Merge, state: MergeState, base: Tree) -> Tree:
    """The merged model so far, in the form and the dtypes of the base.

    Args:
        method: the one that made the state.
        state: of at least one model (or as few as the method takes); it is not consumed.
        base: theta_0, a pytree.

    Raises:
        ValueError: a state of another method or base, or of too few models; a merge that is beyond
            float16, where the base is in it.

    Example:
        >>> import jaxmerge as jm
        >>> base, method = {"w": jnp.zeros(1)}, jm.mean()
        >>> state = jm.update(method, jm.init(method, base), base, {"w": jnp.ones(1)})
        >>> jm.merged(method, state, base)["w"]
        Array([1.], dtype=float32)
    """
    check_method(method, getattr(state, "key", None))
    check_order(state, MergeState, "jm.merged(method, state, base)")
    refuse_traced_explicit("jm.merged", base)
    like, rebuild = names.flatten(base)
    flat = implicit(like)
    grid = grid_of(method, flat)
    check_state(method, grid, state, flat)
    cells = state.cells
    if concrete(state.step):
        check_count(method, int(state.step))
        cells = _filled(cells, int(state.step))
    with shared_out(sum(p.decomposes for p in grid.values())) as there:
        summaries = measure_cells(grid, flat, cells, state.key, state.step)
        inputs = lambda p, n: LeafInputs(
            flat[n], key=p.key(state.key, n), step=state.step, measured=summaries[n]
        )
        finish = lambda n: finish_leaf(grid[n].specs, cells[n], inputs(grid[n], n))
        out = there(leaf_by_leaf(finish, grid, lambda n: (cells[n], flat[n])))
    merged = like_base(like, out)
    refuse_overflow(grid, flat, merged)
    return rebuild(merged)


def _room(cell: Cell) -> float:
    """For how many models a cell has room."""
    slots = lambda c: isinstance(c, Slots)
    sizes = [len(c) for c in jax.tree.leaves(cell, is_leaf=slots) if slots(c)]
    return min(sizes, default=math.inf)


def _filled(cells: dict[str, Cell], count: int) -> dict[str, Cell]:
    """The cells without the room that is still empty."""
    slots = lambda c: isinstance(c, Slots)
    return jax.tree.map(lambda c: c[:count] if slots(c) else c, cells, is_leaf=slots)


def join(method: Merge, first: MergeState, second: MergeState, base: Tree) -> MergeState:
    """The state of the models of two states, those of `first` followed by those of `second`.

    Random masks depend on a model's place in the sequence, so with a stochastic method give the
    second state its `step` before it sees models: ``dataclasses.replace(state, step=offset)`` and
    subtract it after (`jaxmerge.drivers.sharded.pmerge` does both).

    Args:
        method: the one that made both states.
        first, second: states of disjoint sets of models.
        base: theta_0, a pytree.

    Raises:
        ValueError: a fold that cannot be joined (it must see its models in turn, as OPCM must).

    Example:
        >>> import jaxmerge as jm
        >>> base, method = {"w": jnp.zeros(1)}, jm.mean()
        >>> state = lambda v: jm.update(method, jm.init(method, base), base, {"w": jnp.full(1, v)})
        >>> jm.merged(method, jm.join(method, state(1.0), state(3.0), base), base)["w"]
        Array([2.], dtype=float32)
    """
    flat = implicit(names.flatten(base)[0])
    grid = grid_of(method, flat)
    check_joinable(method, grid)
    for state in (first, second):
        check_order(state, MergeState, "jm.join(method, first, second, base)")
        check_state(method, grid, state, flat)
    cells = {n: combine_leaf(p.specs, first.cells[n], second.cells[n]) for n, p in grid.items()}
    return MergeState(first.step + second.step, first.key, cells, first.folds)


def like_base(base: Leaves, out: Mapping[str, Array]) -> dict[str, Array]:
    """Integer leaves from the base, the rest merged; numpy where the base is numpy.

    numpy leaves keep their dtype also where jax computes float64 in float32 (x64 disabled).
    """

    def alike(leaf: Any, merged: Array) -> Array:
        if explicit(leaf):
            return jax.device_put(merged, leaf.sharding)
        if isinstance(leaf, np.ndarray) and concrete(merged):
            return np.asarray(merged, leaf.dtype)
        return merged

    return {n: alike(leaf, out[n]) if n in out else leaf for n, leaf in base.items()}
