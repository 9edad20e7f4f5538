"""MagMax, domain-incremental: CLIP ViT-B/16 on the domains of ImageNet-R or DomainNet.

    jaxmerge run experiments/magmax_domain_incremental.py --set data=DATA
    jaxmerge run ... --set dataset=domainnet

ImageNet-R's renditions (art, cartoon, ..., video game) are fifteen tasks, DomainNet's six domains
six, in the release's order; the classes are the same throughout.  Comparisons, factors, warm-up
and DATA are those of ``magmax_class_incremental.py``.

Domain order: DomainNet's is the release's (registered in ``jaxmerge/data/datasets.yaml``),
ImageNet-R's is drawn by `seed`, unless ``domain_order=[...]`` says otherwise.

Expected figures: the paper's tables could not be had, and no re-run is known to us.

Time and hardware: not run in full here.  Ten epochs of ImageNet-R are 1,800 steps of 128 images a
stream, of DomainNet 31,000, which asks for a GPU.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxmerge.data import registry
from jaxmerge.data.streams.builders import domain_incremental
from jaxmerge.data.streams.scenario import Scenario, class_order
from jaxmerge.studies.config import Experiment
from jaxmerge.studies.images import MagMaxPaper


@dataclasses.dataclass(frozen=True)
class DomainIncremental(MagMaxPaper):
    """Settings beside those of every experiment on images.

    Attributes:
        dataset: "imagenet_r", "domainnet", or any registered data set with domains.
        domain_order: the domains in order of arrival, positions in alphabetic order.
    """

    name: ClassVar[str] = "magmax-domain-incremental"

    dataset: str = "imagenet_r"
    domain_order: tuple[int, ...] = ()

    def scenario(self, seed: int) -> Scenario:
        source = self.source(self.dataset)
        order = self.domain_order or registry.order(self.dataset, "magmax", "domains")
        return domain_incremental(source, order or class_order(len(source.domain_names), seed))


def get_config() -> Experiment:
    """The experiment."""
    return DomainIncremental()
