"""The in-memory drivers: walk the grid of `jaxmerge.core` with everything in memory.

    state  = init(method, base, key=key)               # continual: one state, however many models
    state  = update(method, state, base, model)
    params = merged(method, state, base)               # ask at any time; nothing is consumed
    params = merge(method, base, models, key=key)      # batch: the fold run to its end

A model is any pytree of arrays, or a flat mapping of names to arrays.  All four are pure: run them
eagerly, or inside your own jit, vmap, grad or shard_map.

The work is done by four functions compiled **per shape of a leaf** (`merge_leaf`, `update_leaf`,
`finish_leaf`, `observe_leaf`); the file driver calls the same ones, so a merge gives the same bits
in memory and from disk.  Sharded leaves stay sharded.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge import names
from jaxmerge.combine import Pipeline, resolve, stochastic
from jaxmerge.core import (
    Array,
    Cell,
    Context,
    Leaves,
    Measure,
    Merge,
    Transform,
    cell_key,
    concrete,
    leaf_key,
    working_dtype,
)

Nonfinite = Literal["raise", "zero"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MergeState:
    """All that a continual merge remembers: one pytree; donate it, checkpoint it as it is.

    Attributes:
        step: int32, how many models were merged.
        key: the root PRNG key, or None.
        cells: leaf name -> the method's cell.

    The base is passed to every call instead of being kept here, so donating the state never
    deletes the caller's copy of the pretrained weights.
    """

    step: Array
    key: Any
    cells: dict[str, Cell]


def init(method: Merge, base: Any, *, key: Any = None) -> MergeState:
    """The state before any model was merged.  Memory: the method's cells."""
    check_method(method, key)
    flat, _ = names.flatten(base)
    grid = grid_of(method, flat)
    cells = {n: start_leaf(p.specs, flat[n]) for n, p in grid.items()}
    return MergeState(jnp.zeros((), jnp.int32), key, cells)


def update(
    method: Merge,
    state: MergeState,
    base: Any,
    model: Any,
    *,
    nonfinite: Nonfinite = "raise",
    **extra: Any,
) -> MergeState:
    """Merge one more model into the state.

    Args:
        extra: side information about this model, each a tree like the model (``fisher=...``).
        nonfinite: refuse NaN and Inf, or count them as no change.  (Inside jit values cannot be
            refused; they pass as they are.)
    """
    base, model = names.flatten(base)[0], names.flatten(model)[0]
    names.check_same(base, model, "the model")
    extra = _flat_extra(method, extra)
    grid = grid_of(method, base)
    if concrete(state.step):
        _check_count(method, int(state.step) + 1, least=False)
    zero = nonfinite == "zero"
    if not zero:
        refuse_nonfinite(grid, base, [model])
    found = measure_row(grid, base, model, state.key, state.step, extra, zero)
    cells = {
        n: update_leaf(
            p.specs, state.cells[n], base[n], (model[n],), leaf_key(state.key, n),
            state.step, (found[n],), (_at(extra, n),), zero,
        )
        for n, p in grid.items()
    }  # fmt: skip
    return MergeState(state.step + 1, state.key, cells)


def merged(method: Merge, state: MergeState, base: Any) -> Any:
    """The merged model so far, in the form and the dtypes of the base."""
    flat, rebuild = names.flatten(base)
    grid = grid_of(method, flat)
    if concrete(state.step):
        _check_count(method, int(state.step))
    found = measure_cells(grid, flat, state.cells, state.key, state.step)
    out = {
        n: finish_leaf(
            p.specs, state.cells[n], flat[n], leaf_key(state.key, n), state.step, found[n]
        )
        for n, p in grid.items()
    }
    return rebuild(_like(flat, out))


