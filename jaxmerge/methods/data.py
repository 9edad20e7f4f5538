"""Published methods that look at data, or could: Fisher merging, RegMean, Localize-and-Stitch."""

from __future__ import annotations

from typing import Any

from jaxmerge.core.composition import chain
from jaxmerge.core.registry import register
from jaxmerge.core.types import Merge
from jaxmerge.folds.weighted import fisher_mean, gram_mean, overlap_mean
from jaxmerge.transforms.scaling import scale
from jaxmerge.transforms.sparsify import trim

__all__ = ["fisher_merging", "localize_and_stitch", "regmean", "stitch"]


@register
def fisher_merging(weights: Any = 1.0, factor: Any = 1.0, floor: float = 1e-10) -> Merge:
    """Fisher merging: the mean of the models, every entry weighted by its Fisher information.

    Formula: theta = sum_t c_t F_t theta_t / sum_t c_t F_t.

    Args:
        weights: c_t, one number >= 0 or one for each model.  The model-level normalisation is
            c_t = 1 / |F_t|: pass `jaxmerge.statistics.normalised` Fishers instead.
        factor: scales the merged task vector.
        floor: added to every F_t.

    Memory: 2 x the model.

    Source: Matena & Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0, 1.0])}, {"w": np.array([3.0, 3.0])}]
        >>> fishers = [{"fisher": {"w": np.array([3.0, 1.0])}}, {"fisher": {"w": np.ones(2)}}]
        >>> merged = jm.merge(jm.fisher_merging(), {"w": np.zeros(2)}, models, extras=fishers)
        >>> merged["w"].round(4)
        array([1.5, 2. ])
    """
    return chain(fisher_mean(weights, floor), scale(factor))


@register
def regmean(off_diagonal: float = 0.9, ridge: float = 0.0, axis: int = 0) -> Merge:
    """RegMean: every dense kernel solves the regression of its inputs on the models' own outputs.

    Formula: W = (sum_t G_t)^-1 sum_t G_t W_t, G_t = the input Gram matrix with its off-diagonal
    entries multiplied by `off_diagonal`; all other leaves are averaged.

    Args:
        off_diagonal: in [0, 1]; the paper takes 0.9 (0.1 for T5), MergeBench 0.5.
        ridge: >= 0, relative to the mean diagonal.
        axis: which axis of a kernel is "in": 0 in Flax, 1 in torch's layout.

    Memory: the Gram matrices of one model and 2 x the model.

    Source: Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023.
    """
    return gram_mean(off_diagonal, ridge, axis)


@register(static=("density",))
def localize_and_stitch(density: float = 0.1, factor: Any = 1.0) -> Merge:
    """Dataless Localize-and-Stitch: each task vector's largest entries, averaged where they meet.

    Formula: m_t = the floor(density n) entries of largest |tau_t| over the whole model, n in all;
    theta_0 + factor * sum_t m_t tau_t / max(1, sum_t m_t).

    Args:
        density: share kept of each task vector, in (0, 1]; the paper takes 0.05 to 0.1.

    Memory: 1.25 x the model.

    Source: He et al., Localize-and-Stitch: Efficient Model Merging via Sparse Task Arithmetic,
    TMLR 2025.  With learned masks: `jaxmerge.solvers.localize` and `stitch`.
    """
    return chain(trim(density, inclusive=False), overlap_mean(), scale(factor))


@register
def stitch(factor: Any = 1.0) -> Merge:
    """Stitching with given masks: the mean of the task vectors over the models that claim an entry.

    Formula: theta_0 + factor * sum_t m_t tau_t / max(1, sum_t m_t).

    Side information: ``extras=[{"mask": tree of booleans}, ...]``.

    Memory: 1.25 x the model.

    Source: He et al., Localize-and-Stitch, TMLR 2025, section 3.3.
    """
    return chain(overlap_mean(masked=True), scale(factor))
