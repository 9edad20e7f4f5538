"""Draws the index plans of the documentation; writes docs/images/streams.png.

    python experiments/draw_streams.py
    python experiments/draw_streams.py data=DATA    # docs/images/hierarchies.png too

Ten classes of 500 examples each; the hierarchy has vehicles and animals of CIFAR-10's classes above
them, the deep one a level between (on land, in the air or on water; mammals, others).

With `data`, the folder of all data sets, the second picture has hierarchical label expansion of
three real ones, each under the groups that it has: GTSRB (signs by shape and colour), Caltech-101
(by hand) and CLINC150 (domains over intents).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from continual_table import options

from jaxmerge.data.npz import npz
from jaxmerge.data.registry import entry
from jaxmerge.data.sources import Source
from jaxmerge.data.streams.blurry import i_blurry, si_blurry
from jaxmerge.data.streams.hierarchy import expansion
from jaxmerge.data.streams.plans import Plan, online
from jaxmerge.data.streams.recurring import recurring
from jaxmerge.data.streams.trees import CALTECH101, GTSRB, Level, hierarchy
from jaxmerge.data.text import clinc150, clinc150_domains
from jaxmerge.report.streams import draw_plan

IMAGES = Path(__file__).parents[1] / "docs" / "images"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MIDDLE = {
    "air or water": ("airplane", "ship"),
    "road": ("automobile", "truck"),
    "mammal": ("cat", "deer", "dog", "horse"),
    "other animal": ("bird", "frog"),
}
TOP = {"vehicle": ("air or water", "road"), "animal": ("mammal", "other animal")}
TITLES = {"gtsrb": "GTSRB", "caltech101": "Caltech-101", "clinc150": "CLINC150"}
TWO = {top: [c for group in groups for c in MIDDLE[group]] for top, groups in TOP.items()}


def plans(labels: np.ndarray, seed: int = 1) -> list[Plan]:
    """The streams of the page; labels of CIFAR-10."""
    two = hierarchy(NAMES, TWO)
    return [
        online(labels, 5, seed, names=NAMES),
        i_blurry(labels, 5, 50, 10, seed, names=NAMES),
        si_blurry(labels, 5, 50, 10, seed + 22, names=NAMES),  # tasks of 500 examples or more
        recurring(labels, 10, 2, seed, names=NAMES),
        expansion(labels, two, "single", 3, seed),
        expansion(labels, two, "dual", 3, seed),
        expansion(labels, hierarchy(NAMES, MIDDLE, TOP), "multi", seed=seed),
    ]


def real(data: Path, seed: int = 1) -> list[Plan]:
    """GTSRB, Caltech-101 and CLINC150, coarse labels first."""
    signs = tuple(entry("gtsrb")["names"].values())
    sources: list[tuple[Source, Level]] = [
        (npz(data / "gtsrb", "gtsrb", classes=signs), GTSRB),
        (npz(data / "caltech101", "caltech101"), CALTECH101),
        (clinc150(data / "clinc150"), clinc150_domains(data / "clinc150")),
    ]
    drawn = []
    for source, groups in sources:
        labels = source.labels[source.rows("train")]
        plan = expansion(labels, hierarchy(source.classes, groups), seed=seed)
        drawn.append(dataclasses.replace(plan, name=f"{TITLES[source.name]}: {plan.name}"))
    return drawn


if __name__ == "__main__":
    chosen = options(data="")
    every = plans(np.repeat(np.arange(10), 500))
    draw_plan(every, IMAGES / "streams.png")
    if chosen["data"]:
        found = real(Path(chosen["data"]))
        draw_plan(found, IMAGES / "hierarchies.png", columns=3)
        every += found
    print(*every, sep="\n\n")