def merge(
    method: Merge,
    base: Any,
    models: Iterable[Any] | Mapping[str, Any],
    *,
    key: Any = None,
    extras: Sequence[Mapping[str, Any]] | None = None,
    nonfinite: Nonfinite = "raise",
) -> Any:
    """Merge models in memory.

    Args:
        method: any registered method, or a chain of stages.
        base: theta_0, a pytree; None stands for zeros, so that task vectors are the weights.
        models: pytrees with the leaves of the base; integer leaves come from the base.
        key: PRNG key, needed by stochastic methods.  Random masks depend on the leaf's name and
            the model's position, not on the order of leaves or the devices.
        extras: per model, side information such as ``{"fisher": tree}``.
        nonfinite: "raise" refuses NaN and Inf by name, "zero" counts them as no change.

    Returns:
        The merged model, in the structure and dtypes of the base; numpy leaves stay numpy.

    Raises:
        ValueError: leaves that do not fit (all named), too few or too many models, NaN or Inf,
            no key where one is needed, side information missing.

    Example:
        >>> import jaxmerge as jm
        >>> base = {"w": np.zeros(3, np.float32)}
        >>> models = [{"w": np.float32([1, -2, 0])}, {"w": np.float32([-3, 1, 0])}]
        >>> jm.merge(jm.magmax(0.5), base, models)["w"]
        array([-1.5, -1. ,  0. ], dtype=float32)
    """
    check_method(method, key)
    models = list(models.values()) if isinstance(models, Mapping) else list(models)
    _check_count(method, len(models))
    if base is None:
        like, rebuild = names.flatten(models[0])
        flat: Leaves = names.Zeros(like)
    else:
        flat, rebuild = names.flatten(base)
        like = flat
    rows = [names.flatten(m)[0] for m in models]
    for t, row in enumerate(rows):
        names.check_same(like, row, f"model {t}")
    if extras is not None and len(extras) != len(rows):
        raise ValueError(f"extras has {len(extras)} entries for {len(rows)} models; one each.")
    sides = [_flat_extra(method, e) for e in (extras or [{}] * len(rows))]
    zero = nonfinite == "zero"
    grid = grid_of(method, flat)
    if not zero:
        refuse_nonfinite(grid, flat, rows)
    steps = [jnp.int32(t) for t in range(len(rows))]
    found = [
        measure_row(grid, flat, row, key, t, e, zero)
        for row, t, e in zip(rows, steps, sides, strict=True)
    ]

    def folded(n: str, run: Any) -> Any:
        return run(
            grid[n].specs, flat[n], tuple(r[n] for r in rows), leaf_key(key, n),
            tuple(f[n] for f in found), tuple(_at(e, n) for e in sides), zero,
        )  # fmt: skip

    if any(m is not None for p in grid.values() for m in p.measures[len(p.before) + 1 :]):
        count = jnp.int32(len(rows))
        cells = {n: folded(n, fold_leaf) for n in grid}
        closing = measure_cells(grid, flat, cells, key, count)
        out = {
            n: finish_leaf(p.specs, cells.pop(n), flat[n], leaf_key(key, n), count, closing[n])
            for n, p in grid.items()
        }
    else:
        out = {n: folded(n, merge_leaf) for n in grid}
    return rebuild(_like(like, out))


# ------------------------------------------------------------ one leaf, compiled once per shape


def delta(model: Array, base: Array, zero: bool = False) -> Array:
    """One leaf of the task vector, in the working dtype."""
    dtype = working_dtype(base)
    x = model.astype(dtype) - base.astype(dtype)
    return jnp.where(jnp.isfinite(x), x, 0) if zero else x


@jax.jit
def start_leaf(specs, base):
    """The cell of one leaf before any model."""
    return specs[1].build().init(base)


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
def finish_leaf(specs, cell, base, key, step, measured):
    """The merged leaf of the model, in the dtype of the base."""
    before, fold, after = _build(specs)
    x = _leave(before, fold, after, len(after), cell, base, key, step, measured)
    return (base.astype(x.dtype) + x).astype(base.dtype)


@functools.partial(jax.jit, static_argnames="zero")
def fold_leaf(specs, base, models, key, measured, extras, zero=False):
    """All models folded: the cell of one leaf."""
    step = jnp.zeros((), jnp.int32)
    return update_leaf(
        specs, start_leaf(specs, base), base, models, key, step, measured, extras, zero
    )


@functools.partial(jax.jit, static_argnames="zero")
def merge_leaf(specs, base, models, key, measured, extras, zero=False):
    """Fold and finish one leaf in one compiled pass over memory; no facts about the whole row."""
    cell = fold_leaf(specs, base, models, key, measured, extras, zero)
    none = (None,) * (1 + len(specs[2]))
    return finish_leaf(specs, cell, base, key, jnp.int32(len(models)), none)


@functools.partial(jax.jit, static_argnames=("i", "zero"))
def row_leaf(specs, i, base, model, key, step, extra, measured, zero=False):
    """One leaf of a row as stage i before the merge sees it."""
    return _enter(_build(specs)[0], i, base, model, key, step, extra, measured, zero)


