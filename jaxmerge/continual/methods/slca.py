"""SLCA: a slow learner with classifier alignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmerge.continual import columns
from jaxmerge.continual.memories import gaussians
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, Positive, Share, methods
from jaxmerge.core.types import Array, Leaves


class Alignment(NamedTuple):
    """How heads are trained on draws: the arguments of `slca` of these names."""

    epochs: int
    per_class: int
    rate: Any
    momentum: Any
    weight_decay: Any
    temperature: Any


class Aligned(NamedTuple):
    """Memory of `slca`: Gaussians of the classes, and the head as training left it."""

    classes: gaussians.Gaussians
    head: Leaves


@methods.register
def slca(
    slow: Share = 0.01,
    epochs: Count = 5,
    per_class: Count = 256,
    rate: Positive = 0.01,
    momentum: Share = 0.9,
    weight_decay: NonNegative = 5e-4,
    temperature: Positive | None = 0.1,
    shrink: Share = 0.1,
    ridge: Positive = 1e-4,
    examples: Count = 10_000,
    head: str = "head",
    released_tasks: bool = False,
) -> Method:
    """SLCA: the trunk learns slowly; after a task the head is trained on Gaussians of all classes.

    Formula: what the optimiser proposes for the trunk is multiplied by `slow`; of the head only the
    columns of the task train. After a task, mean m_c and covariance S_c of the features of its
    classes are taken. From the second task t on (counted from 0), for `epochs` passes of
    `per_class` draws a class,

        z = m_c (1 - shrink + shrink (t_c + 1) / (t + 1)) + chol(S_c) eps

    in random order, and a step of SGD on the head for every `per_class` of them: the cross-entropy
    over the columns seen of logits / (nbar temperature), nbar the mean over tasks k of
    |logits of task k| + 1e-7. The rate falls over epochs as a half cosine.

    The aligned head serves prediction only: the next task starts with the head before alignment.

    Args:
        slow: s; use an objective over the task's own columns.
        epochs, per_class, rate, momentum, weight_decay: of the alignment.
        temperature: tau (0.05 on Cars); None: plain cross-entropy.
        shrink: 0.1; 0 leaves the means alone.
        ridge: added to the diagonal of S_c.
        examples: of a task, the first so many of `Border.read`.
        head: the prefix of the head's kernel and bias.
        released_tasks: take t_c for c // columns of the current task, as the code does, which is
            wrong where tasks differ in size; by default t_c is the task of the class.

    Memory: C (d + d^2) numbers for C classes and d features, and the head; while the head is
    aligned some 6 C `per_class` d more, of all its C columns.

    Source: Zhang et al., SLCA: Slow Learner with Classifier Alignment for Continual Learning on a
    Pre-trained Model, ICCV 2023, eq. 1 to 5; GengDavid/SLCA.

    Differs:
        A class with one example has the covariance ridge I (NaN in the code). A class that comes
        back, which their streams have not, keeps the Gaussian of its first task, however few
        examples of it that task had.

    >>> slca(temperature=0.05)
    slca(temperature=0.05)
    """
    plan = Alignment(epochs, per_class, rate, momentum, weight_decay, temperature)

    def finish(known, trained, info, t, key):
        many = known.known.shape[0]
        own = jnp.sum(columns.own(info, t))
        of = jnp.arange(many) // own if released_tasks else columns.task_of(info)
        centre = known.mean * (1 - shrink + shrink * (of + 1) / (t + 1))[:, None].astype(
            known.mean.dtype
        )
        return align(known._replace(mean=centre), trained, info, t, key, plan)

    return slow_learner(slow, ridge, examples, head, finish)


def slow_learner(
    slow: Any, ridge: Any, examples: int, head: str, finish: Callable[..., Leaves],
    objective: Callable[..., Array] | None = None,
) -> Method:  # fmt: skip
    """What `slca` and `slcapp` share: a slow trunk, Gaussians of classes, a head for prediction.

    Args:
        finish: ``(gaussians, head, info, t, key) -> head``, from the second task on.
        objective: see `Method`.
    """
    names = f"{head}/kernel", f"{head}/bias"

    def init(model, params, batch, stored):
        missing = [n for n in names if n not in params]
        if missing:
            raise ValueError(f"SLCA: the model has no leaf {' and '.join(missing)}; give head=.")
        d, many = params[names[0]].shape
        return Aligned(gaussians.empty(many, d, params[names[0]].dtype), _head(params))

    def _head(params):
        return {n: params[n] for n in names}

    def begin(model, params, memory, border):
        back = {n: jnp.where(border.index > 0, memory.head[n], params[n]) for n in names}
        return {**params, **back}, memory

    def update(model, step, updates):
        own = columns.own(step.info, step.task)
        scaled = lambda n, u: jnp.where(own, u, 0) if n in names else slow * u
        return {n: scaled(n, u) for n, u in updates.items()}, step.memory

    def end(model, params, memory, border):
        t, info, data = border.index, border.info, border.read(examples)
        features = model.apply(params, data.inputs, t).features
        new = columns.own(info, t)
        known = gaussians.learn(memory.classes, features, data.targets, data.weight, new, ridge)
        trained = _head(params)
        aligned = finish(known, trained, info, t, border.key)
        pick = {n: jnp.where(t > 0, aligned[n], trained[n]) for n in names}
        return {**params, **pick}, Aligned(known, trained)

    return Method(
        init=init, begin=begin, objective=objective, update=update, end=end, replaces=("the head",)
    )


def align(
    classes: gaussians.Gaussians, start: Leaves, info: Any, t: Array, key: Array, plan: Alignment,
    spread: Callable[[Array, Array], Array] = lambda z, u: z,
) -> Leaves:  # fmt: skip
    """The head after training on draws from the Gaussians of the classes seen.

    Args:
        start: kernel [d, C] and bias [C], in this order.
        spread: ``(z [C, n, d], u [C, n]) -> z``: what is made of the draws, u uniform in [0, 1).
    """
    kernel, bias = start
    per_class, epochs, seen = plan.per_class, plan.epochs, columns.seen(info, t)
    steps = optax.chain(
        optax.add_decayed_weights(plan.weight_decay), optax.trace(plan.momentum), optax.scale(-1.0)
    )
    labels = jnp.repeat(jnp.arange(seen.shape[0]), per_class)

    def loss(leaves, z, y):
        logits = z @ leaves[kernel] + leaves[bias]
        if plan.temperature is not None:
            logits = normalised(logits, columns.table(info), t, plan.temperature)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            jnp.where(seen, logits, -jnp.inf), y
        )
        return jnp.mean(losses)

    def epoch(carry, x):
        e, key = x
        eps, order, u = draws(key, seen, per_class, classes.mean.shape[1], e)
        z = classes.mean[:, None] + jnp.einsum("cij,cnj->cni", classes.root, eps)
        z = spread(z, u)
        z = z.reshape(-1, z.shape[-1])[order].reshape(seen.shape[0], per_class, -1)
        y = labels[order].reshape(seen.shape[0], per_class)
        now = plan.rate * (1 + jnp.cos(jnp.pi * e / epochs)) / 2

        def step(carry, x):
            z, y, on = x

            def move(carry):
                leaves, moments = carry
                updates, moments = steps.update(jax.grad(loss)(leaves, z, y), moments, leaves)
                change = lambda p, u: p + jnp.where(seen, now * u, 0).astype(p.dtype)
                return jax.tree.map(change, leaves, updates), moments

            return jax.lax.cond(on, move, lambda c: c, carry), None

        on = jnp.arange(seen.shape[0]) < jnp.sum(seen)
        return jax.lax.scan(step, carry, (z, y, on))[0], None

    keys = jax.random.split(key, epochs)
    carry = start, steps.init(start)
    (aligned, _), _ = jax.lax.scan(epoch, carry, (jnp.arange(epochs), keys))
    return aligned


def draws(
    key: Array, seen: Array, per_class: int, d: int, epoch: Any
) -> tuple[Array, Array, Array]:
    """eps [C, per_class, d]; order [C per_class], draws of classes seen first; u [C, per_class]."""
    one, two = jax.random.split(key)
    eps = jax.random.normal(one, (seen.shape[0], per_class, d))
    late = jnp.repeat(~seen, per_class)
    order = jnp.argsort(jax.random.uniform(two, late.shape) + late)
    return eps, order, jax.random.uniform(jax.random.fold_in(key, 2), eps.shape[:2])


def normalised(logits: Array, own: Array, task: Array, temperature: float | Array) -> Array:
    """Logits [B, C] divided by the mean norm of the tasks' blocks and by the temperature.

    Args:
        own: bool [tasks, C]; tasks up to `task` count.
    """
    square = jnp.where(own, 1, 0).astype(logits.dtype) @ (logits**2).T  # [tasks, B]
    nonzero = square > 0  # the norm of a block of zeros has the gradient 0
    size = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, square, 1)), 0) + 1e-7
    learnt = (jnp.arange(own.shape[0]) <= task)[:, None]
    mean = jnp.sum(jnp.where(learnt, size, 0), 0) / (task + 1)
    return logits / mean[:, None] / temperature
