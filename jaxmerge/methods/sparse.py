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


@register
def ties(
    density: Any = 0.2,
    factor: Any = 1.0,
    scope: Literal["global", "leaf"] = "global",
    merge: Literal["mean", "sum", "max"] = "mean",
    weights: Any = None,
    elect: Literal["mass", "count", "fraction"] = "mass",
    tie: Literal["majority", "positive"] = "majority",
    inclusive: bool | None = None,
    rescale: Literal["l1"] | None = None,
) -> Merge:
    """TIES-Merging: trim each task vector, elect a sign for every entry, merge what agrees.

    Formula: theta_0 + factor * disjoint_mean(trim(tau_1), ..., trim(tau_T)); see `trim` and
    `disjoint_mean` for the arguments that are not listed here.

    Args:
        density: share of entries kept, in (0, 1]; a number, or one for each model.
        factor: lambda of the paper, 1 for the mean.
        scope: "global" trims over the whole flattened model, as the official code; "leaf" trims
            each leaf on its own.
        merge: "mean" (the paper), "sum" or "max" of the entries that agree with the sign.
        weights: a number for each model, which enters the election and the mean.

    Memory: 2.5 x the model; 4 x with weights or for "max"; 2 x for "sum".

    Source: Yadav et al., TIES-Merging, NeurIPS 2023.

    Differs: merge toolkits that work tensor by tensor mean ``ties(density, factor, scope="leaf",
    weights=[...], tie="positive")``.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([4.0, 0.1, -2.0, 3.0])}, {"w": np.array([2.0, 0.2, 5.0, 0.1])}]
        >>> jm.merge(jm.ties(density=0.75, scope="leaf"), {"w": np.zeros(4)}, models)["w"]
        array([3. , 0.2, 5. , 3. ])
    """
    fold = disjoint_mean(merge, weights, elect, tie)
    return chain(trim(density, scope, inclusive, rescale), fold, scale(factor))
