"""MagMax, class-incremental: CLIP ViT-B/16 on CIFAR100, ImageNet-R, CUB200 or Stanford Cars.

    jaxmerge run experiments/magmax_class_incremental.py --set data=DATA --set tasks=5
    jaxmerge run ... --set dataset=imagenet_r --set tasks=20
    jaxmerge run ... --set warmup_steps=0            # a warm-up of a tenth of every task
    jaxmerge sweep experiments/magmax_class_incremental.py --grid tasks=5,10,20,50

The paper cuts CIFAR100 and ImageNet-R into 5, 10, 20 or 50 tasks and trains 10 epochs, CUB200 and
Cars into 5, 10 or 20 and trains 30.  The table holds its comparisons: zero-shot, sequential
fine-tuning, LwF (0.3), EWC (1e6), RandMix, MaxAbs and the averages on independent fine-tunes, the
average, TIES, joint training.  Factors are the release's, none is tuned.  DATA is explained in
`jaxmerge.data.registry`; the model is read from the hub (``pip install 'jaxmerge[hub]'``) or from
the folder `model`.

Two settings follow the release: the rate rises in 500 steps whatever a task has (CIFAR100 has
some 3,900 / T steps a task, so that with 20 tasks the rate ends at 40 % of its peak), and the
Fisher information of EWC accumulates gradients over batches.  ``warmup_steps=0`` and
``streams.EWC.methods=[ewc]`` are the textbook's.

Class order: drawn by `seed`.  The release fixes one list for each data set; it carries no licence,
so the lists are not here.  Give yours as ``class_order=[...]``.

Expected (CIFAR100, accuracy after the last task in %, from a third party's re-run of the release,
Tunable-MagMax, ICPR 2026, which also states MagMax's own figure; the paper's other figures could
not be had):

    ==============================  ====  ====  ====
    sequential fine-tunes            T=5  T=20  T=50
    ==============================  ====  ====  ====
    MagMax, the paper               83.0  77.4  76.4
    MagMax, re-run                  83.2  76.9  71.0
    average                         81.0  76.4  74.4
    TIES                            81.8  76.8  76.2
    RandMix                         81.2  76.4  74.2
    last model                      82.0  77.0  75.6
    ==============================  ====  ====  ====

Time and hardware: not run in full here.  A stream over CIFAR100 is 3,800 steps of 128 images; four
streams and joint training are 2.5 million images through a ViT-B/16, which asks for a GPU.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxmerge.data.streams.scenario import Scenario, class_incremental, class_order
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.studies.images import MagMaxPaper


@dataclasses.dataclass(frozen=True)
class ClassIncremental(MagMaxPaper):
    """Settings beside those of every experiment on images.

    Attributes:
        dataset: one of the paper's four, or any registered data set.
        tasks: how many tasks its classes are split into.
        class_order: the classes in order of arrival; drawn by the seed where it is empty.
    """

    name: ClassVar[str] = "magmax-class-incremental"

    epochs_of: dict[str, Any] = setting({"cub200": 30, "cars": 30})
    dataset: str = "cifar100"
    tasks: int = 10
    class_order: tuple[int, ...] = ()

    def scenario(self, seed: int) -> Scenario:
        source = self.source(self.dataset)
        order = self.class_order or class_order(len(source.classes), seed)
        return class_incremental(source, self.tasks, order)


def get_config() -> Experiment:
    """The experiment."""
    return ClassIncremental()
