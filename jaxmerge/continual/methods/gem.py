"""Gradient episodic memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmerge.continual import buffers
from jaxmerge.continual.parts import trained_leaves, with_trained
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, methods
from jaxmerge.core.types import Array, Leaves
from jaxmerge.numerics.precision import full_precision

RIDGE = 1e-3  # of the authors' quadratic program


@methods.register
def gem(examples: Count = 256, margin: NonNegative = 0.5, tasks: Count = 20) -> Method:
    """GEM: the gradient is turned until it raises, to first order, no earlier task's loss.

    Formula: with g the gradient and g_k that of the mean objective on what is kept of task k, the
    rows of G; where some <g, g_k> is negative,

        g <- g + G' v,     v = argmin 1/2 v' (G G' + 0.001 I) v + (G g)' v    over v >= margin

    At a margin of 0 that is the nearest gradient with no <g, g_k> negative, but for the 0.001,
    which counts where gradients are small: <g, g_k> may be -0.001 v_k. A larger margin turns it
    further towards old tasks. A step of plain SGD then raises no old loss; momentum, Adam and
    weight decay come behind and may.

    Args:
        examples: kept of each task, the first of `Border.read`; all of them are read at every step.
        margin: gamma, the least weight of an old gradient; 0.5 in the paper.
        tasks: how many earlier tasks are remembered; a further one takes the place of the oldest.
            Places are made for all of them, however many tasks the stream has.

    Memory: tasks x examples as they are stored, and at every step one gradient for each of the
    tasks.

    Source: Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning, NeurIPS 2017,
    equations 8 to 12; margin and 0.001 as in the code of its authors and of Hsu et al.'s benchmark.

    Differs:
        The paper adds gamma to the v of a margin of 0; its code, and this, solve over v >= gamma.
        The authors keep the last examples of a task.

    >>> gem(128, margin=0)
    gem(examples=128, margin=0.0)
    """

    def init(model, params, batch, stored):
        one = buffers.empty(examples, batch._replace(inputs=stored))["rows"]
        rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (tasks, *x.shape)), one)
        return rows._replace(weight=jnp.zeros((tasks, examples), batch.weight.dtype))

    def gradient(model, step, grads, grad_at):
        trained = trained_leaves(model, step.params, step.task)

        def of_task(batch, key):
            view, pass_ = jax.random.split(key)
            inputs = step.view(batch.inputs, batch.task, view)

            def mean(trained):
                params = with_trained(model, step.params, trained, step.task)
                out = model.learn(params, inputs, step.task, pass_)
                each = step.objective(out, batch._replace(inputs=inputs))
                return jnp.sum(buffers.weighted(batch.weight, each)) / jnp.sum(batch.weight)

            there = jnp.any(batch.weight > 0)
            nothing = lambda: jax.tree.map(jnp.zeros_like, trained)
            return jax.lax.cond(there, lambda: jax.grad(mean)(trained), nothing)

        keys = jax.random.split(step.key, tasks)
        old = jax.lax.map(lambda x: of_task(*x), (step.memory, keys))
        return in_cone(grads, old, margin)

    def end(model, params, memory, border):
        read = border.read(examples)
        inputs = read.inputs if border.stored is None else border.stored(examples)
        missing = examples - read.weight.shape[0]
        fill = lambda x: jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode="edge")
        rows = jax.tree.map(fill, read._replace(inputs=inputs))
        weight = jnp.pad(read.weight, (0, missing))
        slot = border.index % tasks
        put = lambda whole, new: whole.at[slot].set(new.astype(whole.dtype))
        return params, jax.tree.map(put, memory, rows._replace(weight=weight))

    return Method(init=init, gradient=gradient, end=end)


@full_precision
def in_cone(gradient: Leaves, old: Leaves, margin: float | Array) -> Leaves:
    """g + G' v of `gem`, or g where no old gradient points against it.

    Args:
        gradient: g, by leaf.
        old: G, leaves [tasks, ..]; rows of zeros, of tasks that there are not, change nothing.
        margin: gamma, 0 or more.

    >>> in_cone({"w": jnp.array([-2.0, 1.0])}, {"w": jnp.array([[1.0, 0.0]])}, 0)["w"].round(2) + 0
    Array([0., 1.], dtype=float32)
    """
    flat = lambda n: old[n].reshape(old[n].shape[0], -1)
    along = jnp.asarray(sum(flat(n) @ g.reshape(-1) for n, g in gradient.items()))
    gram = jnp.asarray(sum(flat(n) @ flat(n).T for n in gradient))

    def turned(v):
        return {n: g + (v @ flat(n)).reshape(g.shape) for n, g in gradient.items()}

    solve = lambda: turned(least(gram + RIDGE * jnp.eye(gram.shape[0]), along, margin))
    return jax.lax.cond(jnp.any(along < 0), solve, lambda: dict(gradient))


def least(square: Array, linear: Array, margin: float | Array) -> Array:
    """argmin 1/2 v' P v + q' v over v >= margin, by active sets.

    v = margin + w. A coordinate with w > 0 is free; the one with the steepest slope becomes free
    until none falls, and those that a solve takes below 0 are held at 0 again.

    Args:
        square: P [k, k], positive definite.
        linear: q [k].
        margin: bound from below.

    Source: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23.

    >>> least(jnp.eye(2), jnp.array([-3.0, 1.0]), 0.5).tolist()
    [3.0, 0.5]
    """
    k = len(linear)
    linear = linear + margin * square.sum(1)
    tiny = 10 * jnp.finfo(linear.dtype).eps * jnp.max(jnp.abs(linear))

    def solved(free):
        both = free[:, None] & free
        matrix = jnp.where(both, square, jnp.diag((~free).astype(square.dtype)))
        return jnp.linalg.solve(matrix, jnp.where(free, -linear, 0))

    def step(state):
        w, free, _, count = state
        there = solved(free)
        below = free & (there <= 0)
        ratio = jnp.where(below, w / jnp.where(below, w - there, 1), jnp.inf)
        first = jnp.argmin(ratio)
        back = jnp.where(free, w + ratio[first] * (there - w), 0)
        held = free & (back > 0) & (jnp.arange(k) != first)
        slope = jnp.where(free, jnp.inf, square @ there + linear)
        best = jnp.argmin(slope)
        falls = slope[best] < -tiny
        wider = free | (falls & (jnp.arange(k) == best))
        shrink = jnp.any(below)
        w, free = (jnp.where(shrink, a, b) for a, b in ((back * held, there), (held, wider)))
        return w, free, shrink | falls, count + 1

    start = jnp.zeros_like(linear), jnp.zeros(k, bool), jnp.array(True), 0
    go_on = lambda state: state[2] & (state[3] < 10 * k)  # rounding may turn in a circle
    return margin + jax.lax.while_loop(go_on, step, start)[0]
