"""Real weights, real text: all-MiniLM-L6-v2 on CLINC150, class-incremental, 5, 10 or 30 tasks.

    jaxmerge run experiments/clinc150.py --set data=/path/to/data
    jaxmerge run experiments/clinc150.py --set data=/path/to/data --set tasks=30

`data` is a folder with ``clinc150/data_full.json`` and ``clinc150/domains.json`` (the published
files); the sentence encoder is read as `sentence-transformers/all-MiniLM-L6-v2`.  The head is
frozen and made of the intents' names; class order and shuffles are drawn by the seed.

The budget is small: 10 training, 3 validation and 5 test sentences of each of the 150 intents, two
epochs a task, 9 steps of 32 sentences with 10 tasks.  Merge factors are chosen on the validation
sentences; the learning rate was set to 2e-4 beforehand and not tuned.  What takes least:

    --set tasks=30 --set seeds=1 --set streams.LwF=null --set streams.EWC=null \\
    --set baselines=[zero-shot] --set merges.MagMax.always=false --set merges.OPCM.always=false

Expected figures: none are published for this stream.  Obtained: ``experiments/results/`` and the
page "Continual learning, measured" of the documentation.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar

from jaxmerge.data.splits import few
from jaxmerge.data.streams.scenario import Scenario, class_incremental, class_order
from jaxmerge.data.text import clinc150
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.studies.presets import MERGES, comparisons
from jaxmerge.training.learner import Learner, from_bert


@dataclasses.dataclass(frozen=True)
class Clinc(Experiment):
    """Settings beside those of every experiment.

    Attributes:
        data: the folder with clinc150/.
        tasks: how many tasks the 150 intents are split into.
        few: sentences of each intent, by split.
        model: a sentence encoder: a folder or a reference on the hub.
        length: tokens of a sentence; longer ones are cut (the longest of CLINC150 has 33).
    """

    name: ClassVar[str] = "clinc150"

    epochs: int = 2
    lr: float = 2e-4
    merges: dict[str, Any] = setting(MERGES)
    streams: dict[str, Any] = setting(comparisons())
    data: str = os.environ.get("JAXMERGE_DATA", "data")
    tasks: int = 10
    few: dict[str, int] = setting({"train": 10, "val": 3, "test": 5})
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    length: int = 32

    def scenario(self, seed: int) -> Scenario:
        source = few(clinc150(Path(self.data) / "clinc150"), self.few)
        return class_incremental(source, self.tasks, class_order(len(source.classes), seed))

    def learner(self, scenario: Scenario) -> Learner:
        from jaxmerge.models import bert

        return from_bert(bert.load(self.model), scenario, length=self.length)


def get_config() -> Experiment:
    """The experiment."""
    return Clinc()
