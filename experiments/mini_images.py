"""A small CLIP on real images: CIFAR-10, Caltech-101, the domains of PACS, hands that sign digits.

    jaxmerge run experiments/mini_images.py --set data=/path/to/data --set stream=cifar10
    jaxmerge run experiments/mini_images.py --set data=/path/to/data --set stream=pacs \\
        --set model=FOLDER

`data` is a folder with ``<name>/<name>_train.npz`` and ``<name>_test.npz`` for each data set (see
`jaxmerge.data.npz`); `model` is a CLIP.  The default, `mini`, has seen glyphs and shapes only and
begins at chance on all of these, and a stream of a few classes a task teaches it little that lasts:
trained jointly it ends at 32 % of CIFAR-10's ten classes, 38 % of PACS' seven, 5 % of Caltech-101
and of 242 characters of Omniglot; on the ten signed digits the last model of a stream ended at 17 %
and MagMax at 15 % (`mini-2k`, one class order).  Figures of methods on such a model say nothing of
the methods, so none of these streams is in the documentation's tables: bring a CLIP that knows
photographs.

The budget is small: `STREAMS` holds the examples of each class (and domain), four epochs a task.
Merge factors are chosen on the validation images; the learning rate is the quickstart's, chosen
there on the validation split of the digits.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, ClassVar

from jaxmerge.cli.quickstart import weights_folder
from jaxmerge.data.npz import npz
from jaxmerge.data.sources import Source
from jaxmerge.data.splits import few
from jaxmerge.data.streams.builders import domain_incremental
from jaxmerge.data.streams.scenario import Scenario, class_incremental, class_order
from jaxmerge.errors import UserError, closest
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.studies.presets import MERGES, comparisons
from jaxmerge.training.learner import Learner, from_clip

STREAMS = {  # tasks (None: one a domain), examples of each class by split
    "cifar10": (5, {"train": 100, "val": 20, "test": 60}),
    "caltech101": (10, {"train": 16, "val": 3, "test": 8}),
    "pacs": (None, {"train": 40, "val": 8, "test": 20}),
    "omniglot8": (None, {"train": 12, "val": 2, "test": 4}),
    "sign_digits": (5, {"train": 130, "val": 30, "test": 41}),
}


def images(data: Path, name: str, counts: dict[str, int]) -> Source:
    """Some examples of a data set, its class names short enough for the 24 tokens of `mini`."""
    source = few(npz(data / name, name, val=0.2), counts)
    names = [re.sub(r"\w+_\((\w+)\)", r"\1", c) for c in source.classes]  # Japanese_(katakana)
    names = [re.sub(r" \(.*\)|character", "", c) for c in names]
    return dataclasses.replace(source, classes=tuple(names))


@dataclasses.dataclass(frozen=True)
class Images(Experiment):
    """Settings beside those of every experiment.

    Attributes:
        data: the folder with one folder for each data set.
        stream: which of `STREAMS`.
        few: examples of every class (and domain), by split, where they differ from `STREAMS`.
        model: "mini", "mini-2k" or a CLIP folder.
    """

    name: ClassVar[str] = "mini-images"

    epochs: int = 4
    merges: dict[str, Any] = setting(MERGES)
    streams: dict[str, Any] = setting(comparisons())
    data: str = os.environ.get("JAXMERGE_DATA", "data")
    stream: str = "cifar10"
    few: dict[str, int] = setting({})
    model: str = "mini"

    def scenario(self, seed: int) -> Scenario:
        if self.stream not in STREAMS:
            raise UserError(f"No stream {self.stream!r}: {closest(self.stream, STREAMS)}")
        tasks, counts = STREAMS[self.stream]
        source = images(Path(self.data), self.stream, {**counts, **self.few})
        if tasks is None:
            return domain_incremental(source, class_order(len(source.domain_names), seed))
        return class_incremental(source, tasks, class_order(len(source.classes), seed))

    def learner(self, scenario: Scenario) -> Learner:
        from jaxmerge.models import clip

        return from_clip(clip.load(weights_folder(self.model)), scenario)


def get_config() -> Experiment:
    """The experiment."""
    return Images()
