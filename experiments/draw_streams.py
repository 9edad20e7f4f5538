"""Draws the index plans of the documentation; writes docs/images/streams.png.

    python experiments/draw_streams.py

Ten classes of 500 examples each; the hierarchy has vehicles and animals of CIFAR-10's classes above
them, the deep one a level between (on land, in the air or on water; mammals, others).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxmerge.data.streams.blurry import i_blurry, si_blurry
from jaxmerge.data.streams.hierarchy import expansion
from jaxmerge.data.streams.plans import Plan, online
from jaxmerge.data.streams.recurring import recurring
from jaxmerge.report.streams import draw_plan

IMAGE = Path(__file__).parents[1] / "docs" / "images" / "streams.png"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TOP = ("vehicle", "animal")
MIDDLE = ("air or water", "road", "mammal", "other animal")
TREE = np.array([[0, 0], [0, 1], [1, 3], [1, 2], [1, 2], [1, 2], [1, 3], [1, 2], [0, 0], [0, 1]])


def plans(labels: np.ndarray, seed: int = 1) -> list[Plan]:
    """The streams of the page; labels of CIFAR-10."""
    deep = np.concatenate([TREE, np.arange(10)[:, None]], 1)
    return [
        online(labels, 5, seed, names=NAMES),
        i_blurry(labels, 5, 50, 10, seed, names=NAMES),
        si_blurry(labels, 5, 50, 10, seed + 22, names=NAMES),  # tasks of 500 examples or more
        recurring(labels, 10, 2, seed, names=NAMES),
        expansion(labels, deep[:, [0, 2]], "single", 3, seed, names=TOP + NAMES),
        expansion(labels, deep[:, [0, 2]], "dual", 3, seed, names=TOP + NAMES),
        expansion(labels, deep, "multi", seed=seed, names=TOP + MIDDLE + NAMES),
    ]


if __name__ == "__main__":
    every = plans(np.repeat(np.arange(10), 500))
    draw_plan(every, IMAGE)
    print(*every, sep="\n\n")
