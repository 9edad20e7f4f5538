"""What the experiments on images with CLIP have in common: data sets by name, the model, a warm-up
in steps."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxmerge.core.types import Leaves
from jaxmerge.data import registry
from jaxmerge.data.sources import Source
from jaxmerge.data.streams.scenario import Scenario, Task
from jaxmerge.errors import UserError, closest
from jaxmerge.models.folders import folder_of
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.training.fit import Training
from jaxmerge.training.learner import Learner, from_clip


@dataclasses.dataclass(frozen=True)
class ImageExperiment(Experiment):
    """Settings beside those of every experiment.

    Attributes:
        data: the folder of all data sets, see `jaxmerge.data.registry`.
        dataset: the data set, in experiments that have one.
        model: a CLIP model: a folder in Hugging Face's or OpenCLIP's layout, ``org/name`` on the
            hub, or "mini", the small one that is shipped.
        epochs_of: passes over a data set, by name, where they differ from `epochs`.
        warmup_steps: steps in which the rate rises, however many a task has; 0 uses `warmup`, a
            share of each task's steps.
        val: share of the training examples held out where no validation split is published.
        per_class: keep at most so many examples of every class (and domain); null keeps all.
        corrupt: "stop" at an image that cannot be decoded, or "skip" all of them, named.
        dtype: of matrix products in training, "float32" or "bfloat16".
        accumulate: parts in which a batch passes through the model, where memory is short.
    """

    movable: ClassVar[tuple[str, ...]] = ("corrupt",)

    data: str = os.environ.get("JAXMERGE_DATA", "data")
    dataset: str = ""
    model: str = "openai/clip-vit-base-patch16"
    epochs_of: dict[str, Any] = setting({})
    warmup_steps: int = 0
    val: float = 0.1
    per_class: int | None = None
    corrupt: str = "stop"
    dtype: str = "float32"
    accumulate: int = 1

    def source(self, name: str) -> Source:
        """A registered data set, read once however many seeds and tasks ask for it."""
        return _source(name, self.data, self.val, self.per_class, self.corrupt)

    def sources(self, names: Sequence[str]) -> list[Source]:
        """Registered data sets; those that are not there are named all at once."""
        opened, wrong = [], []
        for name in names:
            try:
                opened.append(self.source(name))
            except UserError as error:
                wrong.append(str(error))
        if wrong:
            raise UserError("; ".join(wrong))
        return opened

    def learner(self, scenario: Scenario) -> Learner:
        """The image tower under the frozen head of all class names."""
        return from_clip(self.pretrained(), scenario)

    def pretrained(self, ref: str | None = None) -> Any:
        """The model, or an image tower at `ref` with everything else from the model."""
        from jaxmerge.models import clip

        base = str(folder_of(self.model))
        return clip.load(base) if ref is None else clip.load(ref, base=base)

    def read(self, folder: Path) -> Leaves:
        """A fine-tuned model in a folder: a whole CLIP, or an image tower alone."""
        params = self.pretrained(str(folder)).params
        return {n: p for n, p in params.items() if n.startswith("vision/")}

    def how(self, task: Task | None = None) -> Training:
        """As in every experiment, with the epochs of the task's data set."""
        plain = super().how(task)
        name = self.dataset if task is None else task.source.name
        return dataclasses.replace(
            plain,
            epochs=self.epochs_of.get(name, plain.epochs),
            warmup=self.warmup_steps or plain.warmup,
            dtype=self.dtype,
            accumulate=self.accumulate,
        )

    def check(self) -> None:
        """Raise ValueError for settings out of range."""
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}.")
        if not 0 < self.val < 1:
            raise ValueError(f"val is a share between 0 and 1, got {self.val}.")
        unknown = [n for n in self.epochs_of if n not in registry.entries()]
        if unknown:
            raise ValueError(f"epochs_of: {closest(unknown[0], registry.entries())}")
        super().check()
        self.how()


@functools.lru_cache(maxsize=32)
def _source(name: str, data: str, val: float, per_class: int | None, corrupt: str) -> Source:
    return registry.source(name, data, val=val, per_class=per_class, corrupt=corrupt)


MAGMAX_MERGES = {
    "MagMax": {"method": "magmax", "factor": 0.5},
    "average": {"method": "average"},
    "RandMix": {"method": "randmix", "factor": 1.0},
    "TIES": {"method": "ties", "density": 0.2, "factor": 0.55, "always": False},
}
MAGMAX_STREAMS = {
    "sequential": {"start": "last", "deploys": ["last model", *MAGMAX_MERGES]},
    "independent": {"start": "base", "deploys": [*MAGMAX_MERGES]},
    "LwF": {"methods": {"lwf": {"strength": 0.3, "heads": "joined"}}},
    "EWC": {
        "methods": {"ewc_magmax": {"strength": 1e6, "decay": 0.5}},
    },
}


@dataclasses.dataclass(frozen=True)
class MagMaxPaper(ImageExperiment):
    """The settings, comparisons and factors of MagMax's experiments, as in its release.

    The rate rises in 500 steps whatever a task has, which is more than some tasks have.  EWC's
    Fisher information is the square of the running sum of gradients, as there.  No factor is
    tuned, so next to nothing is held out for validation.

    Source: Marczak et al., MagMax, ECCV 2024, and its release.
    """

    seed: int = 5
    seeds: int = 1
    epochs: int = 10
    batch: int = 128
    lr: float = 1e-5
    warmup_steps: int = 500
    val: float = 0.02
    merges: dict[str, Any] = setting(MAGMAX_MERGES)
    streams: dict[str, Any] = setting(MAGMAX_STREAMS)
