"""Facts about whole rows: run the `Measure`s of all stages, leaf by leaf, adding up.

A stage may need a number that couples leaves (a norm, a k-th magnitude).  `measure_row` gathers the
facts about one model, `measure_opening` those about the cells that it meets, `measure_cells` those
about the folded cells; all give, for every leaf, the tuple of summaries that its stages receive as
``ctx.measured``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.types import Measure, concrete
from jaxmerge.drivers import joined_rows
from jaxmerge.drivers.leaf import (
    LeafInputs,
    observe_cell,
    observe_leaf,
    observe_opening,
    observe_part,
    rest_of_leaf,
    rest_of_part,
    result_leaf,
    row_leaf,
)
from jaxmerge.numerics.host_rows import Gathered, Row, Sliced


def side(extra: Any, name: str) -> dict[str, Any]:
    """The side information of one model about one leaf."""
    return {k: v[name] for k, v in extra.items() if name in v}


def host_of(pipeline: Any, zero: bool) -> Callable[[Any, Any], Mapping[str, Any] | None] | None:
    """What numpy may compute about every row of a leaf: of the plain task vector, so for the first
    transform, and of one alone."""
    asking = [i for i, t in enumerate(pipeline.before) if t.host is not None]
    return pipeline.before[0].host if asking == [0] and not zero else None


def beside_on_host(pipeline: Any, inputs: LeafInputs, zero: bool) -> LeafInputs:
    """The inputs with what the first transform has numpy compute about every row of the leaf."""
    host, arrays = host_of(pipeline, zero), (inputs.base, *inputs.models)
    if host is None or not concrete(arrays) or not all(map(_here, arrays)):
        return inputs
    base, *models = map(np.asarray, arrays)
    known = [host(m, base) or {} for m in models]
    extras = inputs.extras or ({},) * len(models)
    return inputs._replace(extras=tuple({**e, **k} for e, k in zip(extras, known, strict=True)))


def measure_row(grid, base, model, key, step, extra, zero=False, walk=None) -> dict[str, tuple]:
    """Per leaf, what the measures of the stages before the merge (and of the fold) found.

    Args:
        walk: iterates over leaf names with their leaves, ``walk(names) -> (name, base, model)``;
            the file driver gives one that reads ahead.
    """
    given, walk = walk, walk or (lambda group: ((n, base[n], model[n]) for n in group))
    summaries: dict[str, tuple] = {n: () for n in grid}
    ranks = any(m is not None and m.rest for p in grid.values() for m in p.measures)
    there = given is None and ranks and joined_rows.lies_on_accelerator(list(grid), base, model)
    for i in range(max((len(p.before) for p in grid.values()), default=0) + 1):
        here = {
            n: p.before[i].measure if i < len(p.before) else p.fold.measure
            for n, p in grid.items()
            if i <= len(p.before)
        }

        long: dict[int, list] = {}  # measure -> the entries of its leaves, joined

        def inputs_of(n, b, m):
            extras = (side(extra, n),)
            return LeafInputs(b, (m,), grid[n].key(key, n), step, (summaries[n],), extras)

        def observe(measure, group, summary, turn, i=i, inputs_of=inputs_of, long=long):
            counts = there and measure.rest is not None
            if counts and turn == 0 and measure.scope == "row":
                inputs = {n: inputs_of(n, base[n], model[n]) for n in group}
                long[id(measure)] = joined_rows.joined(grid, inputs, i, zero)
            if id(measure) in long:
                for n, x in long[id(measure)]:
                    yield n, observe_part(grid[n].specs, i, summary, turn, x)
                return
            if counts:
                parts = {}
                for n in group:
                    inputs, s = inputs_of(n, base[n], model[n]), summary_of(summary, n)
                    parts[n] = observe_leaf(grid[n].specs, i, s, turn, inputs, zero)
                yield from jax.device_get(parts).items()  # started one after another, awaited once
                return
            short = Gathered()
            for n, b, m in walk(group):
                inputs = inputs_of(n, b, m)
                s, before = summary_of(summary, n), grid[n].specs[0][:i]
                if _on_host(measure, m, (s, before, inputs)):
                    yield from _host_parts(
                        measure, n, _host_row(before, inputs, zero), s, turn, short
                    )
                else:
                    yield n, observe_leaf(grid[n].specs, i, s, turn, _read(inputs), zero)
            yield from ((group[0], measure.host(r, summary, turn)) for r in short.rest())

        def rest(measure, group, summary, i=i, inputs_of=inputs_of, long=long):
            if not there or measure.rest is None:
                return None
            if measure.scope == "leaf":
                run = lambda n: rest_of_leaf(
                    grid[n].specs, i, summary[n], inputs_of(n, base[n], model[n]), zero
                )
                return _PerLeaf({n: run(n) for n in group})
            parts = long.get(id(measure), ())
            if len(parts) != 1:
                return None
            ((n, x),) = parts
            return rest_of_part(grid[n].specs, i, summary, x)

        for n, summary in _run_measures(here, observe, rest).items():
            summaries[n] = (*summaries[n], summary)
    return summaries


def measure_opening(grid, cells, summaries: dict[str, tuple]) -> dict[str, tuple]:
    """What `measure_row` found of a row, with the facts about the cells that it is to meet."""
    here = {n: p.fold.opening for n, p in grid.items()}

    def observe(measure, group, summary, turn):
        short = Gathered()
        for n in group:
            cell, s = cells[n], summary_of(summary, n)
            if _on_host(measure, cell, s):
                yield from _host_parts(measure, n, Row(cell), s, turn, short)
            else:
                yield n, observe_opening(grid[n].specs, s, turn, cell)
        yield from ((group[0], measure.host(r, summary, turn)) for r in short.rest())

    opened = _run_measures(here, observe)
    add = lambda n: (*summaries[n][:-1], (summaries[n][-1], opened[n]))
    return {n: summaries[n] if m is None else add(n) for n, m in here.items()}


def measure_cells(grid, base, cells, key, step) -> dict[str, tuple]:
    """Per leaf, what the closing measure and those of the transforms after the merge found."""
    summaries: dict[str, tuple] = {n: () for n in grid}
    for i in range(max((len(p.after) for p in grid.values()), default=0) + 1):
        here = {
            n: p.fold.closing if i == 0 else p.after[i - 1].measure
            for n, p in grid.items()
            if i <= len(p.after)
        }

        def observe(measure, group, summary, turn, i=i):
            for n in group:
                args = cells[n], LeafInputs(base[n], (), grid[n].key(key, n), step, summaries[n])
                s, (before, fold, after) = summary_of(summary, n), grid[n].specs
                upto = before, fold, after[: i - 1]
                if i == 0 and _on_host(measure, _first(cells[n]), (s, args)):
                    yield n, measure.host(cells[n], s, turn)
                elif i > 0 and _on_host(measure, base[n], (s, upto, args)):
                    with jax.ensure_compile_time_eval():
                        x = np.asarray(result_leaf(upto, *args))
                    yield n, measure.host(Row(x), s, turn)
                else:
                    yield n, observe_cell(grid[n].specs, i, s, turn, *args)

        for n, summary in _run_measures(here, observe).items():
            summaries[n] = (*summaries[n], summary)
    return summaries


def _first(cell: Any) -> Any:
    return next(iter(jax.tree.leaves(cell)), None)


class _PerLeaf(dict):
    """Summaries of a measure with ``scope="leaf"``, by name."""


def summary_of(summary: Any, name: str) -> Any:
    return summary[name] if isinstance(summary, _PerLeaf) else summary


def _run_measures(
    here: dict[str, Measure | None],
    observe: Callable[[Measure, list[str], Any, int], Iterator[tuple[str, Any]]],
    rest: Callable[[Measure, list[str], Any], Any] = lambda measure, group, summary: None,
) -> dict[str, Any]:
    """Leaf name -> the summary of its measure.

    Args:
        observe: what the leaves of a group contribute in a pass.
        rest: ``(measure, group, summary after the first pass) -> summary after the last``, or
            None where the passes must be made one by one.
    """
    groups: dict[int, tuple[Measure, list[str]]] = {}
    for n, m in sorted(here.items()):  # one order of adding up, whatever the order of leaves
        if m is not None:
            groups.setdefault(id(m), (m, []))[1].append(n)
    summaries: dict[str, Any] = dict.fromkeys(here)
    for m, group in groups.values():
        summary = _PerLeaf({n: m.init() for n in group}) if m.scope == "leaf" else m.init()
        for turn in range(m.passes):
            summary = _one_pass(m, group, summary, turn, observe)
            if _settled(m, summary):
                break
            if turn == 0 and (last := rest(m, group, summary)) is not None:
                summary = last
                break
        summaries |= {n: summary_of(summary, n) for n in group}
    return summaries


def _one_pass(m: Measure, group: list[str], summary: Any, turn: int, observe) -> Any:
    if m.scope == "leaf":
        parts = dict(observe(m, group, summary, turn))
        return _PerLeaf({n: m.refine(summary[n], parts[n], turn) for n in group})
    total = None
    for _, part in observe(m, group, summary, turn):
        total = part if total is None else _join(m, total, part, turn)
    return m.refine(summary, jax.tree.map(_wide, total), turn)


def _settled(m: Measure, summary: Any) -> bool:
    each = summary.values() if isinstance(summary, _PerLeaf) else [summary]
    return all(m.done(s) for s in each)


def _join(measure: Measure, total: Any, part: Any, turn: int) -> Any:
    return jax.tree.map(lambda a, b: measure.join(_wide(a), _wide(b), turn), total, part)


def _wide(x: Any) -> Any:
    """Counts of concrete values are kept in int64 on the host: models have over 2^31 entries."""
    if concrete(x) and jnp.issubdtype(x.dtype, jnp.integer):
        return np.asarray(x, np.int64)
    return x


def _host_parts(
    measure: Measure, n: str, row: Row, summary: Any, turn: int, short: Gathered
) -> Iterator[tuple[str, Any]]:
    """What a row on the host contributes, and short ones before it that are counted together with
    it; of counts alone, since sums of floats would round differently."""
    assert measure.host is not None
    rows = short.add(row) if measure.scope == "row" and measure.rest is not None else [row]
    yield from ((n, measure.host(r, summary, turn)) for r in rows)


def _host_row(before: tuple, inputs: LeafInputs, zero: bool) -> Row:
    """A row behind the transforms `before`, for a measure on the host."""
    if not before:
        return Row(inputs.models[0], inputs.base, zero)  # the difference, formed as it is read
    with jax.ensure_compile_time_eval():  # the caller may be inside jit
        return Row(row_leaf(before, _read(inputs), zero))


def _read(inputs: LeafInputs) -> LeafInputs:
    """The same; leaves that are read when sliced are read whole."""
    load = lambda x: x.load() if isinstance(x, Sliced) else x
    return inputs._replace(base=load(inputs.base), models=tuple(map(load, inputs.models)))


def _on_host(measure: Measure, leaf: Any, arguments: Any) -> bool:
    if measure.host is None or not concrete(leaf, arguments):
        return False
    return _here(leaf)


def _here(leaf: Any) -> bool:
    """Whether an array lies in this host's memory."""
    if not isinstance(leaf, jax.Array):
        return True
    here = leaf.is_fully_addressable  # else another host holds a part of it
    return here and all(d.platform == "cpu" for d in leaf.devices())
