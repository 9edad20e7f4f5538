"""Runs of text streams as one result: which settings a row was made under, and rows together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from jaxmerge.studies.results import Results, SeedRun, summarize

WAYS = ("sequential", "independent", "joint", "LwF", "EWC", "L2")
OLDER = "older"  # key of a recipe: (order, way) -> settings, where they are not those of now


def deciding(recipe: dict[str, Any], way: str) -> dict[str, Any]:
    """The settings that decide the figures of one way of learning: of its stream, of the merges
    that it deploys, and of training; settings that are not set count as absent."""
    beside = ("data", "seed", "seeds", "baselines", "version", "streams", "merges", OLDER)
    decides = {k: v for k, v in recipe.items() if k not in beside and v is not None}
    if way == "joint":
        return decides
    stream, merges = recipe["streams"].get(way, {}), recipe.get("merges", {})
    deployed = {label: merges[label] for label in stream.get("deploys", ()) if label in merges}
    return {**decides, "stream": stream, "merges": deployed}


def made_under(kept: Results | None) -> dict[tuple[int, str], dict[str, Any]]:
    """(order, way) -> the settings that what is kept of it was made under."""
    if kept is None:
        return {}
    older = kept.recipe.get(OLDER, {})
    have = [(s.seed, way) for s in kept.seeds for way in WAYS if _has(s, way)]
    return {key: older.get(_said(*key)) or deciding(kept.recipe, key[1]) for key in have}


def _said(order: int, way: str) -> str:
    return f"order {order}, {way}"


def together(kept: Results | None, finished: dict[int, dict[str, Results]]) -> Results | None:
    """The runs of a stream as one: a seed for every order, with the rows of all its ways.

    Args:
        kept: what was put together before; its rows stay, but for those that were made anew under
            other settings.
        finished: order -> way -> results.

    Returns:
        None where no order has its sequential stream yet.
    """
    orders = {s.seed: s for s in kept.seeds} if kept else {}
    every: list[Results] = []
    under, gone = made_under(kept), []
    for order, ways in finished.items():
        new = {
            way: results
            for way, results in ways.items()
            if under.get((order, way)) != deciding(results.recipe, way)
        }
        if order in orders or "sequential" in new:
            rest = []
            if order in orders:
                gone += [orders[order].streams.get(way, {}) for way in new]
                rest = [_without(orders[order], new)]
            orders[order] = _one_order([*rest, *(r.seeds[0] for r in new.values())])
            under |= {(order, way): deciding(r.recipe, way) for way, r in new.items()}
            every += new.values()
    if not orders:
        return None
    every = [*([kept] if kept else []), *every]
    gone = [{**spent, "total": sum(spent.values())} for spent in gone]
    seconds = _added([*(r.seconds for r in every), *map(_less, gone)])
    seeds = [orders[order] for order in sorted(orders)]
    first, last = every[0].recipe, every[-1].recipe
    recipe = {**first, **last, **{k: first[k] for k in ("seed",) if k in first}}
    recipe["streams"] = {k: v for r in every for k, v in r.recipe["streams"].items()}
    recipe["baselines"] = list(dict.fromkeys(b for r in every for b in r.recipe["baselines"]))
    recipe |= {"seeds": len(seeds), "data": "data"}
    recipe.pop(OLDER, None)
    older = {_said(*k): made for k, made in under.items() if made != deciding(recipe, k[1])}
    return dataclasses.replace(
        every[0],
        recipe={**recipe, **({OLDER: older} if older else {})},
        seeds=seeds,
        summary=summarize(seeds),
        versions=_every(r.versions for r in every),
        machine=_every(r.machine for r in every),
        seconds=seconds,
        peak_memory=max(r.peak_memory or 0 for r in every) or None,
    )


def _has(run: SeedRun, way: str) -> bool:
    return any(e.finetunes == way for e in run.entries)


def _without(run: SeedRun, ways: Iterable[str]) -> SeedRun:
    """An order without some ways of learning; the zero-shot model comes with the sequential one."""
    out = {*ways, *(["none"] if "sequential" in ways else [])}
    return dataclasses.replace(
        run,
        entries=[e for e in run.entries if e.finetunes not in out],
        seconds=_added([run.seconds, *(_less(run.streams.get(way, {})) for way in ways)]),
        streams={way: spent for way, spent in run.streams.items() if way not in out},
    )


def _less(spent: dict[str, float]) -> dict[str, float]:
    """Seconds to be taken away."""
    return {phase: -seconds for phase, seconds in spent.items()}


def _one_order(runs: list[SeedRun]) -> SeedRun:
    rows, spent = [e for run in runs for e in run.entries], {}
    for run in runs:
        spent |= run.streams
    ways = ("none", *(way for way in WAYS if way != "joint"), "joint")
    return dataclasses.replace(
        runs[0],
        entries=sorted(rows, key=lambda e: ways.index(e.finetunes)),
        seconds=_added(run.seconds for run in runs),
        streams={way: spent[way] for way in WAYS if way in spent},
    )


def _every(notes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the runs say of themselves; where they differ, all that they say."""
    said: dict[str, list[Any]] = {}
    for note in notes:
        for key, value in note.items():
            said.setdefault(key, []).append(value)
    different = {key: list(dict.fromkeys(values)) for key, values in said.items()}
    return {k: v[0] if len(v) == 1 else " and ".join(map(str, v)) for k, v in different.items()}


def _added(parts: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for seconds in parts:
        for phase, spent in seconds.items():
            total[phase] = total.get(phase, 0.0) + spent
    return total
