"""`mini` on real images: CIFAR-10 in five tasks, PACS domain after domain, Omniglot, Caltech-101.

    jaxmerge run experiments/mini_images.py --set data=/path/to/data --set stream=cifar10
    jaxmerge run experiments/mini_images.py --set data=/path/to/data --set stream=pacs

`data` is a folder with ``<name>/<name>_train.npz`` and ``<name>_test.npz`` for each data set (see
`jaxmerge.data.npz`).  `mini` has seen glyphs and shapes only, so its zero-shot figures on natural
images are near chance; that is part of the result.

Expected figures: none are published for this model.  Figures obtained: not run in full yet.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import ClassVar

from jaxmerge.commands.quickstart import weights_folder
from jaxmerge.continual.experiment import Experiment
from jaxmerge.continual.learner import Learner, from_clip
from jaxmerge.continual.scenario import Scenario, class_incremental, class_order
from jaxmerge.continual.streams import domain_incremental
from jaxmerge.data.npz import npz
from jaxmerge.errors import UserError, closest

STREAMS = {"cifar10": 5, "caltech101": 10, "omniglot8": 8, "pacs": None}  # tasks; None: domains


@dataclasses.dataclass(frozen=True)
class Images(Experiment):
    """Settings beside those of every experiment.

    Attributes:
        data: the folder with one folder for each data set.
        stream: which of `STREAMS`.
        per_class: examples of every class kept for training, and as many for testing.
        model: "mini" or a CLIP folder.
    """

    name: ClassVar[str] = "mini-images"

    data: str = os.environ.get("JAXMERGE_DATA", "data")
    stream: str = "cifar10"
    per_class: int = 200
    model: str = "mini"

    def scenario(self, seed: int) -> Scenario:
        if self.stream not in STREAMS:
            raise UserError(f"No stream {self.stream!r}: {closest(self.stream, STREAMS)}")
        source = npz(Path(self.data) / self.stream, self.stream, per_class=self.per_class)
        tasks = STREAMS[self.stream]
        if tasks is None:
            return domain_incremental(source, class_order(len(source.domain_names), seed))
        return class_incremental(source, tasks, class_order(len(source.classes), seed))

    def learner(self, scenario: Scenario) -> Learner:
        from jaxmerge.models import clip

        return from_clip(clip.load(weights_folder(self.model)), scenario)


def get_config() -> Experiment:
    """The experiment."""
    return Images()
