"""Terms that hold weights near an anchor: L2, EWC, MAS.

    loss = (strength / 2) * sum_j importance_j (theta_j - anchor_j)^2

====  ==========================================================  =============================
term  importance                                                  anchor
====  ==========================================================  =============================
l2    1                                                           theta_0, or the last model
ewc   diagonal Fisher information at the end of every task        the last model
mas   mean |d |logits|^2 / d theta| at the end of every task      the last model
====  ==========================================================  =============================

Memory: 1 (l2) or 2 models.

Sources: Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017, eq.
3; Aljundi et al., Memory Aware Synapses, ECCV 2018, eq. 2 and 4; Smith et al., A Closer Look at
Rehearsal-Free Continual Learning, CVPR-W 2023 (L2 towards the pretrained weights).
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.strategy import Term
from jaxmerge.core.types import Array, Leaves
from jaxmerge.training.learner import Learner, head_logits

Anchor = Literal["base", "last"]
Fisher = Literal["true", "sampled", "predicted", "released"]


def l2(strength: float, anchor: Anchor = "base") -> Term:
    """Pull every weight towards theta_0 ("base", from the first task on) or the last model."""
    if anchor not in ("base", "last"):
        raise ValueError(f"anchor must be 'base' or 'last', got {anchor!r}.")

    def start(learner):
        return {"anchor": _copy(learner.params), "on": jnp.float32(anchor == "base")}

    def loss(view, learner):
        pull = _pull(view.params, view.memory["anchor"])
        return 0.5 * strength * view.memory["on"] * pull

    def end(memory, learner, params, task, rows):
        return memory if anchor == "base" else {"anchor": _copy(params), "on": jnp.float32(1)}

    return Term(start, loss, end)


def ewc(
    strength: float, kind: Fisher = "true", decay: float | None = None, examples: int = 512
) -> Term:
    """Elastic weight consolidation.

    Args:
        kind: "true" takes the expectation over the model's own labels; "sampled" one label an
            example, drawn from the model, which has the same mean and costs one backward pass in
            place of one a class; "predicted" the most probable label only; "released" does as the
            code released with MagMax, which never zeroes its gradients: the square of the
            *running sum* of batch gradients.
        decay: None adds up the Fisher information of all tasks; a number keeps the average
            ``decay * old + (1 - decay) * new``, starting from zeros (MagMax's release: 0.5).
        examples: at most so many training examples of a task are used.
    """
    known = get_args(Fisher)
    if kind not in known:
        raise ValueError(f"kind must be one of {', '.join(known)}, got {kind!r}.")
    return _weighted(strength, kind, decay, examples)


def mas(strength: float, decay: float | None = None, examples: int = 512) -> Term:
    """Memory-aware synapses: importance is what moves the length of the logits."""
    return _weighted(strength, "mas", decay, examples)


def _weighted(strength: float, kind: str, decay: float | None, examples: int) -> Term:
    def start(learner):
        return {
            "anchor": _copy(learner.params),
            "importance": {n: jnp.zeros_like(p) for n, p in learner.params.items()},
        }

    def loss(view, learner):
        return 0.5 * strength * _pull(view.params, view.memory["anchor"], view.memory["importance"])

    def end(memory, learner, params, task, rows):
        inputs, _ = rows
        if len(inputs) > examples:
            inputs = inputs[np.random.default_rng(0).permutation(len(inputs))[:examples]]
        new = importance(learner, params, inputs, task.columns, kind)
        old = memory["importance"]
        keep, add = (1, 1) if decay is None else (decay, 1 - decay)
        mix = lambda o, f: keep * o + add * f
        return {"anchor": _copy(params), "importance": {n: mix(old[n], new[n]) for n in new}}

    return Term(start, loss, end)


def importance(
    learner: Learner, params: Leaves, inputs: np.ndarray, columns: np.ndarray, kind: str,
    chunk: int = 8,
) -> dict[str, Array]:  # fmt: skip
    """How much each weight matters on some inputs, averaged over them.

    Args:
        inputs: prepared.
        columns: int [K], the columns of the task; the labels that "true" and "predicted" know.
        kind: one of `Fisher` or "mas"; see `ewc` and `mas`.

    Memory: chunk + 2 models.
    """
    total = {n: jnp.zeros_like(p) for n, p in params.items()}
    running = total
    which, batches = jnp.asarray(columns), 0
    for first in range(0, len(inputs), chunk):
        part = inputs[first : first + chunk]
        weight = (np.arange(chunk) < len(part)).astype(np.float32)
        part = np.concatenate([part, np.repeat(part[:1], chunk - len(part), axis=0)])
        args = (params, part, weight, learner.head, learner.scale, which, learner.features)
        if kind == "released":
            running = jax.tree.map(jnp.add, running, _batch_gradient(*args))
            total = jax.tree.map(lambda t, r: t + r**2, total, running)
            batches += 1
        else:
            total = _add_importance(total, *args, kind, jax.random.key(first))
    count = batches if kind == "released" else len(inputs)
    return {n: t / count for n, t in total.items()}


@partial(jax.jit, static_argnames=("features", "kind"))
def _add_importance(total, params, inputs, weight, head, scale, which, features, kind, key):
    def outputs(p, x):
        return head_logits(features(p, x[None]), head, scale)[0]

    if kind == "mas":
        one = jax.grad(lambda p, x: jnp.sum(outputs(p, x) ** 2))
        found = jax.vmap(one, (None, 0))(params, inputs)
        fold = lambda t, g: t + jnp.tensordot(weight, jnp.abs(g), 1)
    else:
        log_prob = lambda p, x, c: jax.nn.log_softmax(outputs(p, x)[which])[c]
        chance = jax.nn.softmax(head_logits(features(params, inputs), head, scale)[:, which])
        if kind in ("predicted", "sampled"):
            drawn = jax.random.categorical(key, jnp.log(chance))
            labels = (chance.argmax(1) if kind == "predicted" else drawn)[:, None]
            chance = jnp.ones_like(labels, jnp.float32)
        else:
            labels = jnp.tile(jnp.arange(len(which)), (len(inputs), 1))
        one = jax.vmap(jax.grad(log_prob), (None, None, 0))
        found = jax.vmap(one, (None, 0, 0))(params, inputs, labels)
        fold = lambda t, g: t + jnp.tensordot(chance * weight[:, None], g**2, 2)
    return jax.tree.map(fold, total, found)


@partial(jax.jit, static_argnames="features")
def _batch_gradient(params, inputs, weight, head, scale, which, features):
    """Gradient of the batch's mean log-probability of the labels that the model predicts."""

    def mean_log_prob(p):
        logs = jax.nn.log_softmax(head_logits(features(p, inputs), head, scale)[:, which])
        return jnp.sum(weight * logs.max(axis=1)) / jnp.sum(weight)

    return jax.grad(mean_log_prob)(params)


def _pull(params: Leaves, anchor: Leaves, importance: Leaves | None = None) -> Array:
    """sum_j importance_j (theta_j - anchor_j)^2."""
    total = jnp.float32(0)
    for n, a in anchor.items():
        square = (params[n] - a) ** 2
        total += jnp.sum(square if importance is None else importance[n] * square)
    return total


def _copy(params: Leaves) -> dict[str, Array]:
    return {n: jnp.array(p) for n, p in params.items()}
