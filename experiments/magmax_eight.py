"""MagMax on eight data sets in a row: Cars, MNIST, EuroSAT, SVHN, RESISC45, SUN397, DTD, GTSRB.

    jaxmerge run experiments/magmax_eight.py --set data=DATA

Each data set is a task with its own classes and prompts; the head holds all 758 classes.  Read the
column "Task-aware", the right class among the task's own, which is what papers report for suites.
Comparisons, factors, warm-up and DATA are those of ``magmax_class_incremental.py``; epochs are the
release's, 35, 5, 12, 4, 15, 14, 75 and 11.

Expected (task-aware, per data set in the order above, MagMax on sequential fine-tunes, ViT-B/32,
2,500 steps a task, from fusion_bench's documentation, not from the paper): 71.7, 99.1, 96.7, 94.4,
85.6, 68.8, 59.0, 69.2, on average 80.6; the same page says that the paper reports about 84 on
ViT-B/16.

Time and hardware: not run in full here; some 17,000 steps of 128 images a stream, which asks for a
GPU.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxmerge.data.registry import MAGMAX_EIGHT
from jaxmerge.data.streams.builders import suite
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.studies.images import MagMaxPaper

EPOCHS = dict(zip(MAGMAX_EIGHT, (35, 5, 12, 4, 15, 14, 75, 11), strict=True))


@dataclasses.dataclass(frozen=True)
class Eight(MagMaxPaper):
    """Settings beside those of every experiment on images.

    Attributes:
        datasets: in the order of learning.
    """

    name: ClassVar[str] = "magmax-eight"

    epochs_of: dict[str, Any] = setting(EPOCHS)
    datasets: tuple[str, ...] = MAGMAX_EIGHT

    def scenario(self, seed: int) -> Scenario:
        return suite(self.sources(self.datasets))


def get_config() -> Experiment:
    """The experiment."""
    return Eight()
