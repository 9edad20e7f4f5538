"""Trust region gradient projection."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import basis
from jaxmerge.continual.methods.gpm import (
    check_free,
    empty_bases,
    spans_of,
    stops_beside,
    thresholds,
)
from jaxmerge.continual.records import Border, Method, Model
from jaxmerge.continual.registry import Count, Pattern, Share, methods
from jaxmerge.continual.taps import layer_inputs, taps
from jaxmerge.continual.wraps.kernels import matching
from jaxmerge.continual.wraps.scales import SPACE, USED, with_scales, without
from jaxmerge.core.types import Array, Leaves

Rule = Literal["released", "paper"]


@methods.register
def trgp(
    threshold: Share | tuple[Share, ...] = 0.97,
    growth: float = 0.0,
    trust: Share = 0.5,
    examples: Count = 300,
    project: Pattern = ".*",
    free: Pattern | None = None,
    capacity: Count | None = None,
    rule: Rule = "released",
) -> Method:
    """Trust region gradient projection: GPM, and old kernels rescaled inside the spaces of two
    related tasks.

    Formula: before task t one gradient g of its mean objective is taken, with the plain kernels
    W [in, out]. An earlier task j is in a kernel's trust region where |S_j' g| > trust |g|. Of
    these the kernel uses (at most two) those with the largest |S_j' g|:

        W_eff = W + sum_a S_j(a) (Q_a - 1) S_j(a)' W,     Q_a trained, from the identity

    and W itself moves outside all spaces: dW <- dW - M M' dW. After the task, the directions of its
    inputs (those of M, and new ones) with the largest energies become S_t, until they have the
    threshold's share of it; the new ones among them join M.

    Evaluation needs the task, whose scales are used: choose a task-aware metric. Without it those
    of the last task are.

    Args:
        threshold: share of the inputs' energy that the basis must span, one number or one for each
            projected kernel in order. Permuted MNIST: (0.95, 0.99, 0.99).
        growth: added to the threshold after every task (CIFAR-100: 0.97 + 0.003 t).
        trust: the share epsilon_1; 0.5 in the paper, 0.2 in the code for permuted MNIST.
        examples: of a task, whose gradient and inputs are looked at.
        project: regular expression of the kernels that are projected and rescaled.
        free: regular expression of other shared leaves that go on learning unprojected, such as
            heads. All other leaves stop after the first task.
        capacity: columns of a space; None: as many as inputs. Once all are used further directions,
            the weakest first, are left out and are unprotected.
        rule: "released", as the code has it: the first task's space has one vector fewer, the third
            task may use the second one only, the strongest new direction of every task stays
            outside M, and no kernel uses anything where the first uses nothing; "paper": without
            these four.

    Memory: tasks x capacity x (in + 2 capacity) + in x capacity numbers a kernel.

    Source: Lin et al., TRGP, ICLR 2022, eq. 5 to 7; LYang-666/TRGP, ``main_pmnist.py``.

    Differs:
        What the optimiser proposes is projected, not the gradient, as in `gpm`.
        The authors train by SGD without decay. Weight decay pulls the scales Q towards 0, not
        towards the identity, and so takes away what old kernels do in the old spaces; spare them:
        ``by_name(((".*/old_scale", adam(1e-3)), (".*", adamw(1e-3))))``.

    >>> trgp((0.95, 0.99, 0.99), trust=0.2)
    trgp(threshold=(0.95, 0.99, 0.99), trust=0.2)
    """

    def chosen(model, params, names):
        return thresholds("trgp", model, params, project, names, threshold)

    released = rule == "released"

    def wrap(model, tasks):
        return with_scales("trgp", model, tasks, project, capacity)

    def init(model, params, batch, stored):
        check_free("trgp", model, params, free)
        return empty_bases(model, params, batch, chosen, capacity)

    def begin(model, params, memory, border):
        names, grads = task_gradient(model, without(params, border.index), border, examples)
        used = {}
        for n in chosen(model, params, names):
            near, inside = related(params[n + SPACE], grads[n], border.index, trust)
            used[n] = nearest(near, inside, border.index, released)
        if released:
            first = next(iter(used.values()))
            used = {n: jnp.where(jnp.any(first >= 0), u, -1) for n, u in used.items()}
        at = {n + USED: params[n + USED].at[border.index].set(u) for n, u in used.items()}
        return {**params, **at}, memory

    def end(model, params, memory, border):
        t = border.index
        met = layer_inputs(model, without(params, t), border.read(examples), t)
        spaces, grown = {}, {}
        for n, e in chosen(model, params, met).items():
            below, drop = released & (t == 0), released & (t > 0)
            grown[n], own = basis.space(memory[n], met[n], basis.due(e, growth, t), below, drop)
            spaces[n + SPACE] = params[n + SPACE].at[t].set(own)
        return {**params, **spaces}, grown

    return Method(
        wrap=wrap, init=init, begin=begin, spans=spans_of, stops=stops_beside(free),
        end=end,
        claims=lambda model, params: matching(model, params, project),
    )  # fmt: skip


def task_gradient(
    model: Model, params: Leaves, border: Border, examples: int
) -> tuple[list[str], Leaves]:
    """Kernels in the order of the network, and the gradient of the task's mean objective."""
    batch = border.read(examples)
    names = [n for n in taps(model, params, batch.inputs, border.index) if n in params]

    def mean(own):
        out = model.apply({**params, **own}, batch.inputs, border.index)
        losses = border.objective(out, batch)
        return jnp.sum(batch.weight * losses) / jnp.sum(batch.weight)

    return names, jax.grad(mean)({n: params[n] for n in names})


def related(spaces: Array, gradient: Array, task: Array, trust: float) -> tuple[Array, Array]:
    """Which earlier tasks are in the trust region, and |S_j' g| (-1 for tasks to come), [tasks]."""
    g = gradient.reshape(-1, gradient.shape[-1])
    norms = jax.lax.map(lambda s: jnp.linalg.norm(s.T @ g), spaces)
    inside = jnp.where(jnp.arange(len(spaces)) < task, norms, -1)
    return inside > trust * jnp.linalg.norm(g), inside


def nearest(near: Array, inside: Array, task: Array, released: bool) -> Array:
    """int32 [2]: the two tasks of a trust region that hold most of the gradient; -1 for none.

    >>> nearest(jnp.array([True, True, False]), jnp.array([0.2, 0.7, 0.1]), 3, True)
    Array([1, 0], dtype=int32)
    """
    if released:  # the two are chosen among all, and task 2 looks at task 1 only
        inside = jnp.where((task == 2) & (jnp.arange(inside.size) == 0), -1, inside)
    else:
        inside = jnp.where(near, inside, -1)
    best = jnp.argsort(-inside)[:2]
    use = near[best] & (inside[best] >= 0)
    used = jnp.where(use, best, -1).astype(jnp.int32)
    return jnp.pad(used, (0, 2 - used.size), constant_values=-1)
