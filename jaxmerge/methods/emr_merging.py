"""EMR-Merging: one unified model, and for each task a mask and a number that give its own back."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxmerge.core import names
from jaxmerge.core.registry import register
from jaxmerge.core.types import Array, Measure, Merge, Tree, zeros
from jaxmerge.drivers.leaf import delta
from jaxmerge.folds.signs import disjoint_mean
from jaxmerge.methods.masks import check_task

__all__ = ["Modulator", "emr", "emr_task", "modulate", "modulator"]


@register
def emr() -> Merge:
    """EMR-Merging's unified model: for every entry the largest change of the elected sign.

    Formula: theta_0 + tau_uni, tau_uni[p] = the entry of largest magnitude among the tau_t[p] with
    the sign of sum_t tau_t[p].  Each task then has a mask and a number: `modulator`, `emr_task`.

    Memory: 4 x the model.

    Source: Huang et al., EMR-Merging: Tuning-Free High-Performance Model Merging, NeurIPS 2024.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([3.0, -1.0])}, {"w": np.array([-1.0, -2.0])}]
        >>> jm.merge(jm.emr(), {"w": np.zeros(2)}, models)["w"]
        array([ 3., -2.])
    """
    return disjoint_mean("max", tie="positive")


@register
def emr_task(task: int = 0) -> Merge:
    """EMR-Merging's model of one task: the unified vector under the task's mask and rescaler.

    Formula: theta_0 + lambda_t M_t tau_uni, M_t = [tau_t tau_uni > 0], lambda_t = sum |tau_t| /
    sum |M_t tau_uni| over the whole model.  With one model it is that model.

    Args:
        task: the position of the task among the models, from 0.

    Memory: 5 x the model.

    Source: Huang et al., EMR-Merging, NeurIPS 2024.  Differs: sums run over entries, as in the
    paper's formula; released code averages over tensors first.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([3.0, -1.0])}, {"w": np.array([-1.0, -2.0])}]
        >>> jm.merge(jm.emr_task(task=1), {"w": np.zeros(2)}, models)["w"]  # |tau| = 3, |M tau| = 2
        array([ 0., -3.])
    """
    check_task(task)
    unify = disjoint_mean("max", tie="positive")

    def update(cell, x, ctx):
        return unify.update(cell[0], x, ctx), jnp.where(ctx.step == task, x, cell[1])

    def masked(cell, ctx=None):
        unified = unify.finalize(cell[0], ctx)
        return jnp.where(cell[1] * jnp.sign(unified) > 0, unified, 0)

    def observe(cell, summary, turn):
        return jnp.stack([jnp.sum(jnp.abs(cell[1])), jnp.sum(jnp.abs(masked(cell)))])

    def finalize(cell, ctx):
        own, denom = ctx.measured
        return masked(cell) * jnp.where(denom > 0, own / jnp.where(denom > 0, denom, 1), 1)

    return Merge(
        init=lambda leaf: (unify.init(leaf), zeros(leaf)),
        update=update,
        finalize=finalize,
        combine=lambda a, b: (unify.combine(a[0], b[0]), a[1] + b[1]),
        closing=Measure(lambda: None, observe, by_entry=True),
        models=(task + 1, 255),
    )


class Modulator(NamedTuple):
    """What EMR stores of one task besides the unified model.

    Attributes:
        mask: leaf name -> bool array, one bit of information an entry.
        rescaler: a number.
    """

    mask: dict[str, Array]
    rescaler: Array


def modulator(base: Tree, unified: Tree, model: Tree) -> Modulator:
    """The mask and the rescaler of one task: M = [tau tau_uni > 0], sum |tau| / sum |M tau_uni|.

    Args:
        base: theta_0, a pytree.
        unified: the result of `emr` on all models, a tree like the base.
        model: the model of the task, a tree like the base.

    Raises:
        ValueError: leaves that do not fit the base, all named.

    Example:
        >>> base, unified, model = ({"w": jnp.array([x, -x])} for x in (0.0, 2.0, 3.0))
        >>> own = modulator(base, unified, model)
        >>> own.mask["w"].tolist(), float(own.rescaler)
        ([True, True], 1.5)
    """
    base, unified, model = (names.flatten(x)[0] for x in (base, unified, model))
    names.check_same(base, unified, who="the unified model")
    names.check_same(base, model, who="the model of the task")
    mask, own, denom = {}, 0.0, 0.0
    for n in base:
        if names.is_float(base[n]):
            tau, shared = (delta(jnp.asarray(m[n]), jnp.asarray(base[n])) for m in (model, unified))
            mask[n] = jnp.sign(tau) * jnp.sign(shared) > 0
            own, denom = (
                own + jnp.sum(jnp.abs(tau)),
                denom + jnp.sum(jnp.abs(shared * mask[n])),
            )
    return Modulator(mask, jnp.where(denom > 0, own / jnp.where(denom > 0, denom, 1), 1))


def modulate(base: Tree, unified: Tree, own: Modulator) -> Tree:
    """The model of a task from the unified one: theta_0 + rescaler * mask * tau_uni.

    Args:
        base: theta_0, a pytree.
        unified: the result of `emr` on all models, a tree like the base.
        own: what `modulator` made of the task.

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> base, model = {"w": np.zeros(2)}, {"w": np.array([3.0, -1.0])}
        >>> unified = jm.merge(jm.emr(), base, [model])
        >>> jm.modulate(base, unified, jm.modulator(base, unified, model))["w"]
        Array([ 3., -1.], dtype=float32)
    """
    flat, rebuild = names.flatten(base)
    unified = names.flatten(unified)[0]
    names.check_same(flat, unified, who="the unified model")
    out = dict(flat)
    for n, mask in own.mask.items():
        leaf = jnp.asarray(flat[n])
        shared = delta(jnp.asarray(unified[n]), leaf)
        out[n] = (leaf + own.rescaler * jnp.where(mask, shared, 0)).astype(leaf.dtype)
    return rebuild(out)
