"""Published methods that drop entries of the task vectors first: TIES and its relatives."""

from __future__ import annotations

from typing import Literal

from jaxmerge.core.composition import chain
from jaxmerge.core.ranges import Number, Numbers
from jaxmerge.core.registry import register
from jaxmerge.core.types import Merge
from jaxmerge.folds.signs import disjoint_mean
from jaxmerge.methods.arithmetic import weighted_sum
from jaxmerge.transforms.random import drop_by_rank, drop_random
from jaxmerge.transforms.scaling import scale
from jaxmerge.transforms.sparsify import drop_outliers, trim

__all__ = [
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare",
    "dare_ties",
    "della",
    "della_linear",
    "ties",
]

Scope = Literal["global", "leaf"]
Join = Literal["mean", "sum", "max"]
Elect = Literal["mass", "count", "fraction"]
Tie = Literal["majority", "positive"]
Rescale = Literal["inverse", "l1"] | None


@register
def ties(
    density: Numbers = 0.2,
    factor: Number = 1.0,
    scope: Scope = "global",
    merge: Join = "mean",
    weights: Numbers | None = None,
    elect: Elect = "mass",
    tie: Tie = "majority",
    inclusive: bool | None = None,
    rescale: Literal["l1"] | None = None,
    exact: bool = False,
) -> Merge:
    """TIES-Merging: trim each task vector, elect a sign for every entry, merge what agrees.

    Formula: theta_0 + factor * disjoint_mean(trim(tau_1), ..., trim(tau_T)); see `trim` and
    `disjoint_mean` for the arguments that are not listed here.

    Args:
        density: share of entries kept, in [0, 1]; a number, or one for each model.
        factor: lambda of the paper, 1 for the mean.
        scope: "global" trims over the whole flattened model, as the official code; "leaf" trims
            each leaf on its own.
        merge: "mean" (the paper), "sum" or "max" of the entries that agree with the sign.
        weights: a number for each model, which enters the election and the mean.
        elect, tie: how votes are counted, see `disjoint_mean`.
        inclusive, rescale, exact: which entries the trim keeps, see `trim`.

    Memory: 2.5 x the model; 4 x with weights or for "max"; 2 x for "sum".

    Source: Yadav et al., TIES-Merging, NeurIPS 2023.

    Differs: merge toolkits that work tensor by tensor mean ``ties(density, factor, scope="leaf",
    weights=[...], tie="positive", exact=True)``; the authors' threshold keeps all entries that tie
    with the last one, and so does the default here.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([4.0, 0.1, -2.0, 3.0])}, {"w": np.array([2.0, 0.2, 5.0, 0.1])}]
        >>> jm.merge(jm.ties(density=0.75, scope="leaf"), {"w": np.zeros(4)}, models)["w"]
        array([3. , 0.2, 5. , 3. ])
    """
    fold = disjoint_mean(merge, weights, elect, tie)
    return chain(trim(density, scope, inclusive, rescale, exact), fold, scale(factor))


@register
def dare(
    density: Numbers = 0.1,
    factor: Number = 0.4,
    rescale: Rescale = "inverse",
    weights: Numbers | None = None,
    normalize: bool = False,
    masked: bool = False,
) -> Merge:
    """DARE with task arithmetic: drop changes at random, rescale, add up; needs a key.

    Formula: theta_0 + factor * sum_t w_t m_t tau_t / density, m_t ~ Bernoulli(density).

    Args:
        density: share of entries kept (the paper's 1 - p), in [0, 1]; or one for each model.
        factor: scaling of the sum.
        rescale: "inverse" (the paper, unbiased), "l1" keeps the L1 norm of each leaf, None.
        weights: a number for each model; None for 1 each.
        normalize: divide by the sum of the weights.
        masked: take the masks from ``extras=[{"mask": tree}, ...]``, see `drop_random`.

    Memory: 1 x the model.

    Source: Yu et al., Language Models are Super Mario, ICML 2024.

    Differs: merge toolkits that keep the norm mean ``rescale="l1"``.

    Example:
        >>> import jax, jaxmerge as jm, numpy as np
        >>> models = [{"w": np.ones(8)}, {"w": np.ones(8)}]
        >>> method, key = jm.dare(0.5, factor=0.5), jax.random.key(0)
        >>> out = jm.merge(method, {"w": np.zeros(8)}, models, key=key)["w"]
        >>> sorted({float(x) for x in out})
        [0.0, 1.0, 2.0]
    """
    fold = weighted_sum(weights, normalize)
    return chain(drop_random(density, rescale, masked), fold, scale(factor))


