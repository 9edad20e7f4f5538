"""The merging schedules of FoMo-in-Flux: where a task starts, and what is deployed after it.

    jaxmerge run experiments/fomo_schedules.py                     # digits with `mini`, on a laptop
    jaxmerge run ... --set dataset=cifar100 --set tasks=20 --set data=DATA \\
        --set model=openai/clip-vit-base-patch32 --set batch=512 --set lr=1e-5

    =================  =========================  ====================================
    stream             training starts from       deployed
    =================  =========================  ====================================
    ema_paint          the deployed model         (1 - w) deployed + w new
    ft_paint           the last model             (1 - w) theta_0 + w last
    zs_paint           theta_0                    the mean of all models
    offline_merge      the last model             the mean of all models; MagMax; TIES
    double_merge       the mean of all models     the mean of all models
    fine-tuning        the last model             the last model
    =================  =========================  ====================================

The paper updates CLIP with 20 mixtures of 41 data sets, with the contrastive loss and a replay
buffer; here the same schedules run on a class-incremental stream under a frozen head, so its
figures do not carry over.  w is `weight`.

Expected figures: the paper's merging results could not be had; its conclusion (from memory of the
paper, not checked) is that merging over time trades plasticity for retention best.

Obtained on digits, three class orders (experiments/results/fomo_schedules.json, made with
``--set seeds=3``): every schedule ends above fine-tuning (94.6 to 95.3 % against 93.2 %) and
forgets less (0.3 to 1.2 points against 2.7); between the schedules the spread over orders is larger
than the differences, and none reaches the zero-shot model's 95.8 %.

Time and hardware: 95 s a seed on one shared CPU core for digits; the rest was not run.

Source: Roth et al., A Practitioner's Guide to Continual Multimodal Pretraining, NeurIPS 2024.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxmerge.data.digits import digits
from jaxmerge.data.streams.scenario import Scenario, class_incremental, class_order
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.studies.images import ImageExperiment
from jaxmerge.studies.seed import Plan

STREAMS = {
    "ema_paint": {"start": "running", "deploys": ["EMA"], "running": "EMA"},
    "ft_paint": {"start": "last", "deploys": ["interpolation"]},
    "zs_paint": {"start": "base", "deploys": ["mean"]},
    "offline_merge": {"start": "last", "deploys": ["mean", "MagMax", "TIES"]},
    "double_merge": {"start": "running", "deploys": ["mean"], "running": "mean"},
    "fine-tuning": {"start": "last", "deploys": ["last model"]},
}


@dataclasses.dataclass(frozen=True)
class Schedules(ImageExperiment):
    """Settings beside those of every experiment on images.

    Attributes:
        dataset: "digits", or a registered data set.
        tasks: how many tasks its classes are split into.
        weight: of the new model in `ema_paint` and `ft_paint`, in (0, 1].
    """

    name: ClassVar[str] = "fomo-schedules"

    batch: int = 32
    lr: float = 3e-4
    model: str = "mini"
    merges: dict[str, Any] = setting(
        {
            "mean": {"method": "mean"},
            "MagMax": {"method": "magmax", "factor": 0.5},
            "TIES": {"method": "ties", "density": 0.2, "factor": 1.0, "always": False},
        }
    )
    streams: dict[str, Any] = setting(STREAMS)
    dataset: str = "digits"
    tasks: int = 5
    weight: float = 0.5

    def scenario(self, seed: int) -> Scenario:
        source = digits() if self.dataset == "digits" else self.source(self.dataset)
        return class_incremental(source, self.tasks, class_order(len(source.classes), seed))

    def plans(self) -> tuple[Plan, ...]:
        """The streams, with the merges that `weight` makes."""
        merges = {
            "EMA": {"method": "ema", "decay": 1 - self.weight},
            "interpolation": {"method": [{"ema": {"decay": 0.0}}], "factor": self.weight},
        }
        return ImageExperiment.plans(dataclasses.replace(self, merges={**merges, **self.merges}))

    def check(self) -> None:
        """Raise ValueError for settings out of range."""
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight is in (0, 1], got {self.weight}.")
        super().check()


def get_config() -> Experiment:
    """The experiment."""
    return Schedules()