@functools.partial(jax.jit, static_argnames=("i", "turn", "zero"))
def observe_leaf(specs, i, summary, turn, base, model, key, step, extra, measured, zero=False):
    """What one leaf of a row contributes, in pass `turn`, to the measure of stage i."""
    before, fold, _ = _build(specs)
    x = _enter(before, i, base, model, key, step, extra, measured, zero)
    measure = before[i].measure if i < len(before) else fold.measure
    return measure.observe(x, summary, turn)


@functools.partial(jax.jit, static_argnames=("i", "turn"))
def observe_cell(specs, i, summary, turn, cell, base, key, step, measured):
    """What one leaf contributes to the closing measure (i = 0) or to that of transform i - 1."""
    before, fold, after = _build(specs)
    if i == 0:
        return fold.closing.observe(cell, summary, turn)
    x = _leave(before, fold, after, i - 1, cell, base, key, step, measured)
    return after[i - 1].measure.observe(x, summary, turn)


@functools.partial(jax.jit, static_argnames="i")
def result_leaf(specs, i, cell, base, key, step, measured):
    """The merged leaf as transform i after the merge sees it."""
    before, fold, after = _build(specs)
    return _leave(before, fold, after, i, cell, base, key, step, measured)


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
    x = fold.finalize(cell, _context(base, step, key, len(before), {}, measured[0]))
    for j, t in enumerate(after[:upto]):
        stage = len(before) + 1 + j
        x = t.kernel(x, _context(base, step, key, stage, {}, measured[1 + j]))
    return x


# ------------------------------------------------------------ facts about whole rows


def measure_row(grid, base, model, key, step, extra, zero=False, walk=None) -> dict[str, tuple]:
    """Per leaf, what the measures of the stages before the merge (and of the fold) found.

    Args:
        walk: iterates over leaf names with their leaves, ``walk(names) -> (name, base, model)``;
            the file driver gives one that reads ahead.
    """
    walk = walk or (lambda some: ((n, base[n], model[n]) for n in some))
    found: dict[str, tuple] = {n: () for n in grid}
    for i in range(max((len(p.before) for p in grid.values()), default=0) + 1):
        here = {
            n: p.before[i].measure if i < len(p.before) else p.fold.measure
            for n, p in grid.items()
            if i <= len(p.before)
        }

        def observe(measure, some, summary, turn, i=i):
            for n, b, m in walk(some):
                args = (b, m, leaf_key(key, n), step, _at(extra, n), found[n], zero)
                if _on_host(measure, m, summary):
                    x = row_leaf(grid[n].specs, i, *args)
                    yield n, measure.host(np.asarray(x), summary_of(summary, n), turn)
                else:
                    s = summary_of(summary, n)
                    yield n, observe_leaf(grid[n].specs, i, s, turn, *args)

        for n, summary in _run_measures(here, observe).items():
            found[n] = (*found[n], summary)
    return found


def measure_cells(grid, base, cells, key, step) -> dict[str, tuple]:
    """Per leaf, what the closing measure and those of the transforms after the merge found."""
    found: dict[str, tuple] = {n: () for n in grid}
    for i in range(max((len(p.after) for p in grid.values()), default=0) + 1):
        here = {
            n: p.fold.closing if i == 0 else p.after[i - 1].measure
            for n, p in grid.items()
            if i <= len(p.after)
        }

        def observe(measure, some, summary, turn, i=i):
            for n in some:
                args = (cells[n], base[n], leaf_key(key, n), step, found[n])
                s = summary_of(summary, n)
                if i > 0 and _on_host(measure, base[n], summary):
                    x = result_leaf(grid[n].specs, i - 1, *args)
                    yield n, measure.host(np.asarray(x), s, turn)
                else:
                    yield n, observe_cell(grid[n].specs, i, s, turn, *args)

        for n, summary in _run_measures(here, observe).items():
            found[n] = (*found[n], summary)
    return found


class _PerLeaf(dict):
    """Summaries of a measure with ``scope="leaf"``, by name."""


def summary_of(summary: Any, name: str) -> Any:
    return summary[name] if isinstance(summary, _PerLeaf) else summary


def _run_measures(here: dict[str, Measure | None], observe) -> dict[str, Any]:
    groups: dict[int, tuple[Measure, list[str]]] = {}
    for n, m in here.items():
        if m is not None:
            groups.setdefault(id(m), (m, []))[1].append(n)
    found: dict[str, Any] = dict.fromkeys(here)
    for m, some in groups.values():
        if m.scope == "leaf":
            summary = _PerLeaf({n: m.init() for n in some})
            for turn in range(m.passes):
                parts = dict(observe(m, some, summary, turn))
                summary = _PerLeaf({n: m.refine(summary[n], parts[n], turn) for n in some})
        else:
            summary = m.init()
            for turn in range(m.passes):
                total = None
                for _, part in observe(m, some, summary, turn):
                    total = part if total is None else jax.tree.map(_add, total, part)
                total = jax.tree.map(_wide, total) if len(some) == 1 else total
                summary = m.refine(summary, total, turn)
        found |= {n: summary_of(summary, n) for n in some}
    return found


