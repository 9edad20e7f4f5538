"""Streams as pictures: tasks with a few of their training examples; plans, class by class."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxmerge.core.draws import draws
from jaxmerge.core.ranges import Count, unfit
from jaxmerge.data.streams.plans import Plan
from jaxmerge.data.streams.scenario import Scenario, shortened
from jaxmerge.errors import listed

ROWS = 20  # more tasks than this are drawn as the first and the last ones
NAMED = 24  # as many names fit beside a panel


def draw(scenario: Scenario, path: str | Path, examples: int = 8, seed: int = 0) -> None:
    """Write the picture; images are shown, texts are written out.

    Args:
        examples: of every task.
        seed: which examples.
    """
    tasks = list(range(len(scenario)))
    if len(tasks) > ROWS:
        tasks = tasks[: ROWS // 2] + tasks[-(ROWS // 2) :]
    figure = Figure(figsize=(2.2 + 0.8 * examples, 0.6 + 0.9 * len(tasks)), layout="constrained")
    figure.suptitle(shortened(scenario.name, 60), fontsize=9)
    grid = figure.subplots(len(tasks), examples + 1, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    rng = draws(seed)
    for line, t in zip(grid, tasks, strict=True):
        task = scenario[t]
        rows = rng.permutation(task.rows["train"])[:examples]
        count = f"{len(task.rows['train'])} to train on"
        name = f"{t + 1}. {shortened(task.name, 40)}\n{count}"
        line[0].text(1, 0.5, name, ha="right", va="center", fontsize=7, wrap=True)
        samples = task.source.inputs[rows]
        if len(rows) and isinstance(samples[0], str):
            text = "\n".join(shortened(x, 70) for x in samples[:4])
            line[1].text(0, 0.5, text, va="center", fontsize=6)
        else:
            for axes, example in zip(line[1:], samples, strict=False):
                show(axes, example)
    figure.savefig(path)


def show(axes: Any, example: Any) -> None:
    """One example: a picture, an array of pixels, or any other array as a strip."""
    pixels = np.asarray(example)
    grey = pixels.ndim == 2
    axes.imshow(pixels if pixels.ndim > 1 else pixels[None], cmap="gray" if grey else None)


def draw_plan(
    plans: Plan | Sequence[Plan], path: str | Path, columns: int = 2, bins: int = 100
) -> None:
    """Write index plans as a picture, one panel each: which class arrives where in the stream.

    A row is a class, in the order in which classes first arrive, from left to right the examples
    as they arrive; the darker, the more of this class's examples come there (the shade is the root
    of their number, so that the few that leak into other tasks are seen). Lines are the borders of
    tasks. More than 24 classes have no names; where they stand under coarser ones, these name the
    rows of theirs, the larger ones first where there is no room for all.

    Args:
        columns: of panels, 1 or more.
        bins: of a panel, from left to right, 1 or more.

    Raises:
        ValueError: no plan, or a number that is none of these.
    """
    plans = [plans] if isinstance(plans, Plan) else list(plans)
    wrong = unfit(Count, columns=columns, bins=bins)
    if not plans or not all(isinstance(p, Plan) for p in plans):
        wrong.insert(0, "draw_plan takes a plan or several")
    if wrong:
        raise ValueError(listed(wrong))
    lines = -(-len(plans) // columns)
    wide = min(columns, len(plans))
    figure = Figure(figsize=(4.6 * wide, 2.6 * lines), layout="constrained")
    for axes, plan in zip(figure.subplots(lines, wide, squeeze=False).flat, plans, strict=False):
        share, borders = arrivals(plan, bins)
        axes.imshow(share**0.5, aspect="auto", cmap="Blues", vmin=0, vmax=1,
                    interpolation="nearest", extent=(0, borders[-1], len(share), 0))  # fmt: skip
        for border in borders[1:-1]:
            axes.axvline(border, color="0.45", linewidth=0.7)
        axes.set_title(shortened(plan.name, 46), fontsize=9)
        axes.set_xlabel("examples", fontsize=7)
        axes.set_ylabel("class", fontsize=7)
        axes.tick_params(labelsize=6)
        named = rows_named(plan, len(share))
        if named:
            axes.set_yticks(list(named), [shortened(name, 24) for name in named.values()])
            axes.set_ylabel("")
    for axes in figure.axes[len(plans) :]:
        axes.axis("off")
    figure.savefig(path)


def rows_named(plan: Plan, rows: int) -> dict[float, str]:
    """Place on the axis -> name: of every class, of the coarser ones above many, or none.

    A coarser one stands beside the longest run of rows that are all of its own.
    """
    order = np.argsort(_first(plan), kind="stable")[:rows].tolist()
    if rows <= NAMED:
        return {row + 0.5: plan.names[c] for row, c in enumerate(order)}
    if plan.parent is None or plan.level is None:
        return {}
    above = [int(plan.parent[c]) for c in order]
    runs: dict[int, range] = {}
    for parent, places in itertools.groupby(range(rows), above.__getitem__):
        first, *more = places
        run = range(first, first + 1 + len(more))
        runs[parent] = max(runs.get(parent, run), run, key=len)
    named: dict[float, str] = {}
    for parent, run in sorted(runs.items(), key=lambda item: -len(item[1])):
        middle = (run.start + run.stop) / 2
        if all(abs(middle - other) >= rows / NAMED for other in named):
            named[middle] = "the coarsest" if parent < 0 else plan.names[parent]
    return named


def arrivals(plan: Plan, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """[classes that arrive, bins]: examples, 1 at each class's most; int [tasks + 1]: borders."""
    every = np.concatenate(plan.columns)
    first = _first(plan)
    order = np.argsort(first, kind="stable")[: np.isfinite(first).sum()]
    place = np.zeros(len(plan.names), int)
    place[order] = np.arange(len(order))
    bins = min(bins, len(every))
    at = np.arange(len(every)) * bins // len(every)
    counts = np.zeros((len(order), bins))
    np.add.at(counts, (place[every], at), 1)
    return counts / counts.max(1, keepdims=True), np.cumsum([0, *map(len, plan.rows)])


def _first(plan: Plan) -> np.ndarray:
    """[columns]: the place in the stream where a class first arrives; inf: never."""
    every = np.concatenate(plan.columns)
    first = np.full(len(plan.names), np.inf)
    first[every[::-1]] = np.arange(len(every))[::-1]
    return first
