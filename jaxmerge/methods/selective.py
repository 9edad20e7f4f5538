"""Published methods that decide entry by entry what to take: SCE, RAM, NearSwap, Arcee Fusion.

SCE and RAM+ keep all rows of a leaf (T x the leaf; one leaf at a time in batch and file merges),
because which entries count is known only when all models have been seen.  RAM needs no more than
a sum and a count.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmerge.core.composition import chain
from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.ranges import Number
from jaxmerge.core.registry import record, register
from jaxmerge.core.types import (
    Array,
    Measure,
    Merge,
    collected,
    concrete,
    leaf_size,
    leaf_sum,
    zeros,
)
from jaxmerge.folds.elementwise import add
from jaxmerge.numerics.measures import largest
from jaxmerge.transforms.scaling import clip, scale
from jaxmerge.transforms.sparsify import keep_important

__all__ = ["arcee_fusion", "nearswap", "ram", "ram_plus", "sce"]


@register(static=("density",))
def sce(
    density: Number = 1.0, factor: Number = 1.0, floor: Number = 0.0, exact: bool = False
) -> Merge:
    """SCE: select the entries that vary most, calculate a weight for each model, erase minorities.

    Formula: with var[p] the variance of tau_t[p] over the models, keep the floor(density m) entries
    of largest variance of the m where it is not zero; w_t = |tau_t|^2 / sum_s |tau_s|^2 on what is
    kept of the leaf; theta_0 + factor * sum_{t in A} w_t tau_t[p] / sum_{t in A} w_t over the
    models A that agree with the sign of sum_t tau_t[p].

    Args:
        density: share of entries selected in each leaf (the paper's tau, "select_topk"), in [0, 1];
            entries that tie with the last are kept too.
        factor: scaling of the merged task vector.
        floor: where the sum over models of the mean of tau^2 is below it, all models weigh the
            same.
        exact: select no more entries than the density says: of equal ones the first in the leaf.

    Memory: T x the leaf.

    Source: Wan et al., FuseChat, 2024, section 3.2.  Differs: tensor-wise toolkits use
    ``floor=1e-6``, by which ordinary fine-tunes are averaged with equal weights.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([3.0, 0.0])}, {"w": np.array([0.0, 4.0])}]
        >>> jm.merge(jm.sce(density=0.5), {"w": np.zeros(2)}, models)["w"]
        array([0., 4.])
    """
    return chain(select_calculate_erase(density, floor, exact), scale(factor))


@register
def ram(epsilon: Number = 1e-5, factor: Number = 1.0) -> Merge:
    """RAM: changes that one model alone made are kept whole, shared ones averaged.

    Formula: A[p] = {t : |tau_t[p]| > epsilon}; theta_0 + factor * sum_{t in A} tau_t[p] /
    max(1, |A|).

    Args:
        epsilon: the change from which an entry counts as moved, at least 0.
        factor: scales the merged task vector; any number.

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
    r: Number = 0.1,
    alpha: Number = 0.2,
    epsilon: Number = 1e-5,
    scope: Literal["global", "leaf"] = "global",
    factor: Number = 1.0,
) -> Merge:
    """RAM+: as RAM, with a model's own changes enlarged the more it shares with others.

    Formula: `ram`, with what t alone moved multiplied by 1 + r clip(rho_t, 0, alpha), rho_t =
    (entries that t moved with others) / (entries that t alone moved).

    Args:
        r: rate of the enlargement, at least 0.
        alpha: the greatest rho that counts, at least 0.
        epsilon: the change from which an entry counts as moved, at least 0.
        scope: "global" counts over the whole model (the paper), "leaf" in each leaf.
        factor: scales the merged task vector; any number.

    Memory: T x the model; T x the leaf with scope="leaf" (the tensor-local form of toolkits).

    Source: Yuan et al., Behavior Knowledge Merge in Reinforced Agentic Models, 2026 (RAM+).
    With ``scope="leaf"`` it is `ramplus_tl` of mergekit 0.1.4, equal to 2e-7 on sparse fine-tunes.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0, 2.0])}, {"w": np.array([0.0, 4.0])}]
        >>> jm.merge(jm.ram_plus(), {"w": np.zeros(2)}, models)["w"].round(3)
        array([1.02, 3.  ])
    """
    return chain(unique_or_mean_rescaled(r, alpha, epsilon, scope), scale(factor))