def _wide(x: Any) -> Any:
    """Counts of concrete values are kept in int64 on the host: models have over 2^31 entries."""
    if concrete(x) and jnp.issubdtype(x.dtype, jnp.integer):
        return np.asarray(x, np.int64)
    return x


def _add(a: Any, b: Any) -> Any:
    return _wide(a) + _wide(b)


def _on_host(measure: Measure, leaf: Any, summary: Any) -> bool:
    if measure.host is None or not concrete(leaf, summary):
        return False
    return not isinstance(leaf, jax.Array) or all(d.platform == "cpu" for d in leaf.devices())


# ------------------------------------------------------------ checks and small helpers


def grid_of(method: Merge, base: Leaves) -> dict[str, Pipeline]:
    """One pipeline for each leaf that is merged (integer leaves are not)."""
    merged_names = [n for n in base if names.is_float(base[n])]
    codes: dict[int, str] = {}
    for n in merged_names:
        other = codes.setdefault(zlib.crc32(n.encode()), n)
        if other != n:
            raise ValueError(f"Leaves {other!r} and {n!r} share a random key; rename one of them.")
    return resolve(method, {n: base[n] for n in merged_names})


def check_method(method: Merge, key: Any) -> None:
    """Raise unless `method` is a `Merge` and has the key that it needs."""
    if isinstance(method, Transform):
        raise TypeError(
            f"{method} is a Transform of one task vector, not a Merge. Put it into a chain with "
            f"one, for example jm.chain({method}, jm.add())."
        )
    if not isinstance(method, Merge):
        raise TypeError(f"Expected a Merge such as jm.magmax(0.5), got {method!r}.")
    if stochastic(method) and key is None:
        raise ValueError(f"{method} draws random numbers: pass key=jax.random.key(seed).")


def _check_count(method: Merge, count: int, least: bool = True) -> None:
    low, high = method.models
    if least and count < low:
        raise ValueError(
            f"{method} needs at least {low} model{'s' * (low > 1)}, got {count or 'none'}."
        )
    if high is not None and count > high:
        raise ValueError(f"{method} takes at most {high} models, got {count}.")


def _flat_extra(method: Merge, extra: Mapping[str, Any]) -> dict[str, Leaves]:
    missing = [n for n in method.needs if n not in extra]
    if missing:
        raise ValueError(
            f"{method} needs side information {missing} about every model: "
            f"jm.update(..., {missing[0]}=tree) or "
            f"jm.merge(..., extras=[{{{missing[0]!r}: tree}}, ...])."
        )
    return {k: names.flatten(v)[0] if v is not None else {} for k, v in extra.items()}


def _at(extra: Mapping[str, Leaves], name: str) -> dict[str, Any]:
    return {k: v[name] for k, v in extra.items() if name in v}


@jax.jit
def _count_nonfinite(leaves):
    return [jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in leaves]


def refuse_nonfinite(grid: Mapping[str, Pipeline], base: Leaves, models: Sequence[Leaves]) -> None:
    """Raise one ValueError that names every leaf with NaN or Inf (concrete values only)."""
    wrong = []
    for n in grid:
        leaves = [base[n], *(m[n] for m in models)]
        if not concrete(leaves):
            return
        for t, count in enumerate(_count_nonfinite(leaves)):
            if count:
                who = "the base" if t == 0 else f"model {t - 1}"
                wrong.append(f"{who}, leaf {n!r}: {int(count)} of {leaves[t].size} entries")
    if wrong:
        raise ValueError(
            "NaN or Inf in\n  " + "\n  ".join(wrong[:40]) + "\nMend the checkpoint, or pass "
            'nonfinite="zero" to count such entries as no change.'
        )


def _like(base: Leaves, out: Mapping[str, Array]) -> dict[str, Array]:
    """Integer leaves from the base, the rest merged; numpy where the base is numpy."""
    return {
        n: leaf if n not in out
        else np.asarray(out[n]) if isinstance(leaf, np.ndarray) and concrete(out[n])
        else out[n]
        for n, leaf in base.items()
    }  # fmt: skip
