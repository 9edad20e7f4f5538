"""Projection or merging? Methods that learn in subspaces beside MagMax, on one stream.

    jaxmerge run experiments/projection.py
    jaxmerge run experiments/projection.py --set validation=true --set seed=10 --set seeds=2

The stream and the training are those of ``jaxmerge quickstart``: five tasks of two handwritten
digits, `mini-2k` under a frozen text head, three class orders.  Every way of learning is deployed as
it is ("last model") and merged after every task ("MagMax"), so that the table says what projection
gives, what merging gives, and whether one adds to the other.  Costs are in the run's results.

**How the settings were chosen.**  By the second command: validation images, class orders 10 and 11,
which are not those shown; what was tried stands at ``TRIED``, and `--set` tries more.

Expected figures: none are published for this stream.  Obtained: ``results/projection.json`` and the
page "Subspaces" of the documentation.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxmerge.cli.quickstart import Quickstart
from jaxmerge.data.digits import digits
from jaxmerge.data.splits import on_validation
from jaxmerge.data.streams.scenario import Scenario, class_incremental, class_order
from jaxmerge.studies.config import Experiment, setting

MERGES = {"MagMax": {"method": "magmax", "factor": [0.2, 0.35, 0.5, 0.65, 0.8, 1.0]}}
BOTH = ["last model", "MagMax"]
KERNELS = "^vision/block"  # of the tower's blocks; its first convolution and projection are free


def ways(**methods: dict[str, Any] | None) -> dict[str, Any]:
    """Streams by the name of their method, each as it is and merged."""
    plain = {"start": "last", "deploys": BOTH}
    return {
        name.replace("_", " "): plain | ({"methods": own} if own else {})
        for name, own in methods.items()
    }


@dataclasses.dataclass(frozen=True)
class Projection(Quickstart):
    """Settings beside those of every experiment.

    Attributes:
        validation: score on validation images, to choose settings by.
    """

    name: ClassVar[str] = "projection"

    validation: bool = False
    merges: dict[str, Any] = setting(MERGES)
    streams: dict[str, Any] = setting(
        ways(
            sequential=None,
            GPM={"gpm": {"threshold": 0.97, "project": KERNELS, "free": "."}},
            OSFT={"osft": {"ratio": 0.5, "target": KERNELS}},
            O_LoRA={"olora": {"rank": 8, "target": KERNELS}},
            L2={"l2": {"strength": 1.0}},
        )
    )

    def scenario(self, seed: int) -> Scenario:
        source = on_validation(digits()) if self.validation else digits()
        return class_incremental(source, self.tasks, class_order(len(source.classes), seed))


def get_config() -> Experiment:
    """The experiment."""
    return Projection()
