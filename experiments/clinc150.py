"""MagMax on real text: all-MiniLM-L6-v2 on CLINC150, class-incremental, 10 tasks of 15 intents.

    jaxmerge run experiments/clinc150.py --set data=/path/to/data [--set tasks=5]

`data` is a folder with ``clinc150/data_full.json`` and ``clinc150/domains.json`` (the published
files); the sentence encoder is read as `sentence-transformers/all-MiniLM-L6-v2`.  The head is
frozen and made of the intents' names.  Class order: drawn by the seed.

Expected figures: none are published for this stream.  Figures obtained: not run in full yet.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import ClassVar

from jaxmerge.continual.experiment import Experiment
from jaxmerge.continual.learner import Learner, from_bert
from jaxmerge.continual.scenario import Scenario, class_incremental, class_order
from jaxmerge.data.text import clinc150


@dataclasses.dataclass(frozen=True)
class Clinc(Experiment):
    """Settings beside those of every experiment.

    Attributes:
        data: the folder with clinc150/.
        tasks: how many tasks the 150 intents are split into.
        model: a sentence encoder: a folder or a reference on the hub.
        length: tokens of a sentence (the longest of CLINC150 has fewer than 48).
    """

    name: ClassVar[str] = "clinc150"

    epochs: int = 2
    lr: float = 5e-5
    data: str = os.environ.get("JAXMERGE_DATA", "data")
    tasks: int = 10
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    length: int = 32

    def scenario(self, seed: int) -> Scenario:
        source = clinc150(Path(self.data) / "clinc150")
        return class_incremental(source, self.tasks, class_order(len(source.classes), seed))

    def learner(self, scenario: Scenario) -> Learner:
        from jaxmerge.models import bert

        return from_bert(bert.load(self.model), scenario, length=self.length)


def get_config() -> Experiment:
    """The experiment."""
    return Clinc()
