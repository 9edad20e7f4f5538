"""CUBER, from the paper's equations alone: no program of the authors could be found.

Where the paper leaves a detail open, `trgp`, which it extends, decides; see *Differs*.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import basis
from jaxmerge.continual.methods.gpm import (
    check_free,
    empty_bases,
    stops_beside,
    thresholds,
)
from jaxmerge.continual.methods.trgp import nearest, related, task_gradient
from jaxmerge.continual.projection import Span, compact
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Correlation, Count, NonNegative, Pattern, Share, methods
from jaxmerge.continual.taps import layer_inputs
from jaxmerge.continual.wraps.kernels import matching
from jaxmerge.continual.wraps.scales import SPACE, USED, with_scales, without
from jaxmerge.core.types import Array


class Kernel(NamedTuple):
    """What is remembered of one kernel [in, out].

    Attributes:
        basis: M, all spaces together.
        gradients: [tasks, in, out], G_j, that of task j's objective at its end.
        before: [in, out], the kernel before the task.
        positive: bool [2], which of the two used tasks are in regime 3.
        off: what the kernel may not move in, a span [4, ..] by which of the two are in regime 3
            (none, the second, the first, both).
    """

    basis: basis.Basis
    gradients: Array
    before: Array
    positive: Array
    off: Span


@methods.register
def cuber(
    threshold: Share | tuple[Share, ...] = 0.97,
    growth: float = 0.0,
    trust: Share = 0.5,
    correlation: Correlation = 0.0,
    strength: NonNegative = 1.0,
    examples: Count = 300,
    project: Pattern = ".*",
    free: Pattern | None = None,
    capacity: Count | None = None,
) -> Method:
    """CUBER: as TRGP, but a kernel may move inside the space of a related task that would gain.

    Formula: S_j, M, Q and W_eff as in `trgp`; g is the gradient of task t at its start, G_j that
    of task j at its end. For every kernel and earlier task j

        regime 1:  |S_j' g| < trust |g|
        regime 2:  not so, and <G_j, g> < correlation |G_j| |g|
        regime 3:  neither

    At most the two tasks with the largest |S_j' g| are in regimes 2 and 3, and are used in W_eff. W
    moves outside the spaces of regimes 1 and 2; in those of regime 3 it is held back by a penalty's
    gradient

        strength * sum |S_j S_j' (W - W_before)|        (the norm, not its square)

    A step at which <G_j, gradient> falls below the bound puts task j into regime 2 for good.

    Args:
        threshold, growth, trust, examples, project, free, capacity: as in `trgp`.
        correlation: epsilon_2, in [-1, 1]; 0 in the paper.
        strength: lambda.

    Memory: tasks x in x out (gradients) + 4 x in x capacity a kernel, or 4 x in x in where a
    capacity is more than half of in, besides TRGP's.

    Source: Lin et al., Beyond Not-Forgetting: Continual Learning with Backward Knowledge Transfer,
    NeurIPS 2022, definitions 1 and 2, eq. 4 to 8.

    Differs:
        The spaces of regimes 1 and 2 are projected off together, by an orthonormal basis of their
        sum; the paper's sum of projections takes directions that they share twice. G_j is the
        gradient of the first `examples` of task j with its own scales. The paper does not give
        lambda. The penalty's gradient is added in closed form, where the method stands in the list,
        so that the stream's losses do not hold the penalty. What the optimiser proposes is
        projected, not the gradient, as in `gpm`; weight decay and the scales are as in `trgp`.

    >>> cuber((0.95, 0.99, 0.99), strength=2)
    cuber(threshold=(0.95, 0.99, 0.99), strength=2.0)
    """

    def chosen(model, params, names):
        return thresholds("cuber", model, params, project, names, threshold)

    def wrap(model, tasks):
        return with_scales("cuber", model, tasks, project, capacity)

    def init(model, params, batch, stored):
        check_free("cuber", model, params, free)

        def one(n, m):
            w = params[n].reshape(m.vectors.shape[0], -1)
            tasks = len(params[n + SPACE])
            zero, four = jnp.zeros_like(w), compact(jnp.zeros((4, *m.vectors.shape), w.dtype))
            return Kernel(m, jnp.zeros((tasks, *w.shape), w.dtype), zero, jnp.zeros(2, bool), four)

        empty = empty_bases(model, params, batch, chosen, capacity)
        return {n: one(n, m) for n, m in empty.items()}

    def begin(model, params, memory, border):
        t = border.index
        names, grads = task_gradient(model, without(params, t), border, examples)
        used, new = {}, {}
        for n in chosen(model, params, names):
            m, spaces = memory[n], params[n + SPACE]
            g = grads[n].reshape(m.before.shape)
            near, inside = related(spaces, g, t, trust)
            u = nearest(near, inside, t, released=False)
            positive = (u >= 0) & (correlated(m.gradients[u], g) >= correlation)
            old = jnp.arange(len(spaces)) < t
            fixed = lambda a, b, old=old, u=u: old & ~one_of(old, u, (a, b))
            off = [
                union(spaces, fixed(a, b), m.basis) for a in (False, True) for b in (False, True)
            ]
            used[n + USED] = params[n + USED].at[t].set(u)
            before = params[n].reshape(m.before.shape)
            new[n] = m._replace(before=before, positive=positive, off=compact(jnp.stack(off)))
        return {**params, **used}, new

    def gradient(model, step, grads, grad_at):
        new = dict(grads)
        for n, m in step.memory.items():
            change = step.params[n].reshape(m.before.shape) - m.before
            spaces, used = step.params[n + SPACE], step.params[n + USED][step.task]
            for a in range(2):
                moved = lambda c, s=spaces[used[a]]: strength * away(s, c)
                pull = jax.lax.cond(m.positive[a], moved, jnp.zeros_like, change)
                new[n] += pull.reshape(new[n].shape)
        return new

    def update(model, step, updates):
        new = {}
        for n, m in step.memory.items():
            used = step.params[n + USED][step.task]
            g = step.grads[n].reshape(m.before.shape)
            positive = m.positive & (correlated(m.gradients[used], g) >= correlation)
            new[n] = m._replace(positive=positive)
        return updates, new

    def spans(memory):
        at = lambda m: 2 * m.positive[0] + m.positive[1]
        return {n: jax.tree.map(lambda x, i=at(m): x[i], m.off) for n, m in memory.items()}

    def end(model, params, memory, border):
        t = border.index
        met = layer_inputs(model, without(params, t), border.read(examples), t)
        _, grads = task_gradient(model, params, border, examples)
        spaces, new = {}, {}
        for n, e in chosen(model, params, met).items():
            grown, own = basis.space(memory[n].basis, met[n], basis.due(e, growth, t), False, False)
            spaces[n + SPACE] = params[n + SPACE].at[t].set(own)
            g = grads[n].reshape(memory[n].before.shape)
            stored = memory[n].gradients.at[t].set(g)
            new[n] = memory[n]._replace(basis=grown, gradients=stored)
        return {**params, **spaces}, new

    return Method(
        wrap=wrap, init=init, begin=begin, gradient=gradient, update=update, spans=spans,
        stops=stops_beside(free), end=end,
        claims=lambda model, params: matching(model, params, project),
    )  # fmt: skip


def one_of(tasks: Array, used: Array, which: tuple[bool, bool]) -> Array:
    """bool [tasks]: the chosen ones of two tasks; -1 is none."""
    index = jnp.arange(len(tasks))
    return sum(((index == used[a]) for a in range(2) if which[a]), jnp.zeros_like(tasks)) > 0


def correlated(old: Array, gradient: Array) -> Array:
    """<G, g> / (|G| |g|) of every G [..., in, out]; 0 where one is zero."""
    product = jnp.sum(old * gradient, (-2, -1))
    size = jnp.sqrt(jnp.sum(old**2, (-2, -1)) * jnp.sum(gradient**2))
    return product / jnp.where(size > 0, size, 1)


def away(space: Array, change: Array) -> Array:
    """The gradient S S' C / |S' C| of |S S' C| by C; 0 at 0, as at the first step of every task.

    >>> away(jnp.array([[1.0], [0.0]]), jnp.array([[3.0], [4.0]])).tolist()
    [[1.0], [0.0]]
    """
    inside = space.T @ change
    square = jnp.sum(inside**2)
    return space @ (inside * jnp.where(square > 0, jax.lax.rsqrt(square), 0))


def union(spaces: Array, which: Array, all_: basis.Basis) -> Array:
    """An orthonormal basis [in, capacity] of the sum of chosen spaces S [tasks, in, capacity].

    All spaces lie in M, so their projectors are summed in its coordinates; directions whose
    eigenvalue there is below 10 eps times the capacity are none.
    """
    inside = jnp.einsum("dm,tdr->tmr", all_.vectors, spaces)
    inside = inside * which[:, None, None].astype(inside.dtype)
    values, vectors = jnp.linalg.eigh(jnp.einsum("tmr,tnr->mn", inside, inside))
    tiny = 10 * jnp.finfo(values.dtype).eps * values.size
    return all_.vectors @ (vectors * (values > tiny).astype(values.dtype))
