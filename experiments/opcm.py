"""OPCM: 8, 14 or 20 independently fine-tuned CLIP models arrive one by one, in ten orders.

    jaxmerge run experiments/opcm.py --set data=DATA --set tasks=8 --set models=FINETUNED
    jaxmerge run ... --set tasks=20 --set model=openai/clip-vit-large-patch14 --set models=LARGE
    jaxmerge sweep experiments/opcm.py --set data=DATA --set models=FINETUNED --grid tasks=8,14,20

FINETUNED holds one model a data set, FINETUNED/sun397/ and so on, in Hugging Face's layout (those
of the paper are on the hub under tanganke/), or FINETUNED/sun397.safetensors by leaf name.  What is
not there is trained once, with MagMax's recipe, and kept there, so the ten orders merge the same
models, as in the paper.  Models: ViT-B/32, ``openai/clip-vit-base-patch16``,
``openai/clip-vit-large-patch14``.  DATA: see `jaxmerge.data.registry`.

Merged continually: OPCM (alpha 0.5), the running average, continual task arithmetic and TIES
(factor 0.3 for 8 tasks, 0.1 for more), MagMax.  Beside them continual fine-tuning, the zero-shot
model, and in the column "normalised" the individual models.  Read "Task-aware": the paper asks for
the right class among the task's own.

Expected (ACC in %, after the last task; BWT of OPCM; MINGLE's Table 1, which reprints OPCM's):

    ==========================  ====  ====  ====  ====  ====  ====  ====  ====  ====
    model and tasks             B/32: 8, 14, 20   B/16: 8, 14, 20   L/14: 8, 14, 20
    ==========================  ====  ====  ====  ====  ====  ====  ====  ====  ====
    zero-shot                   48.1  56.9  55.6  55.4  62.0  59.8  64.9  69.1  65.6
    individual                  90.4  89.3  89.8  92.4  91.3  91.6  94.3  93.4  93.5
    continual fine-tuning       79.8  67.4  62.6  82.9  72.2  68.2  90.0  70.9  77.7
    running average             66.3  65.4  61.1  72.3  69.7  64.8  80.0  77.5  71.1
    continual task arithmetic   67.5  66.5  60.0  77.1  70.9  64.2  82.1  77.9  70.3
    continual TIES              49.0  66.2  59.9  66.8  70.5  63.0  64.3  78.0  68.3
    MagMax (independent)        70.7  67.0  61.2  76.7  67.0  62.5  83.4  71.2  71.2
    OPCM                        75.5  71.9  65.7  81.8  77.1  70.3  87.0  83.5  76.0
    OPCM, BWT                   -6.3  -6.0  -7.8  -4.8  -5.1  -6.3  -2.6  -4.3  -6.5
    ==========================  ====  ====  ====  ====  ====  ====  ====  ====  ====

Ours differ in: prompts and class names (registered ones), letters and held-out splits of EMNIST,
EuroSAT and RESISC45 (see the notes in ``datasets.yaml``), and TIES ranks within each leaf.

Time and hardware: not run in full here.  ``experiments/bench/opcm.py`` measures the decompositions;
every order evaluates six models after each task.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxmerge.data.registry import OPCM_TWENTY
from jaxmerge.data.streams.builders import suite
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.studies.images import ImageExperiment
from jaxmerge.studies.seed import Plan

MERGES = {
    "OPCM": {"method": "opcm", "alpha": 0.5},
    "running average": {"method": "mean"},
    "continual task arithmetic": {"method": "task_arithmetic"},
    "continual TIES": {"method": "continual_ties", "density": 0.2},
    "MagMax": {"method": "magmax", "factor": 0.5},
}
STREAMS = {
    "independent": {"start": "base", "deploys": [*MERGES, "last model"]},
    "continual": {"start": "last", "deploys": ["last model"]},
}


@dataclasses.dataclass(frozen=True)
class Opcm(ImageExperiment):
    """Settings beside those of every experiment on images.

    Attributes:
        tasks: how many of `datasets`, from the first.
        datasets: nested suites: the first 8, the first 14, all 20.
        models: the folder of fine-tuned models; null trains for every order.
        factor: of continual task arithmetic and TIES; null is the paper's, by `tasks`.
    """

    name: ClassVar[str] = "opcm"

    seeds: int = 10
    epochs: int = 10
    batch: int = 128
    lr: float = 1e-5
    warmup: float = 0.1
    model: str = "openai/clip-vit-base-patch32"
    merges: dict[str, Any] = setting(MERGES)
    streams: dict[str, Any] = setting(STREAMS)
    baselines: list[str] = setting(["zero-shot"])
    tasks: int = 8
    datasets: tuple[str, ...] = OPCM_TWENTY
    models: str | None = None
    factor: float | None = None

    def scenario(self, seed: int) -> Scenario:
        order = np.random.default_rng(seed).permutation(self.tasks)
        return suite(self.sources(self.datasets[: self.tasks]), order.tolist())

    def plans(self) -> tuple[Plan, ...]:
        """The streams, with the paper's factors and the folder of models."""
        factor = self.factor or (0.3 if self.tasks <= 8 else 0.1)
        continual = [k for k in ("continual task arithmetic", "continual TIES") if k in self.merges]
        merges = {**self.merges, **{k: {"factor": factor, **self.merges[k]} for k in continual}}
        streams = self.streams
        if self.models and "independent" in streams:
            streams = {**streams, "independent": {**streams["independent"], "models": self.models}}
        return ImageExperiment.plans(dataclasses.replace(self, merges=merges, streams=streams))

    def check(self) -> None:
        """Raise ValueError for settings out of range."""
        if not 1 <= self.tasks <= len(self.datasets):
            raise ValueError(f"tasks is 1 to {len(self.datasets)}, got {self.tasks}.")
        super().check()


def get_config() -> Experiment:
    """The experiment."""
    return Opcm()
