"""Your own images, class after class: a file to copy.

    jaxmerge run my_images.py --set data=pets --set model=openai/clip-vit-base-patch32

`data` is a folder with a folder of pictures for each class (or train/, val/ and test/ with such
folders in each); what is missing of validation and test pictures is held out, the same share of
every class. The classes arrive in `tasks` tasks, and CLIP's image tower learns them one after the
other under the frozen head of their names.

`model` is a CLIP: a folder as transformers or OpenCLIP write it, or ``org/name`` on the hub. The
default, ``mini``, is shipped and needs no network, but it has seen drawn digits and glyphs only,
never a photograph, and its text tower reads 22 tokens of a small vocabulary: with it this file
shows that your folder is read and how long a step takes, not what CLIP makes of your pictures.
The rate suits a large CLIP; one as small as ``mini`` hardly moves below ``lr=3e-4``.
"""

from __future__ import annotations

import dataclasses
from importlib import resources
from typing import Any, ClassVar

from jaxmerge.data.folders import folder
from jaxmerge.data.streams.scenario import Scenario, class_incremental, class_order
from jaxmerge.studies.config import Experiment
from jaxmerge.training.learner import Learner, from_clip

CLASSES: dict[str, str] = {}  # folder -> name, such as {"n02099601": "golden retriever"}
TEMPLATES = ("a photo of a {}.", "an image of a {}.", "a picture of a {}.")


@dataclasses.dataclass(frozen=True)
class MyImages(Experiment):
    """Settings beside those of every experiment.

    Attributes:
        data: the folder.
        val, test: shares of every class that are held out where there is no such folder.
        tasks: how many tasks the classes are split into.
        model: a CLIP model, or "mini".
        truncate: cut names of classes that are longer in prompts than the text tower reads.
        corrupt: "stop" at an image that cannot be decoded, or "skip" all of them, named.
    """

    name: ClassVar[str] = "my_images"
    movable: ClassVar[tuple[str, ...]] = ("corrupt",)

    lr: float = 1e-5
    data: str = "images"
    val: float = 0.1
    test: float = 0.2
    tasks: int = 2
    model: str = "mini"
    truncate: bool = False
    corrupt: str = "stop"

    def scenario(self, seed: int) -> Scenario:
        source = folder(
            self.data, classes=CLASSES, templates=TEMPLATES, val=self.val, test=self.test,
            corrupt=self.corrupt,
        )  # fmt: skip
        return class_incremental(source, self.tasks, class_order(len(source.classes), seed))

    def learner(self, scenario: Scenario) -> Learner:
        from jaxmerge.models import clip

        shipped = resources.files("jaxmerge") / "assets" / "mini"
        model = clip.load(str(shipped if self.model == "mini" else self.model))
        return from_clip(model, scenario, truncate=self.truncate)


def get_config(**settings: Any) -> Experiment:
    """The experiment."""
    return MyImages(**settings)
