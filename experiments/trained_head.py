"""A perceptron with a trained head on scikit-learn's digits: five tasks of two digits, no download.

Nothing is pretrained and no head is frozen: the 8x8 pixels go into a perceptron whose head learns
with it, by SGD.  Streams differ in their methods and in the columns that compete; all of them also
deploy the running average of the models::

    jaxmerge run experiments/trained_head.py
    jaxmerge run experiments/trained_head.py --set network.mlp.hidden=[200] --set optimiser=adam
    jaxmerge sweep experiments/trained_head.py --grid seed=0,1,2 --grid method=average,magmax
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxmerge.data.digits import digits
from jaxmerge.data.streams.scenario import Scenario, class_incremental, class_order
from jaxmerge.studies.config import Experiment, setting
from jaxmerge.training.model_learner import ModelLearner, from_model

DEPLOYS = ["last model", "average"]


@dataclasses.dataclass(frozen=True)
class TrainedHead(Experiment):
    """Settings; `network` is any registered model, see `jaxmerge.training.model_learner`."""

    name: ClassVar[str] = "trained_head"

    seeds: int = 1
    epochs: int = 5
    batch: int = 16
    network: dict[str, Any] = setting({"mlp": {"inputs": 64, "hidden": [64]}})
    optimiser: str | dict[str, Any] | None = setting({"sgd": {"rate": 0.05, "momentum": 0.9}})
    merges: dict[str, Any] = setting({"average": {"method": "average"}})
    streams: dict[str, Any] = setting(
        {
            "fine-tuning": {"deploys": DEPLOYS},
            "SLCA": {"methods": {"slca": {"slow": 0.1}}, "deploys": DEPLOYS},
            "ER": {
                "methods": {"er": {"size": 200}}, "deploys": DEPLOYS,
                "problem": {"classification": {"columns": "seen"}},
            },
            "GPM": {"methods": ["gpm"], "deploys": DEPLOYS},
        }
    )  # fmt: skip
    baselines: list[str] = setting(["joint"])

    def scenario(self, seed: int) -> Scenario:
        return class_incremental(digits(), 5, class_order(10, seed))

    def learner(self, scenario: Scenario) -> ModelLearner:
        return from_model(self.network, scenario)


def get_config() -> TrainedHead:
    return TrainedHead()