@register
def nearswap(t: Number) -> Merge:
    """NearSwap: move to the other model where it is near, by no more than t anywhere.

    Formula: w = min(1, t / |theta_1 - theta_0|), w theta_1 + (1 - w) theta_0, which is
    theta_0 + sign(tau) min(|tau|, t).  Takes one model besides the base.

    Args:
        t: the largest change of an entry, at least 0.

    Memory: 1 x the model.

    Source: alchemonaut, QuartetAnemoi-70B, 2024 (model card).

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> jm.merge(jm.nearswap(0.5), {"w": np.zeros(2)}, [{"w": np.array([0.2, -3.0])}])["w"]
        array([ 0.2, -0.5])
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

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> model = {"w": np.array([[1.0, 2.0, 3.0, 9.0]])}
        >>> jm.merge(jm.arcee_fusion(), {"w": np.zeros((1, 4))}, [model])["w"]
        array([[0., 0., 0., 9.]])
    """
    return chain(keep_important(axis), add())._replace(models=(1, 1))


@record(static=("density",))
def select_calculate_erase(
    density: Number = 1.0, floor: Number = 0.0, exact: bool = False
) -> Merge:
    """The fold of `sce`."""
    check_range("density", density, 0, 1, one=True)
    check_range("floor", floor, 0, one=True)

    def reduce(rows, ctx):
        many = len(rows)
        if not concrete(density) or density < 1:
            middle = sum(rows) / many
            spread = jax.lax.stop_gradient(sum(jnp.square(x - middle) for x in rows) / many)
            count = share_of(density, leaf_sum(jnp.not_equal(spread, 0).astype(jnp.int32)))
            selected = largest(spread, count, exact) | (jnp.asarray(density) >= 1)
            rows = [jnp.where(selected, x, 0) for x in rows]
        size = leaf_size(rows[0]).astype(rows[0].dtype)
        energy = jnp.stack([leaf_sum(jnp.square(x)) / size for x in rows])
        total = jnp.sum(energy)
        small = (total < floor) | (total == 0)
        weight = jnp.where(small, 1 / many, energy / jnp.where(small, 1, total))
        plus = sum(rows) >= 0
        agree = [
            jnp.where(jnp.where(plus, x > 0, x < 0), w, 0)
            for x, w in zip(rows, weight, strict=True)
        ]
        share = sum(agree)
        merged = sum(w * x for w, x in zip(agree, rows, strict=True))
        return merged / jnp.where(share == 0, 1, share)

    return collected(reduce)


@record
def unique_or_mean(epsilon: Number = 1e-5) -> Merge:
    """The fold of `ram`."""
    check_range("epsilon", epsilon, 0, one=True)

    def update(cell, x, ctx):
        moved = jnp.abs(x) > epsilon
        return cell[0] + jnp.where(moved, x, 0), cell[1] + moved.astype(jnp.uint8)

    return Merge(
        init=lambda leaf: (zeros(leaf), zeros(leaf, jnp.uint8)),
        update=update,
        finalize=lambda cell, ctx: cell[0] / jnp.maximum(cell[1], 1),
        combine=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        models=(1, 255),
        elementwise=True,
    )


@record
def unique_or_mean_rescaled(
    r: Number = 0.1,
    alpha: Number = 0.2,
    epsilon: Number = 1e-5,
    scope: Literal["global", "leaf"] = "global",
) -> Merge:
    """The fold of `ram_plus`; with scope 'global' the counts come from all leaves."""
    for name, value in (("r", r), ("alpha", alpha), ("epsilon", epsilon)):
        check_range(name, value, 0, one=True)

    def count(rows, summary=None, turn=0):
        moved, alone = _moved(rows, epsilon)
        number = lambda mask: leaf_sum(mask.astype(jnp.int32))
        pairs = zip(moved, alone, strict=True)
        shared, unique = zip(*((number(m & ~a), number(a)) for m, a in pairs), strict=True)
        return jnp.stack([jnp.stack(shared), jnp.stack(unique)])

    def reduce(rows, ctx):
        moved, alone = _moved(rows, epsilon)
        shared, unique = count(rows) if scope == "leaf" else ctx.measured
        rho = jnp.clip(shared / jnp.maximum(unique, 1), 0, alpha).astype(rows[0].dtype)
        total = sum(
            jnp.where(a, (1 + r * p) * x, jnp.where(m, x, 0))
            for x, m, a, p in zip(rows, moved, alone, rho, strict=True)
        )
        return total / jnp.maximum(sum(m.astype(jnp.uint8) for m in moved), 1)

    closing = Measure(lambda: None, count, by_entry=True) if scope == "global" else None
    return collected(reduce, models=(1, 255), closing=closing)


def share_of(density: Any, count: Array) -> Array:
    """floor(density * count); in integers, exact beyond 2^24, unless the density is traced."""
    if not concrete(density):
        return jnp.floor(density * count + 1e-6).astype(jnp.int32)
    part = Fraction(density).limit_denominator(40000)
    a, b = part.numerator, part.denominator
    return (count // b) * a + (count % b) * a // b


def _moved(rows: tuple[Array, ...], epsilon: Any) -> tuple[list[Array], list[Array]]:
    moved = [jnp.abs(x) > epsilon for x in rows]
    once = sum(m.astype(jnp.uint8) for m in moved) == 1
    return moved, [m & once for m in moved]
