"""Published methods that add up changes: task arithmetic, averages, MagMax, RandMix."""

from __future__ import annotations

from typing import Any

from jaxmerge.combine import chain
from jaxmerge.core import Merge
from jaxmerge.merges.elementwise import add, max_magnitude, mean, random_mix
from jaxmerge.spec import register
from jaxmerge.transforms.scaling import scale

__all__ = ["average", "magmax", "randmix", "task_arithmetic"]


@register
def task_arithmetic(factor: Any = 0.4) -> Merge:
    """Task arithmetic: the scaled sum of the task vectors.

    Formula: theta_0 + factor * sum_t tau_t.  A negative factor forgets a task (negation).

    Memory: 1 x the model.

    Source: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023.
    """
    return chain(add(), scale(factor))


@register
def average(factor: Any = 1.0) -> Merge:
    """The mean of the task vectors, scaled: Avg of the MagMax paper at factor 1.

    Memory: 1 x the model.
    """
    return chain(mean(), scale(factor))


@register
def magmax(factor: Any = 0.5) -> Merge:
    """MagMax: for every parameter the change of largest magnitude, scaled.

    Formula: theta_0 + factor * tau*, tau*[p] = tau_k[p], k = argmax_t |tau_t[p]|; on an exact tie
    of magnitude the later model wins, so the order of models matters nowhere else.

    Args:
        factor: lambda of the paper, 0.5.

    Memory: 1 x the model, however many models.

    Source: Marczak et al., MagMax: Leveraging Model Merging for Seamless Continual Learning,
    ECCV 2024, section 4.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([4.0, -1.0])}, {"w": np.array([-2.0, -6.0])}]
        >>> jm.merge(jm.magmax(), {"w": np.zeros(2)}, models)["w"]
        array([ 2., -3.])
    """
    return chain(max_magnitude(), scale(factor))


@register
def randmix(factor: Any = 1.0) -> Merge:
    """RandMix: for every parameter the change of a model drawn at random, scaled; needs a key.

    Memory: 1 x the model.

    Source: the baseline of Marczak et al., MagMax, ECCV 2024.
    """
    return chain(random_mix(), scale(factor))
