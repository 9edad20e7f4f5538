"""What a merge will cost, from headers alone: `jaxmerge merge RECIPE --check`."""

from __future__ import annotations

import json as jsonlib
from typing import Any

from jaxmerge.drivers.files.chunks import WORKERS
from jaxmerge.drivers.files.job import Job, mismatches, tensors_of
from jaxmerge.drivers.files.worker import ROOM, Run, input_bytes
from jaxmerge.io.architectures import architecture
from jaxmerge.io.header import nbytes
from jaxmerge.recipes.plan import Plan

PROCESS = 150_000_000  # bytes of anonymous memory that Python and XLA take with nothing to merge


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
        "architecture": architecture(plan.source).describe() if plan.source else [],
        "mismatches": wrong,
    }


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
    """Bytes of the leaves in work at once, roughly and at most; measured facts are not known."""
    run, largest = Run(plan.jobs, None, None, False, (), None, plan.out_dtype), 0
    for job in plan.jobs:
        for n, p in job.grid.items():
            own = [m for m in p.measures if m is not None and m.scope == "leaf"]
            if any(p.measures):
                coupled = 0 if p.fold.elementwise else None
            else:
                nothing = ((None,) * (len(p.before) + 1),) * len(job.models)
                coupled = run.coupled(job, n, nothing, None)
            _, need = run.way(job, n, coupled)
            whole = input_bytes(job, n)
            if own and whole <= ROOM // 2:  # held from measuring to merging
                need += whole
            elif own:  # measured before it is merged: the base and one model, and what is counted
                need = max(need, 2 * whole // (1 + len(job.models)) + job.like[n].size)
            largest = max(largest, need)
    return max(min(WORKERS * largest, ROOM), largest)


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
