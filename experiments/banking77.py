"""Real weights, real text: all-MiniLM-L6-v2 on Banking77, class-incremental, 7 tasks of 11 intents.

    jaxmerge run experiments/banking77.py --set data=/path/to/data

`data` is a folder with ``banking77/train.csv`` and ``banking77/test.csv`` (the published files);
the sentence encoder is read as `sentence-transformers/all-MiniLM-L6-v2`.  The head is frozen and
made of the intents' names; class order and shuffles are drawn by the seed.

All 10,003 training sentences are used, a tenth of each intent held out for validation, and all
3,080 of the test split; three epochs a task.  Merge factors are chosen on the validation sentences.
A budget of minutes: ``--set 'few={train: 10, val: 2, test: 6}' --set epochs=2``.  See
``experiments/text_streams.py`` for the tables.

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
from jaxmerge.data.text import banking77
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.studies.presets import MERGES, comparisons
from jaxmerge.training.learner import Learner, from_bert


@dataclasses.dataclass(frozen=True)
class Banking(Experiment):
    """Settings beside those of every experiment.

    Attributes:
        data: the folder with banking77/.
        tasks: how many tasks the 77 intents are split into.
        few: sentences of each intent, by split, where they are not all.
        validation: score on validation sentences, to choose settings by.
        model: a sentence encoder: a folder or a reference on the hub.
        length: tokens of a sentence; longer ones are cut, which the longest 3 % are.
    """

    name: ClassVar[str] = "banking77"

    epochs: int = 3
    lr: float = 2e-4
    merges: dict[str, Any] = setting(MERGES)
    streams: dict[str, Any] = setting(comparisons("sequential", "independent"))
    data: str = os.environ.get("JAXMERGE_DATA", "data")
    tasks: int = 7
    few: dict[str, int] = setting({})
    validation: bool = False
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    length: int = 40

    def scenario(self, seed: int) -> Scenario:
        source = banking77(Path(self.data) / "banking77")
        source = few(on_validation(source) if self.validation else source, self.few)
        return class_incremental(source, self.tasks, class_order(len(source.classes), seed))

    def learner(self, scenario: Scenario) -> Learner:
        from jaxmerge.models import bert

        return from_bert(bert.load(self.model), scenario, length=self.length)


def get_config() -> Experiment:
    """The experiment."""
    return Banking()
