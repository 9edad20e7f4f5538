"""Rows of many runs as results: one for each experiment, scenario and group of settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmerge.evaluation import metrics
from jaxmerge.evaluation.definitions import NAMES as METRICS
from jaxmerge.studies.cells import Row
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.results import Entry, Results, SeedRun, Sweep, Task, summarize


def gather(rows: Iterable[Row]) -> dict[str, Results]:
    """Rows of many runs as results: one for each experiment, scenario and group of settings.

    Cells with the same key count once, the last made.  Names say in which settings results of one
    experiment differ: "toy, lr 0.001".  Seeds and orders are the runs over which means are taken.
    """
    latest = {row["key"]: row for row in sorted(rows, key=lambda r: r["made"])}
    latest = {row["key"]: row for row in _apart(list(latest.values()))}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in latest.values():
        groups.setdefault((row["experiment"], row["scenario"], _shared(row)), []).append(row)
    differ = _differing([k for k in groups])
    results_by_name: dict[str, Results] = {}
    for group, members in groups.items():
        results = _results(members)
        name = ", ".join([group[0], *differ[group]])
        results.experiment = name
        results_by_name[name] = results
    return results_by_name


def _apart(rows: Sequence[Row]) -> list[Row]:
    """Rows whose stream was run under several settings of its own, the stream named by them.

    "L2" with two strengths becomes "L2, methods.0.strength 0.1" and "... 1".
    """
    own: dict[tuple[str, str, str, str], dict[str, dict[str, Any]]] = {}
    place = lambda row: (row["experiment"], row["scenario"], _shared(row), row["stream"])
    mine = lambda row: flat(json.loads(row["settings"]).get("stream", {}))
    for row in rows:
        settings = mine(row)
        own.setdefault(place(row), {})[json.dumps(settings, sort_keys=True)] = settings
    result = []
    for row in rows:
        every = list(own[place(row)].values())
        settings = mine(row)
        words = [
            f"{k} {v}" for k, v in settings.items() if any(other.get(k) != v for other in every)
        ]
        name = ", ".join([row["stream"], *words])
        result.append({**row, "stream": name} if words else row)
    return result


def flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted names.

    >>> flat({"a": {"b": 1}, "c": [2, {"d": None}]})
    {'a.b': 1, 'c.0': 2, 'c.1.d': None}
    """
    if isinstance(settings, Mapping | list):
        pairs = settings.items() if isinstance(settings, Mapping) else enumerate(settings)
        return {
            k: v
            for key, inner in pairs
            for k, v in flat(inner, f"{name}.{key}" if name else str(key)).items()
        }
    return {name: settings}


def _shared(row: Row) -> str:
    """The settings that all streams of a run have in common."""
    settings = json.loads(row["settings"])
    settings.pop("stream", None)
    return json.dumps(settings, sort_keys=True)


def _differing(groups: Sequence[tuple[str, str, str]]) -> dict[tuple[str, str, str], list[str]]:
    """For each group the settings, as words, in which it differs from others of its experiment."""
    differences = {}
    for name, scenario, shared in groups:
        others = [(s, json.loads(x)) for n, s, x in groups if n == name]
        mine = json.loads(shared)
        words = [
            f"{k} {v if isinstance(v, str | int | float) else json.dumps(v)}"
            for k, v in mine.items()
            if any(other.get(k) != v for _, other in others)
        ]
        if not words and any(s != scenario for s, _ in others):
            words = [scenario]
        differences[name, scenario, shared] = words
    return differences


def _results(rows: Sequence[Row]) -> Results:
    runs: dict[tuple[int, int], SeedRun] = {}
    for row in rows:
        at = (row["seed"], -1 if row["order_seed"] is None else row["order_seed"])
        tasks = [Task(**t) for t in row["tasks"]]
        run = runs.setdefault(at, SeedRun(row["seed"], row["order"], tasks, [], [], {}))
        matrix = np.array(row["matrix"], float)
        factors: list[float | None] | None = None
        if row["factor"] is not None:
            factors = [*[None] * (len(matrix) - 1), row["factor"]]
        run.entries.append(
            Entry(
                row["label"],
                row["stream"],
                row["method"],
                row["matrix"],
                row["matrix_aware"],
                to_plain(metrics.over_time(matrix)),
                {m: row.get(m) for m in METRICS},
                Sweep(**row["sweep"]) if row["sweep"] else None,
                factors,
                row["fixed"],
            )
        )
        if row["seconds"] is not None:
            run.streams.setdefault(row["stream"], {})["training"] = row["seconds"]
    seeds = [runs[k] for k in sorted(runs)]
    summary = summarize(seeds)
    ends = {"none": 0, "joint": 2}  # zero-shot first, joint fine-tuning last
    summary.sort(key=lambda s: ends.get(s.finetunes, 1))
    first = rows[0]
    recipe = json.loads(first["settings"])
    classes = sorted({c for run in seeds for t in run.tasks for c in t.classes})
    seconds = [s["training"] for run in seeds for s in run.streams.values()]
    return Results(
        experiment=first["experiment"],
        scenario=first["scenario"],
        classes=classes,
        recipe={k: v for k, v in recipe.items() if k != "stream"},
        seeds=seeds,
        summary=summary,
        versions={"jaxmerge": ", ".join(sorted({r["version"] for r in rows}))},
        machine={"device": ", ".join(sorted({r["device"] for r in rows}))},
        seconds={"training": sum(seconds), "total": sum(seconds)},
    )