@register
def dare_ties(
    density: Numbers = 0.1,
    factor: Number = 1.0,
    rescale: Rescale = "inverse",
    merge: Join = "mean",
    weights: Numbers | None = None,
    elect: Elect = "mass",
    tie: Tie = "majority",
    trim_density: Numbers | None = None,
) -> Merge:
    """DARE, then the elected signs of TIES; needs a key.

    Formula: theta_0 + factor * disjoint_mean(m_t tau_t / density), m_t ~ Bernoulli(density).

    Args:
        density: share of entries kept at random, in [0, 1]; or one for each model.
        factor: scaling of the merged task vector.
        rescale: "inverse" (the paper), "l1" keeps the L1 norm of each leaf, None.
        merge, weights, elect, tie: of `disjoint_mean`.
        trim_density: also trim by magnitude over the whole model, as full TIES does, to this share
            of all entries; None for the random drop alone.

    Memory: 2.5 x the model; see `ties`.

    Source: Yu et al., ICML 2024, with Yadav et al., NeurIPS 2023.

    Differs: "DARE-TIES" has no single definition.  Drop, elect and mean, without a trim, is that
    of Yadav et al., What Matters for Model Merging at Scale, 2024; merge toolkits use
    ``rescale="l1", merge="sum", tie="positive"``, others run all of TIES (`trim_density`).

    Example:
        >>> import jax, jaxmerge as jm, numpy as np
        >>> models = [{"w": np.ones(8)}, {"w": np.ones(8)}]
        >>> method, key = jm.dare_ties(0.5), jax.random.key(0)
        >>> out = jm.merge(method, {"w": np.zeros(8)}, models, key=key)["w"]
        >>> sorted({float(x) for x in out})
        [0.0, 2.0]
    """
    fold = disjoint_mean(merge, weights, elect, tie)
    more = () if trim_density is None else (trim(trim_density),)
    return chain(drop_random(density, rescale), *more, fold, scale(factor))


@register
def della(
    density: Numbers = 0.5,
    epsilon: Numbers = 0.3,
    factor: Number = 1.0,
    rescale: Rescale = "inverse",
    merge: Join = "mean",
    weights: Numbers | None = None,
    elect: Elect = "mass",
    tie: Tie = "majority",
    axis: int = -1,
) -> Merge:
    """DELLA-Merging: drop small changes more often than large ones, elect signs, average.

    Formula: theta_0 + factor * disjoint_mean(m_t tau_t / q_t), m_t[p] ~ Bernoulli(q_t[p]), q_t of
    `drop_by_rank`.  Needs a key.

    Args:
        density: mean share of entries kept, in [0, 1]; or one for each model.
        epsilon: width of the window of probabilities around the density.
        factor: scaling of the merged task vector.
        rescale: "inverse" (the paper), "l1" keeps the L1 norm of each leaf, None.
        merge, weights, elect, tie: of `disjoint_mean`.
        axis: along which entries are ranked; -1 for [out, in] kernels, 0 for [in, out].

    Memory: 2.5 x the model; see `ties`.

    Source: Deep et al., DELLA-Merging, 2024.

    Differs: merge toolkits mean ``rescale="l1", tie="positive"`` and by their epsilon half the
    width of the window.

    Example:
        >>> import jax, jaxmerge as jm, numpy as np
        >>> models = [{"w": np.ones(8)}, {"w": np.ones(8)}]
        >>> method, key = jm.della(0.5, epsilon=0.0), jax.random.key(0)
        >>> out = jm.merge(method, {"w": np.zeros(8)}, models, key=key)["w"]
        >>> sorted({float(x) for x in out})
        [0.0, 2.0]
    """
    fold = disjoint_mean(merge, weights, elect, tie)
    return chain(drop_by_rank(density, epsilon, rescale, axis), fold, scale(factor))


