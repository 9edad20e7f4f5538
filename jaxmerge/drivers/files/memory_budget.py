"""What one leaf takes in memory, before it is read: the compiled programs say so.

The file driver shares out a budget among the leaves in work, and --check prints it.  Small leaves
are counted roughly.  For large ones the programs that will merge them are compiled for their
shapes and asked for their buffers; what couples leaves or entries (`measured`, `closing`) has the
form that it takes on a tiny leaf.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import numpy as np

from jaxmerge.core.keys import leaf_key
from jaxmerge.drivers.files.job import Job
from jaxmerge.drivers.leaf import (
    LeafInputs,
    finish_leaf,
    fold_leaf,
    merge_leaf,
    start_leaf,
    update_donated,
    update_leaf,
)
from jaxmerge.drivers.measuring import host_of, measure_cells, measure_opening, measure_row, side
from jaxmerge.io.safetensors import Like

# Bytes that leaves in work may take together.  A leaf that needs more alone is cut if it can be,
# sums over it added up by pieces.
ROOM = 640 << 20
PIECES = 6 << 20  # bytes of one set of pieces, inputs and output: they stay in the cache
PIECEWISE = 4 * PIECES  # bytes of a leaf that is merged in pieces, with what computing them takes
SLICES = 96 << 20  # bytes of the blocks in which facts about one leaf are gathered as it is read
WALK = 24 << 20  # bytes of a piece of a row, and its counts, while facts about rows are gathered
ROUGH = 64 << 20  # bytes of a leaf's inputs up to which its need is not looked up
TINY = 6  # entries an axis of the leaf on which the form of facts is found out


def input_bytes(job: Job, name: str) -> int:
    """Bytes that are read for one leaf: of the base and, if it is merged, of all models."""
    if name not in job.grid:
        return 0 if job.base is None else job.base.like[name].nbytes
    sides = [v for e in job.extras for v in e.values() if name in v]
    sources = [s for s in (job.base, *job.models) if s is not None]
    extra = sum(getattr(v, "like", v)[name].nbytes for v in sides)
    return sum(s.like[name].nbytes for s in sources) + extra


def row_bytes(job: Job, name: str) -> int:
    """Bytes that measuring a whole leaf of one row takes: the base, the model, their difference."""
    return 2 * input_bytes(job, name) // (1 + len(job.models)) + 2 * 4 * job.like[name].size


def needs(
    job: Job, name: str, base: Like, measured: tuple, closing: tuple | None, zero: bool = False
) -> tuple[int, int]:
    """Bytes that a whole leaf takes with all models at once, and with one model after another.

    Args:
        base: the leaf, or a piece of it, as the programs see the base's.
    """
    work, count = 3 * 4 * base.size, len(job.models)
    whole = input_bytes(job, name) * base.size // max(1, job.like[name].size)
    if whole <= ROUGH // 2:
        return whole + work * count, whole // 2 + 2 * work
    try:
        return _at_once(job, name, base, measured, closing, zero), _one_by_one(
            job, name, base, measured, closing, zero
        )
    except Unsaid:
        return whole + work * count, whole // 2 + 2 * work


def _shapes(
    job: Job, name: str, base: Like, zero: bool
) -> tuple[Any, list[Any], list[dict[str, Any]]]:
    piece = base.shape != job.like[name].shape
    struct = lambda x: jax.ShapeDtypeStruct(base.shape if piece else x.shape, x.dtype)
    sides = job.extras or ({},) * len(job.models)
    likes = lambda e: {k: struct(getattr(v, "like", v)[name]) for k, v in e.items() if name in v}
    models = [struct(m.like[name]) for m in job.models]
    host, tiny = host_of(job.grid[name], zero), (TINY,) * len(base.shape)
    known = lambda m: host(np.zeros(tiny, m.dtype), np.zeros(tiny, base.dtype)) if host else {}
    beside = lambda m: {
        k: jax.ShapeDtypeStruct(base.shape, v.dtype) for k, v in (known(m) or {}).items()
    }
    return struct(base), models, [likes(e) | beside(m) for e, m in zip(sides, models, strict=True)]


def _at_once(job, name, base, measured, closing, zero) -> int:
    like, models, sides = _shapes(job, name, base, zero)
    specs, key = job.grid[name].specs, leaf_key(job.key, name)
    program = merge_leaf if closing is None else fold_leaf
    inputs = LeafInputs(like, tuple(models), key, measured=measured, extras=tuple(sides))
    first = _bytes(program.lower(specs, inputs, zero))
    if closing is None:
        return first
    cell = jax.eval_shape(functools.partial(fold_leaf, zero=zero), specs, inputs)
    behind = inputs.behind(np.int32(len(models)), closing)
    last = _bytes(finish_leaf.lower(specs, cell, behind))
    return max(first, last + sum(_size(x) for x in models))


def _one_by_one(job, name, base, measured, closing, zero) -> int:
    like, models, sides = _shapes(job, name, base, zero)
    pipeline, key = job.grid[name], leaf_key(job.key, name)
    cell, most = jax.eval_shape(start_leaf, pipeline.specs, like), 0
    for t, model in enumerate(models):
        inputs = LeafInputs(like, (model,), key, np.int32(t), (measured[t],), (sides[t],))
        if t in (0, len(models) - 1):
            most = max(most, _bytes(update_donated.lower(pipeline.specs, cell, inputs, zero)))
        cell = jax.eval_shape(
            functools.partial(update_leaf, zero=zero), pipeline.specs, cell, inputs
        )
    none = (None,) * (1 + len(pipeline.after))
    behind = LeafInputs(like, key=key, step=np.int32(len(models)), measured=closing or none)
    last = finish_leaf.lower(pipeline.specs, cell, behind)
    return max(most, _bytes(last))


class Unsaid(Exception):
    """The backend does not say what a program takes."""


CALL = re.compile(r"@lapack_[sdcz](syevd|heevd|gesdd)_ffi.* : \(tensor<([\dx]+)x(complex<)?f(\d+)")
WORKSPACE = {"syevd": 2, "heevd": 3, "gesdd": 4}  # matrices [k, k] that LAPACK takes for itself


def _workspace(lowered: Any) -> int:
    """Bytes that the largest decomposition of a program allocates itself, unknown to XLA."""
    most = 0
    for kind, dims, pairs, bits in CALL.findall(lowered.as_text()):
        side = min(int(d) for d in dims.split("x")[-2:])
        most = max(most, WORKSPACE[kind] * side**2 * int(bits) // 8 * (1 + bool(pairs)))
    return most


def _bytes(lowered: Any) -> int:
    """Bytes of a program with its arguments, results and temporaries."""
    memory = lowered.compile().memory_analysis()
    if memory is None:
        raise Unsaid
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
        + _workspace(lowered)
    )


def _size(x: Any) -> int:
    return int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize


def facts_like(job: Job, name: str, zero: bool = False) -> tuple[tuple, tuple | None]:
    """`measured` and `closing` of a leaf in the form that they will have, from a tiny leaf."""
    p, like = job.grid[name], job.like[name]
    small = lambda x: np.ones(tuple(min(n, TINY) for n in x.shape), x.dtype)
    draw = np.random.default_rng(0)
    base = np.zeros(small(like).shape, like.dtype)
    models = [draw.standard_normal(base.shape).astype(m.like[name].dtype) for m in job.models]
    sides = [
        {k: {name: small(getattr(v, "like", v)[name])} for k, v in e.items() if name in v}
        for e in job.extras or ({},) * len(models)
    ]
    grid, key, flat = {name: p}, p.key(job.key, name), tuple(side(e, name) for e in sides)
    rows, cell = [], start_leaf(p.specs, base)
    for t, model in enumerate(models):
        row = measure_row(grid, {name: base}, {name: model}, job.key, np.int32(t), sides[t], zero)
        row = measure_opening(grid, {name: cell}, row)
        rows.append(row[name])
        inputs = LeafInputs(base, (model,), key, np.int32(t), (row[name],), flat[t : t + 1])
        cell = update_leaf(p.specs, cell, inputs, zero)
    if p.fold.closing is None and not any(t.measure for t in p.after):
        return tuple(rows), None
    count = np.int32(len(models))
    return tuple(rows), measure_cells(grid, {name: base}, {name: cell}, job.key, count)[name]
