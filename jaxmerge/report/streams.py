"""A stream of tasks as a picture: one row a task, with a few of its training examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxmerge.data.streams.scenario import Scenario, shortened

ROWS = 20  # more tasks than this are drawn as the first and the last ones


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
    rng = np.random.default_rng(seed)
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
