"""Published methods that drop entries of the task vectors first: TIES and its relatives."""

from __future__ import annotations

from typing import Any, Literal

from jaxmerge.combine import chain
from jaxmerge.core import Merge
from jaxmerge.merges.signs import disjoint_mean
from jaxmerge.spec import register
from jaxmerge.transforms.scaling import scale
from jaxmerge.transforms.sparsify import trim

__all__ = ["ties"]


@register(static=("density",))
def ties(
    density: float = 0.2,
    factor: Any = 1.0,
    scope: Literal["global", "leaf"] = "global",
    merge: Literal["mean", "sum", "max"] = "mean",
) -> Merge:
    """TIES-Merging: trim each task vector, elect a sign for every entry, merge what agrees.

    Memory: 2.5 x the model.

    Source: Yadav et al., TIES-Merging, NeurIPS 2023; the official code trims over the whole
    flattened model (scope="global").
    """
    return chain(trim(density, scope), disjoint_mean(merge), scale(factor))
