"""Cells: every result of every run as one row, named by the settings that decide it.

A cell is one method on one stream in one seed: what `Entry` holds, with the settings that made it.

===========================  =======================================================================
column                       what
===========================  =======================================================================
key                          names the cell: all of the next columns that decide it
experiment, scenario         names
settings                     JSON of the settings that decide the training, without seed and order
stream, label, merge         the stream; the row of the table; the row without its fixed factor
method, factor               the merge as jaxmerge prints it, the factor in use at the end
fixed                        the factor, where each factor is a row of its own
seed, order_seed, order      of shuffles; of the order, null for the seed; the tasks as they came
tasks                        names, classes and counts of examples
matrix, matrix_aware         R[t][i], see `jaxmerge.studies.results`
accuracy, aware, ...          those of `jaxmerge.evaluation.definitions`; null: not measured
seconds                      of training the whole stream
version, device, made        of jaxmerge, where, when (UTC)
===========================  =======================================================================

`jaxmerge.studies.result_store` writes rows to Parquet and reads them, `jaxmerge.studies.gather`
makes results of them.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from jaxmerge.continual.deploys import LAST
from jaxmerge.evaluation.definitions import NAMES as METRICS
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.results import Entry, Results

ELSEWHERE = ("seed", "seeds", "order", "merges", "streams", "baselines")  # in columns of their own

LATER = ("optimiser", "problem")  # newer than cells that are stored: named where they are set

Row = dict[str, Any]


def settings_of(recipe: Mapping[str, Any], stream: str) -> str:
    """The settings that decide how a stream learns, as JSON with sorted names."""
    plain = {k: v for k, v in recipe.items() if k not in ELSEWHERE}
    plain = {k: v for k, v in plain.items() if k not in LATER or v is not None}
    options = recipe.get("streams", {}).get(stream, {})
    plain["stream"] = {k: v for k, v in options.items() if k not in ("deploys", "vectors")}
    merge = read_by(options)
    if merge is not None:
        plain["stream"]["running"] = [merge, recipe.get("merges", {}).get(merge)]
    return json.dumps(to_plain(plain), sort_keys=True)


def read_by(options: Mapping[str, Any]) -> str | None:
    """The merge that the training of a stream starts from, or None."""
    if options.get("start") != "running":
        return None
    merges = [label for label in options.get("deploys", ()) if label != LAST.label]
    return options.get("running") or next(iter(merges), None)


def key(
    experiment: str, recipe: Mapping[str, Any], stream: str, merge: str, fixed: float | None
) -> str:
    """The name of a cell, the same before it is run and after."""
    options = dict(recipe.get("merges", {}).get(merge, {}))
    for name in ("always", "each"):
        options.pop(name, None)
    if fixed is not None:
        options["factor"] = fixed
    parts = [experiment, settings_of(recipe, stream), stream, merge, options]
    parts += [recipe.get("seed"), recipe.get("order")]
    return hashlib.sha256(json.dumps(to_plain(parts), sort_keys=True).encode()).hexdigest()[:16]


SWEPT = re.compile(r", (\w+) (-?[\d.]+(?:e[-+]?\d+)?)(?=, |$)")


def swept_of(merge: str) -> tuple[str, dict[str, float]]:
    """The name of a merge without the settings that a sweep made rows of, and those.

    >>> swept_of("ties, density 0.1"), swept_of("ties")
    (('ties', {'density': 0.1}), ('ties', {}))
    """
    return SWEPT.sub("", merge), {k: float(v) for k, v in SWEPT.findall(merge)}


def merge_of(entry: Entry) -> str:
    """The label without the factor that makes it a row of its own."""
    return entry.label.removesuffix("" if entry.fixed is None else f", factor {entry.fixed:g}")


def cells(results: Results) -> list[Row]:
    """Every entry of every seed as a row."""
    written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    device = f"{results.machine.get('device', '')} ({results.machine.get('backend', '')})"
    rows = []
    for run in results.seeds:
        recipe = {**results.recipe, "seed": run.seed}
        for e in run.entries:
            seconds = run.streams.get(e.finetunes, {}).get("training")
            rows.append(
                {
                    "key": key(results.experiment, recipe, e.finetunes, merge_of(e), e.fixed),
                    "experiment": results.experiment,
                    "scenario": results.scenario,
                    "settings": settings_of(recipe, e.finetunes),
                    "stream": e.finetunes,
                    "label": e.label,
                    "merge": merge_of(e),
                    "method": e.method,
                    "factor": e.factors[-1] if e.factors else None,
                    "fixed": e.fixed,
                    "seed": run.seed,
                    "order_seed": recipe.get("order"),
                    "order": run.order,
                    "tasks": to_plain(run.tasks),
                    "matrix": e.matrix,
                    "matrix_aware": e.aware,
                    "sweep": to_plain(e.sweep),
                    **{m: e.metrics.get(m) for m in METRICS},
                    "seconds": seconds,
                    "version": results.versions.get("jaxmerge", ""),
                    "device": device,
                    "made": written,
                }
            )
    return rows
