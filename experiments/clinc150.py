"""Real weights, real text: all-MiniLM-L6-v2 on CLINC150, class-incremental, 5, 10 or 30 tasks.

    jaxmerge run experiments/clinc150.py --set data=/path/to/data
    jaxmerge run experiments/clinc150.py --set data=/path/to/data --set tasks=30

`data` is a folder with ``clinc150/data_full.json`` and ``clinc150/domains.json`` (the published
files); the sentence encoder is read as `sentence-transformers/all-MiniLM-L6-v2`.  The head is
frozen and made of the intents' names; class order and shuffles are drawn by the seed.

All sentences are used, in the published splits: 100 for training, 20 for validation and 30 for test
of each of the 150 intents; three epochs a task, 140 steps of 32 sentences with 10 tasks.  Merge
factors are chosen on the validation sentences, after every task anew.  A budget of minutes, with
which nothing can be said of close methods:

    --set 'few={train: 10, val: 2, test: 4}' --set epochs=2

``experiments/text_streams.py`` runs this file and ``banking77.py`` for all the tables, stream after
stream, and chooses learning rate and strengths on the validation sentences of other class orders.

Expected figures: none are published for this stream.  Obtained: ``experiments/results/`` and the
page "Continual learning, measured" of the documentation.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar

from jaxmerge.data.splits import few, on_validation
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
        few: sentences of each intent, by split, where they are not all.
        validation: score on validation sentences, to choose settings by.
        model: a sentence encoder: a folder or a reference on the hub.
        length: tokens of a sentence; longer ones are cut (the longest of CLINC150 has 33).
    """

    name: ClassVar[str] = "clinc150"

    epochs: int = 3
    lr: float = 2e-4
    merges: dict[str, Any] = setting(MERGES)
    streams: dict[str, Any] = setting(comparisons())
    data: str = os.environ.get("JAXMERGE_DATA", "data")
    tasks: int = 10
    few: dict[str, int] = setting({})
    validation: bool = False
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    length: int = 32

    def scenario(self, seed: int) -> Scenario:
        source = clinc150(Path(self.data) / "clinc150")
        source = few(on_validation(source) if self.validation else source, self.few)
        return class_incremental(source, self.tasks, class_order(len(source.classes), seed))

    def learner(self, scenario: Scenario) -> Learner:
        from jaxmerge.models import bert

        return from_bert(bert.load(self.model), scenario, length=self.length)


def get_config() -> Experiment:
    """The experiment."""
    return Clinc()
