"""Published methods built on masks of tasks: Consensus, TALL masks, EMR and PCB-Merging."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from jaxmerge.core import names
from jaxmerge.core.composition import chain
from jaxmerge.core.registry import register
from jaxmerge.core.types import Merge
from jaxmerge.drivers.leaf import delta
from jaxmerge.folds.masks import balance, consensus_sum, localized_sum, modulated_unified
from jaxmerge.folds.signs import disjoint_mean
from jaxmerge.transforms.scaling import scale

__all__ = [
    "Modulator",
    "consensus",
    "emr",
    "emr_task",
    "modulate",
    "modulator",
    "pcb",
    "tall_task",
]


@register
def consensus(tall: Any = 0.4, at_least: int = 2, factor: Any = 0.3) -> Merge:
    """Consensus Task Arithmetic: drop from the sum what only one task, or none, has use for.

    Formula: theta_0 + factor * tau [sum_t m_t >= k], tau = sum_t tau_t, m_t the TALL masks
    [|tau_t| > tall |tau - tau_t|].

    Args:
        tall: lambda of the TALL masks, at least 0 (the paper searches 0.2 to 0.6); a number, or one
            for each model.
        at_least: k of the paper, 2.
        factor: alpha of task arithmetic.

    Memory: T x the leaf.

    Source: Wang et al., Localizing Task Information for Improved Model Merging and Compression,
    ICML 2024.  Differs: masks compare task vectors with task vectors, as the paper's equation does;
    some code compares weights of the base with them.  The comparison is strict, as in the authors'
    code; the paper writes "at least".

    Example:
        >>> import jaxmerge as jm, numpy as np
        >>> models = [{"w": np.array([1.0, 1.0])}, {"w": np.array([1.0, 0.0])}]
        >>> jm.merge(jm.consensus(factor=1.0), {"w": np.zeros(2)}, models)["w"]
        array([2., 0.])
    """
    return chain(consensus_sum(tall, at_least), scale(factor))


@register
def tall_task(task: int = 0, tall: Any = 0.4, factor: Any = 1.0) -> Merge:
    """One task's model recovered from the sum of all task vectors by its TALL mask.

    Formula: theta_0 + factor * m_t tau; see `consensus`.

    Args:
        task: the position of the task among the models, from 0.

    Memory: 2 x the model.

    Source: Wang et al., ICML 2024, section 4.
    """
    return chain(localized_sum(task, tall), scale(factor))


@register
def emr() -> Merge:
    """EMR-Merging's unified model: for every entry the largest change of the elected sign.

    Formula: theta_0 + tau_uni, tau_uni[p] = the entry of largest magnitude among the tau_t[p] with
    the sign of sum_t tau_t[p].  Each task then has a mask and a number: `modulator`, `emr_task`.

    Memory: 4 x the model.

    Source: Huang et al., EMR-Merging: Tuning-Free High-Performance Model Merging, NeurIPS 2024.
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
    """
    return chain(modulated_unified(task))


@register
def pcb(
    density: Any = 0.2, factor: Any = 1.0, scope: Literal["global", "leaf"] = "global"
) -> Merge:
    """PCB-Merging: every entry of every task weighted by its competition with all others.

    Formula: theta_0 + factor * sum_t b_t tau_t / sum_t b_t, b_t the scores of `balance`.

    Args:
        density: share of entries of each task that keeps its score (the paper's r), in (0, 1].
        factor: lambda of the paper.
        scope: "global" (the paper) or "leaf".

    Memory: T x the model; T x the leaf for "leaf".

    Source: Du et al., Parameter Competition Balancing for Model Merging, NeurIPS 2024.
    """
    return chain(balance(density, scope), scale(factor))


class Modulator(NamedTuple):
    """What EMR stores of one task besides the unified model.

    Attributes:
        mask: leaf name -> bool array, one bit of information an entry.
        rescaler: a number.
    """

    mask: dict[str, Any]
    rescaler: Any


def modulator(base: Any, unified: Any, model: Any) -> Modulator:
    """The mask and the rescaler of one task: M = [tau tau_uni > 0], sum |tau| / sum |M tau_uni|.

    Args:
        base: theta_0.
        unified: the result of `emr` on all models.
        model: the model of the task.

    Raises:
        ValueError: leaves that do not fit the base, all named.
    """
    base, unified, model = (names.flatten(x)[0] for x in (base, unified, model))
    names.check_same(base, unified, who="the unified model")
    names.check_same(base, model, who="the model of the task")
    mask, own, kept = {}, 0.0, 0.0
    for n in base:
        if names.is_float(base[n]):
            tau, shared = (delta(jnp.asarray(m[n]), jnp.asarray(base[n])) for m in (model, unified))
            mask[n] = jnp.sign(tau) * jnp.sign(shared) > 0
            own, kept = own + jnp.sum(jnp.abs(tau)), kept + jnp.sum(jnp.abs(shared * mask[n]))
    return Modulator(mask, jnp.where(kept > 0, own / jnp.where(kept > 0, kept, 1), 1))


def modulate(base: Any, unified: Any, own: Modulator) -> Any:
    """The model of a task from the unified one: theta_0 + rescaler * mask * tau_uni.

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
