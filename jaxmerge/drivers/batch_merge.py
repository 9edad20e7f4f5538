"""Merging in memory, all models at once: the fold run to its end.

    params = merge(method, base, models, key=key)

One compiled pass over all models for each shape of a leaf; `jaxmerge.drivers.memory` folds them one
after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jaxmerge.core import names
from jaxmerge.core.finite import refuse_nonfinite, refuse_overflow
from jaxmerge.core.types import Array, Cell, Merge, Tree
from jaxmerge.core.validation import (
    check_base,
    check_count,
    check_method,
    check_nonfinite,
    flat_extra,
    grid_of,
)
from jaxmerge.drivers.explicit_axes import automatically, implicit, traced_explicit
from jaxmerge.drivers.leaf import (
    LeafInputs,
    finish_leaf,
    fold_leaf,
    merge_leaf,
    start_leaf,
    update_donated,
    update_leaf,
)
from jaxmerge.drivers.measuring import beside_on_host, measure_cells, measure_row, side
from jaxmerge.drivers.memory import Nonfinite, absorb, like_base
from jaxmerge.numerics.blas_threads import leaf_by_leaf, shared_out


def merge(
    method: Merge,
    base: Tree | None,
    models: Iterable[Tree] | Mapping[str, Tree],
    *,
    key: jax.Array | None = None,
    extras: Sequence[Mapping[str, Tree]] | None = None,
    nonfinite: Nonfinite = "raise",
) -> Tree:
    """Merge models in memory.

    Args:
        method: any registered method, or a chain of stages.
        base: theta_0, a pytree; None stands for zeros, so that task vectors are the weights.
        models: pytrees with the leaves of the base, as a list or a mapping of names to models, or
            one pytree of leaves [T, *leaf]; floating dtypes may differ from the base's, and integer
            leaves come from the base.
        key: PRNG key, needed by stochastic methods.  Random masks depend on the leaf's name and
            the model's position, not on the order of leaves or the devices.
        extras: per model, side information such as ``{"fisher": tree}``.
        nonfinite: "raise" refuses NaN and Inf by name, "zero" counts them as no change.

    Returns:
        The merged model, in the structure and dtypes of the base; numpy leaves stay numpy.

    Raises:
        ValueError: leaves that do not fit (all named), too few or too many models, NaN or Inf,
            no key where one is needed, side information missing; a merge that is beyond float16,
            where the base is in it.

    Example:
        >>> import jaxmerge as jm
        >>> base = {"w": np.zeros(3, np.float32)}
        >>> models = [{"w": np.float32([1, -2, 0])}, {"w": np.float32([-3, 1, 0])}]
        >>> jm.merge(jm.magmax(0.5), base, models)["w"]
        array([-1.5, -1. ,  0. ], dtype=float32)
    """
    check_method(method, key)
    with jax.profiler.TraceAnnotation(f"merge {method}"):
        run = lambda base, models, key, extras: _merge(
            method, base, models, key, extras, nonfinite
        )  # fmt: skip
        if traced_explicit(base, models):
            models = models if isinstance(models, Mapping) else list(models)
            first = next(iter(models.values() if isinstance(models, Mapping) else models), None)
            run = automatically(run, first if base is None else base)
        return run(base, models, key, extras)


def _merge(method: Merge, base: Any, models: Any, key: Any, extras: Any, nonfinite: str) -> Any:
    zero = check_nonfinite(nonfinite)
    check_base(base, models)
    if base is not None and names.is_stacked(models, flat := names.flatten(base)[0]):
        models = names.rows_of(models, flat)
    if not isinstance(models, Iterable):
        kind = "None" if models is None else f"a {type(models).__name__}"
        raise ValueError(f"models must be a list of models, got {kind}: write [model].")
    models = list(models.values()) if isinstance(models, Mapping) else list(models)
    check_count(method, len(models), whole=True)
    if not hasattr(base, "shape") and models and all(hasattr(m, "shape") for m in models):
        raise ValueError("models must be a list of models, got the leaves of one: write [model].")
    like, rebuild = names.flatten(models[0] if base is None else base)
    flat = names.Zeros(like) if base is None else implicit(like)
    rows = [implicit(names.flatten(m)[0]) for m in models]
    names.check_same(like, *rows)
    if extras is not None and len(extras) != len(rows):
        raise ValueError(f"extras has {len(extras)} entries for {len(rows)} models; one each.")
    grid = grid_of(method, like)
    sides = [
        flat_extra(method, like, e, f"model {t}") for t, e in enumerate(extras or [{}] * len(rows))
    ]
    if not zero:
        refuse_nonfinite(grid, flat, rows)
    with shared_out(sum(p.decomposes for p in grid.values())) as there:
        out = there(_folded(grid, flat, rows, sides, key, zero))
    merged = like_base(like, out)
    refuse_overflow(grid, flat, merged)
    return rebuild(merged)


def _folded(grid, flat, rows, sides, key, zero) -> dict[str, Array]:
    """Every merged leaf."""
    count = np.int32(len(rows))

    def finish(cells: dict[str, Cell]) -> dict[str, Array]:
        closing = measure_cells(grid, flat, cells, key, count)
        inputs = lambda n, p: LeafInputs(
            flat[n], key=p.key(key, n), step=count, measured=closing[n]
        )
        ended = lambda n, p: finish_leaf(p.specs, cells.pop(n), inputs(n, p))
        return leaf_by_leaf(lambda n: ended(n, grid[n]), grid, lambda n: (cells[n], flat[n]))

    walk = list(zip(rows, map(np.int32, range(count)), sides, strict=True))
    if any(p.fold.opening for p in grid.values()):  # every row must meet the cells of all leaves
        cells = {n: start_leaf(p.specs, flat[n]) for n, p in grid.items()}
        given = ([p.specs for p in grid.values()], cells, [r[n] for r in rows for n in grid])
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(given))  # no memory to reuse
        for row, t, e in walk:
            fold = update_leaf if traced else update_donated
            cells = absorb(grid, flat, cells, row, key, t, e, zero, fold)
        return finish(cells)
    rows_measured = [measure_row(grid, flat, row, key, t, e, zero) for row, t, e in walk]

    def folded(n: str, run: Any) -> Any:
        inputs = LeafInputs(
            flat[n],
            tuple(r[n] for r in rows),
            grid[n].key(key, n),
            measured=tuple(f[n] for f in rows_measured),
            extras=tuple(side(e, n) for e in sides),
        )
        return run(grid[n].specs, beside_on_host(grid[n], inputs, zero), zero)

    read = lambda n: (flat[n], *(r[n] for r in rows))
    if any(m is not None for p in grid.values() for m in p.measures[len(p.before) + 1 :]):
        return finish(leaf_by_leaf(lambda n: folded(n, fold_leaf), grid, read))
    return leaf_by_leaf(lambda n: folded(n, merge_leaf), grid, read)
