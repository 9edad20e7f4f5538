"""What a merge will cost, from headers alone: `jaxmerge merge RECIPE --check`."""

from __future__ import annotations

import json as jsonlib
from typing import Any

import jax

from jaxmerge.drivers.files.chunks import WORKERS
from jaxmerge.drivers.files.job import Job, mismatches, tensors_of
from jaxmerge.drivers.files.measuring import PIECE_ENTRIES, own_need
from jaxmerge.drivers.files.measuring_cuts import cuts_cells, cuts_row
from jaxmerge.drivers.files.memory_budget import (
    ROOM,
    WALK,
    facts_like,
    input_bytes,
    needs,
    row_bytes,
)
from jaxmerge.drivers.files.strategy import PROGRAM, Strategy, row_programs
from jaxmerge.io.architectures import architecture
from jaxmerge.io.architectures.description import in_words
from jaxmerge.io.free_memory import memory_free
from jaxmerge.io.header import nbytes
from jaxmerge.recipes.plan import Plan

PROCESS = 200_000_000  # resident bytes of Python and XLA, their code too, with nothing to merge
MULTIPLE = 12  # of a leaf's inputs, base and models, is more than any method takes


def cost(plan: Plan, name: str | None) -> dict[str, Any]:
    """What a merge will read, write and hold, from headers only."""
    tensors = tensors_of(plan.jobs, plan.out_dtype)
    wrong = [line for job in plan.jobs for line in mismatches(job)]
    leaves = [(job, n) for job in plan.jobs for n in job.like]
    merged = sum(n in job.grid for job, n in leaves)
    once = sum(input_bytes(job, n) for job, n in leaves if not wrong)
    passes = max((_passes(job) for job in plan.jobs), default=1)
    return {
        "name": name,
        "method": plan.method,
        "leaves": len(tensors),
        "merged": merged,
        "copied": len(tensors) - merged,
        "parameters": sum(job.like[n].size for job, n in leaves),
        "read": once * passes,
        "passes": passes,
        "write": sum(nbytes(*t) for t in tensors.values()),
        "memory": PROCESS + (0 if wrong else _memory(plan)),
        "architecture": in_words(architecture(plan.source)) if plan.source else [],
        "mismatches": wrong,
    }


def too_large(plan: Plan) -> list[str]:
    """A line for the user where a merge takes more memory than there is; looked at only where the
    inputs of the largest leaf are so many that it might."""
    free = memory_free()
    if free is None or any(map(mismatches, plan.jobs)):  # what does not fit is refused by the merge
        return []
    largest = max((input_bytes(job, n) for job in plan.jobs for n in job.grid), default=0)
    if MULTIPLE * largest < free:
        return []
    need = PROCESS + _memory(plan)
    if need < free:
        return []
    return [
        f"this merge takes about {names_of(need)} of memory at once, {names_of(free)} are free: "
        "the system may end it, and --resume goes on with it on a larger machine. Methods that "
        "need a whole matrix at once take multiples of the largest leaf (--check says how much)."
    ]


def _passes(job: Job) -> int:
    """Times the models are read, as a rule."""
    rows = opening = closing = 0
    for p in job.grid.values():
        measures = [*(t.measure for t in p.before), p.fold.measure]
        rows = max(rows, sum(2 if m.host else 1 for m in measures if m and m.scope == "row"))
        if p.fold.opening:  # before every model those before it, as a rule twice
            opening = len(job.models) - 1
        closing = max(closing, int(p.fold.closing is not None or any(t.measure for t in p.after)))
    return 1 + rows + opening + closing


def _memory(plan: Plan) -> int:
    """Bytes of the leaves in work at once, at most: the largest leaf of every kind is looked at."""
    strategy = Strategy(False, plan.out_dtype)
    most = alone = 0
    for job in plan.jobs:
        kinds: dict[Any, str] = {}
        for n, p in sorted(job.grid.items(), key=lambda item: input_bytes(job, item[0])):
            kinds[jax.tree.structure(p.specs), job.like[n].ndim] = n
        leaf_bytes = [_leaf(strategy, job, n) for n in kinds.values()]
        most = max([most, *(shared for shared, _ in leaf_bytes)])
        alone = max([alone, *(one for _, one in leaf_bytes)])
    return max(min(WORKERS * most, ROOM), most, alone)


def _leaf(strategy: Strategy, job: Job, n: str) -> tuple[int, int]:
    """Bytes that one leaf takes: while others are in work beside it, and when it is folded for
    facts about all cells, which is done one leaf at a time."""
    p = job.grid[n]
    measured, closing = facts_like(job, n, strategy.zero)
    cut = strategy.cut(job, n, measured, closing)
    need = strategy.of(job, n, cut, measured, closing)[1]
    rows = [m for m in (*(t.measure for t in p.before), p.fold.measure) if m is not None]
    if rows and all(m.scope == "leaf" for m in rows):
        keep = input_bytes(job, n) <= ROOM // 2
        gather = own_need(job, n, keep)
        need = max(need + gather * keep, gather)
    elif rows:
        small = job.like[n].size > PIECE_ENTRIES and cuts_row(job, n)
        need = max(need, 2 * WALK if small else row_bytes(job, n))
    alone = [0]
    if p.fold.opening is not None:
        alone.append(_cells(strategy, job, n, p.fold.opening, measured, None))
    if closing is not None:
        alone.append(_cells(strategy, job, n, p.fold.closing, measured, closing))
    return need, max(alone)


def _cells(
    strategy: Strategy, job: Job, n: str, measure: Any, measured: tuple, closing: Any
) -> int:
    """Bytes that folding one leaf for facts about the cells takes."""
    row = cuts_cells(job, strategy, n, measure, measured) if job.like[n].size > PIECE_ENTRIES else 0
    if not row:
        return strategy.needs_of(job, n, measured, closing)[0]
    like = strategy.base_like(job, n)
    shape = (max(1, PIECE_ENTRIES // row), *like.shape[1:]) if row > 1 else (PIECE_ENTRIES,)
    like = like._replace(shape=shape)
    # the piece before is given back when the next one is read, and the allocator keeps as much
    # each pass is a program of its own; on the host there are none, or where values are computed a
    # look at a sample and one at all, of a piece and of the last one
    programs = measure.passes if not measure.host else 4 * measure.by_entry
    more = 2 * PROGRAM * programs + (2 * row_programs(job) if row > 1 else 0)
    return 3 * needs(job, n, like, measured, closing, strategy.zero)[0] + more


def show(reports: list[dict[str, Any]], json: bool) -> None:
    if json:
        print(jsonlib.dumps(reports if len(reports) > 1 else reports[0], indent=2))
        return
    for r in reports:
        title = f"{r['name']}: " if r["name"] else ""
        print(f"{title}{r['method']}")
        print(f"  leaves      {r['leaves']} ({r['merged']} merged, {r['copied']} copied)")
        print(f"  parameters  {r['parameters']:,}")
        print(f"  read        {names_of(r['read'])} in {r['passes']} passes")
        print(f"  write       {names_of(r['write'])}")
        print(f"  memory      about {names_of(r['memory'])} at most")
        for line in r["architecture"]:
            print(f"  made of     {line}")
        for line in r["mismatches"]:
            print(f"  mismatch    {line}")
        if "note" in r:
            print(f"  {r['note']}")


def names_of(count: float) -> str:
    """Bytes for reading.

    >>> names_of(2_500_000_000)
    '2.50 GB'
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} bytes"
