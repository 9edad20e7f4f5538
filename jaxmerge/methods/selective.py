"""Published methods that decide entry by entry what to take: SCE, RAM, NearSwap, Arcee Fusion."""

from __future__ import annotations

from typing import Any, Literal

from jaxmerge.core.composition import chain
from jaxmerge.core.registry import register
from jaxmerge.core.types import Merge
from jaxmerge.folds.elementwise import add
from jaxmerge.folds.selective import select_calculate_erase, unique_or_mean, unique_or_mean_rescaled
from jaxmerge.transforms.scaling import clip, scale
from jaxmerge.transforms.sparsify import keep_important

__all__ = ["arcee_fusion", "nearswap", "ram", "ram_plus", "sce"]


@register(static=("density",))
def sce(density: Any = 1.0, factor: Any = 1.0, floor: Any = 0.0, exact: bool = False) -> Merge:
    """SCE: select the entries that vary most, calculate a weight for each model, erase minorities.

    Formula: theta_0 + factor * tau*, tau* of `select_calculate_erase`.

    Args:
        density: share of entries selected in each leaf (the paper's tau, "select_topk"), in [0, 1].
        factor: scaling of the merged task vector.
        floor, exact: see `select_calculate_erase`.

    Memory: T x the leaf.

    Source: Wan et al., FuseChat, 2024, section 3.2.
    """
    return chain(select_calculate_erase(density, floor, exact), scale(factor))


@register
def ram(epsilon: Any = 1e-5, factor: Any = 1.0) -> Merge:
    """RAM: changes that one model alone made are kept whole, shared ones averaged.

    Formula: theta_0 + factor * tau*, tau* of `unique_or_mean`.

    Memory: 1.25 x the model.

    Source: Yuan et al., Behavior Knowledge Merge in Reinforced Agentic Models, 2026.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0, 2.0])}, {"w": np.array([0.0, 4.0])}]
        >>> jm.merge(jm.ram(), {"w": np.zeros(2)}, models)["w"]
        array([1., 3.])
    """
    return chain(unique_or_mean(epsilon), scale(factor))


@register
def ram_plus(
    r: Any = 0.1,
    alpha: Any = 0.2,
    epsilon: Any = 1e-5,
    scope: Literal["global", "leaf"] = "global",
    factor: Any = 1.0,
) -> Merge:
    """RAM+: as RAM, with a model's own changes enlarged the more it shares with others.

    Formula: theta_0 + factor * tau*, tau* of `unique_or_mean_rescaled`.

    Memory: T x the model; T x the leaf with scope="leaf" (the tensor-local form of toolkits).

    Source: Yuan et al., Behavior Knowledge Merge in Reinforced Agentic Models, 2026.
    """
    return chain(unique_or_mean_rescaled(r, alpha, epsilon, scope), scale(factor))


@register
def nearswap(t: Any) -> Merge:
    """NearSwap: move to the other model where it is near, by no more than t anywhere.

    Formula: w = min(1, t / |theta_1 - theta_0|), w theta_1 + (1 - w) theta_0, which is
    theta_0 + sign(tau) min(|tau|, t).  Takes one model besides the base.

    Args:
        t: the largest change of an entry, at least 0.

    Memory: 1 x the model.

    Source: alchemonaut, QuartetAnemoi-70B, 2024 (model card).
    """
    return chain(clip(t), add())._replace(models=(1, 1))


@register
def arcee_fusion(axis: int = -1) -> Merge:
    """Arcee Fusion: adopt from the other model the changes that matter, by a threshold a leaf.

    Formula: theta_0 + m tau, m of `keep_important`.  Takes one model besides the base.

    Args:
        axis: the axis of a row: -1 as in torch checkpoints, 0 for [in, out] kernels.

    Memory: 1 x the model.

    Source: mergekit 0.1's method of that name, by its published description.
    """
    return chain(keep_important(axis), add())._replace(models=(1, 1))
