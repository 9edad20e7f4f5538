"""Published methods that add up changes: task arithmetic, averages, MagMax, RandMix."""

from __future__ import annotations

import jax.numpy as jnp

from jaxmerge.core.composition import chain
from jaxmerge.core.ranges import Number, Numbers
from jaxmerge.core.registry import record, register
from jaxmerge.core.types import Merge, zeros
from jaxmerge.folds.elementwise import add, linear, max_magnitude, mean
from jaxmerge.numerics import hash_rng
from jaxmerge.transforms.scaling import scale

__all__ = ["analogy", "average", "magmax", "randmix", "task_arithmetic"]


@register
def task_arithmetic(
    factor: Number = 0.4, weights: Numbers | None = None, normalize: bool = False
) -> Merge:
    """Task arithmetic: the scaled sum of the task vectors.

    Formula: theta_0 + factor * sum_t w_t tau_t, divided by sum_t w_t if `normalize`.

    Args:
        factor: lambda of the paper; negative, it forgets the tasks (negation).
        weights: a number for each model; None for 1 each.
        normalize: divide by the sum of the weights.

    Memory: 1 x the model.

    Source: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0])}, {"w": np.array([2.0])}]
        >>> jm.merge(jm.task_arithmetic(0.5), {"w": np.zeros(1)}, models)["w"]
        array([1.5])
        >>> jm.merge(jm.task_arithmetic(-1.0), {"w": np.zeros(1)}, models)["w"]
        array([-3.])
    """
    return chain(weighted_sum(weights, normalize), scale(factor))


@register
def analogy(factor: Number = 1.0) -> Merge:
    """Task analogy: "A is to B as C is to D" builds D from the models of A, B and C, in this order.

    Formula: theta_0 + factor * (tau_C + tau_B - tau_A).

    An instruction vector is added to a domain model by A = the base, B = the instruction-tuned
    model, C = the domain model.

    Args:
        factor: scales the sum; any number.

    Memory: 1 x the model.

    Source: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, section 5; Hirano and
    Imajo, 2024, for the instruction vector.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> a, b, c = ({"w": np.array([v])} for v in (1.0, 2.0, 10.0))
        >>> jm.merge(jm.analogy(), {"w": np.zeros(1)}, [a, b, c])["w"]
        array([11.])
    """
    three = chain(linear([-1.0, 1.0, 1.0]), scale(factor))
    return three._replace(models=(3, 3))


@register
def average(factor: Number = 1.0) -> Merge:
    """The mean of the task vectors, scaled: Avg of the MagMax paper at factor 1.

    Formula: theta_0 + factor * (1/T) sum_t tau_t.

    Args:
        factor: scales the mean; any number.

    Memory: 1 x the model.

    Source: Wortsman et al., Model soups, ICML 2022.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0])}, {"w": np.array([3.0])}]
        >>> jm.merge(jm.average(0.5), {"w": np.zeros(1)}, models)["w"]
        array([1.])
    """
    return chain(mean(), scale(factor))


@register
def magmax(factor: Number = 0.5) -> Merge:
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
def randmix(factor: Number = 1.0) -> Merge:
    """RandMix: for every parameter the change of a model drawn at random, scaled; needs a key.

    Formula: theta_0 + factor * tau*, tau*[p] = tau_k[p], k uniform among the models for every p.

    Args:
        factor: scales what was drawn; any number.

    Memory: 1 x the model.

    Source: the baseline of Marczak et al., MagMax, ECCV 2024.  Differs: a reservoir, model t taken
    with probability 1/t, so that the number of models need not be known.

    Example:
        >>> import jax, jaxmerge as jm, numpy as np
        >>> models = [{"w": np.full(4, 1.0)}, {"w": np.full(4, 2.0)}]
        >>> out = jm.merge(jm.randmix(), {"w": np.zeros(4)}, models, key=jax.random.key(0))["w"]
        >>> bool(np.isin(out, (1.0, 2.0)).all())
        True
    """
    return chain(random_mix(), scale(factor))


def weighted_sum(weights: Numbers | None, normalize: bool = False) -> Merge:
    """The plain sum, or the weighted one where weights are given."""
    if weights is None:
        return mean() if normalize else add()
    return linear(weights, normalize)


@record
def random_mix() -> Merge:
    """Entry by entry a uniform pick: model t replaces the cell with probability 1/t."""

    def update(cell, x, ctx):
        return jnp.where(hash_rng.coin(ctx.key, 1 / (ctx.step + 1), x.shape), x, cell)

    return Merge(zeros, update, stochastic=True)