@register
def della_linear(
    density: Numbers = 0.5,
    epsilon: Numbers = 0.3,
    factor: Number = 0.4,
    rescale: Rescale = "inverse",
    weights: Numbers | None = None,
    normalize: bool = False,
    axis: int = -1,
) -> Merge:
    """DELLA's drop with task arithmetic, without the election of signs; needs a key.

    Formula: theta_0 + factor * sum_t w_t m_t tau_t / q_t, q_t of `drop_by_rank`.

    Args:
        density, epsilon, axis: of the drop, see `della`.
        factor: scaling of the sum.
        rescale: "inverse" (the paper), "l1" keeps the L1 norm of each leaf, None.
        weights: a number for each model; None for 1 each.
        normalize: divide by the sum of the weights.

    Memory: 1 x the model.

    Source: Deep et al., DELLA-Merging, 2024, without step 2.

    Example:
        >>> import jax, jaxmerge as jm, numpy as np
        >>> models = [{"w": np.ones(8)}, {"w": np.ones(8)}]
        >>> method, key = jm.della_linear(0.5, epsilon=0.0, factor=0.5), jax.random.key(0)
        >>> out = jm.merge(method, {"w": np.zeros(8)}, models, key=key)["w"]
        >>> sorted({float(x) for x in out})
        [0.0, 1.0, 2.0]
    """
    fold = weighted_sum(weights, normalize)
    return chain(drop_by_rank(density, epsilon, rescale, axis), fold, scale(factor))


@register
def breadcrumbs(
    density: Numbers = 0.143,
    gamma: Numbers = 0.007,
    factor: Number = 0.3,
    scope: Scope = "leaf",
    weights: Numbers | None = None,
    normalize: bool = False,
    rescale: Literal["l1"] | None = None,
    exact: bool = False,
) -> Merge:
    """Model Breadcrumbs: drop the largest and the small changes of each layer, add up the rest.

    Formula: theta_0 + factor * sum_t w_t m_t tau_t, m_t of `drop_outliers`.

    Args:
        density: share of entries kept, in [0, 1]; or one for each model.
        gamma: share of the largest that is dropped, in [0, 1]; or one for each model.  The paper
            masks the smallest beta = 85 % and the largest 0.7 %: density 0.143, gamma 0.007.
        factor: alpha of the paper, 0.3.
        scope: "leaf" (the paper) or "global".
        weights: a number for each model; None for 1 each.
        normalize: divide by the sum of the weights.
        rescale: "l1" keeps the L1 norm of each leaf.
        exact: keep no more entries than the density says, as in `drop_outliers`.

    Memory: 1 x the model.

    Source: Davari and Belilovsky, Model Breadcrumbs, ECCV 2024.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0, -4.0, 3.0, -2.0])}]
        >>> jm.merge(jm.breadcrumbs(0.5, gamma=0.25, factor=1.0), {"w": np.zeros(4)}, models)["w"]
        array([ 0.,  0.,  3., -2.])
    """
    fold = weighted_sum(weights, normalize)
    return chain(drop_outliers(density, gamma, scope, rescale, exact), fold, scale(factor))


@register
def breadcrumbs_ties(
    density: Numbers = 0.143,
    gamma: Numbers = 0.007,
    factor: Number = 1.0,
    scope: Scope = "leaf",
    merge: Join = "mean",
    weights: Numbers | None = None,
    elect: Elect = "mass",
    tie: Tie = "majority",
    rescale: Literal["l1"] | None = None,
) -> Merge:
    """Model Breadcrumbs' mask, then the elected signs of TIES.

    Formula: theta_0 + factor * disjoint_mean(m_t tau_t), m_t of `drop_outliers`.

    Args:
        density, gamma, scope, rescale: of the mask, see `breadcrumbs`.
        factor: scaling of the merged task vector.
        merge, weights, elect, tie: of `disjoint_mean`.

    Memory: 2.5 x the model; see `ties`.

    Source: Davari and Belilovsky, ECCV 2024, with Yadav et al., NeurIPS 2023.

    Differs: merge toolkits mean ``merge="sum", tie="positive"``.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0, -4.0, 3.0, -2.0])}]
        >>> jm.merge(jm.breadcrumbs_ties(0.5, gamma=0.25), {"w": np.zeros(4)}, models)["w"]
        array([ 0.,  0.,  3., -2.])
    """
    fold = disjoint_mean(merge, weights, elect, tie)
    return chain(drop_outliers(density, gamma, scope, rescale), fold, scale(factor))
