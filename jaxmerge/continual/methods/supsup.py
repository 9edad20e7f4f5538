"""Supermasks in superposition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.records import Method, Model, Outputs
from jaxmerge.continual.registry import Count, Pattern, Share, methods
from jaxmerge.continual.wraps.kernels import changeable, chosen, fan_in, reading
from jaxmerge.continual.wraps.masks import OFF, SCORES, mask, plain, signed_constant, through
from jaxmerge.core.types import Array, Leaves
from jaxmerge.numerics.precision import full_precision

By = Literal["entropy", "surplus"]
Search = Literal["one_shot", "binary"]


@methods.register(static=("density",))
def supsup(
    density: Share | None = None,
    by: By = "entropy",
    search: Search = "one_shot",
    decide: Literal["example", "batch"] = "example",
    examples: Count = 1,
    classes: Count | None = None,
    target: Pattern = ".*",
    weights: Literal["signed", "given"] = "signed",
) -> Method:
    """SupSup: one random network that never trains, and a mask of it for every task.

    Formula: task t uses W * M_t with W = sign(w) sqrt(2 / fan_in) fixed. Where the task is not
    given, alpha = 1 / tasks learnt mixes the masks, W * sum_t alpha_t M_t, and the task is the one
    whose alpha lowers the objective fastest: argmin_t d objective / d alpha_t.

    Args:
        density: None: M = [s >= 0]; a share: the largest |s| of each kernel.
        by: the objective: "entropy" of the softmax (H), or "surplus": logsumexp of the logits with
            the first `classes` held constant (G).
        search: "one_shot", or "binary": keep tasks up to the lower median gradient, mix the rest
            anew, until one is left.
        decide: each "example" finds its own task; or, as the released test does, the first few of
            a "batch" decide for all of it.
        examples: how many of a batch decide.
        classes: outputs that are classes, for "surplus"; the network has more.
        target: regular expression of the kernels that are masked; all else stays as initialised.
        weights: "signed" as above, or those of the model as "given" (pretrained).

    Memory: tasks x the masked kernels (scores); a mask alone would be a bit an entry.

    Source: Wortsman et al., Supermasks in Superposition, NeurIPS 2020, eq. 2 to 5;
    RAIVNLab/supsup, ``module_util.py``, ``adaptors.py``. Trained with RMSprop at 1e-4, or Adam.

    Differs:
        In the released test an example whose task is mistaken counts as wrong even where the
        answer is right; here the answer counts.

    >>> supsup(0.3, search="binary")
    supsup(density=0.3, search='binary')
    """
    if by == "surplus" and classes is None:
        raise ValueError("by='surplus' needs classes: how many of the outputs are classes.")

    def wrap(model: Model, tasks: int) -> Model:
        def init(key):
            params = dict(model.init(key))
            names = chosen("supsup", model, params, target, axes=(2, 4))
            keys = jax.random.split(jax.random.fold_in(key, 1), len(names))
            for n, k in zip(names, keys, strict=True):
                w, inputs = params[n], fan_in(params[n])
                if weights == "signed":
                    params[n] = signed_constant(w, inputs)
                bound = inputs**-0.5  # Kaiming uniform with a = sqrt 5
                params[n + SCORES] = jax.random.uniform(
                    k, (tasks, *w.shape), w.dtype, -bound, bound
                )
            return {**params, OFF: jnp.float32(0)}

        def effective(params: Leaves, of: Callable[[Array], Array]) -> Leaves:
            own = dict(plain(params))
            for n in own:
                if n + SCORES in params:
                    own[n] = own[n] * jnp.where(params[OFF] > 0, 1, of(params[n + SCORES]))
            return own

        def one(params, task):
            return effective(params, lambda s: through(s[task], density))

        def apply(params, x, task):
            return model.apply(one(params, task), x, task)

        def superposed(params, x, alpha, last):
            mixed = effective(params, lambda s: superpose(alpha, masks(s, density)))
            return model.apply(mixed, x, last).logits

        def predict(params, x, last):
            known = jnp.arange(tasks) <= last
            goal = lambda x: (
                lambda alpha: objective(superposed(params, x, alpha, last), by, classes)
            )
            first = lambda count: jax.tree.map(lambda a: a[:count], x)
            if decide == "batch":
                mean = lambda alpha: jnp.mean(goal(first(examples))(alpha))
                task = find_task(mean, known, search)
            elif search == "one_shot":
                slope = jax.jacfwd(goal(x))(uniform(known))  # [B, tasks]
                task = jnp.where(known, slope, jnp.inf).argmin(-1)
            else:
                alone = lambda x: jax.tree.map(lambda a: a[None], x)
                task = jax.lax.map(
                    lambda x: find_task(lambda alpha: goal(alone(x))(alpha)[0], known, search), x
                )
            logits = jax.lax.map(lambda t: apply(params, x, t).logits, jnp.arange(tasks))
            task = jnp.broadcast_to(task, logits.shape[1:2])
            return Outputs(
                jnp.take_along_axis(logits, task[None, :, None], 0)[0], aux={"task": task}
            )

        def put(params, merged):
            return {**params, **model.put(params, merged), OFF: jnp.float32(1)}

        scores = lambda n: n.endswith(SCORES)
        return reading(
            model, one, init=init, predict=predict, trainable=scores, slots=scores, put=put
        )

    return Method(
        wrap=wrap, claims=lambda model, params: changeable(model, params, target, axes=(2, 4))
    )


def masks(scores: Array, density: float | None) -> Array:
    """[tasks, ...] 0/1."""
    return jax.vmap(lambda s: mask(s, density))(scores)


@full_precision
def superpose(alpha: Array, masks: Array) -> Array:
    """sum_t alpha_t M_t."""
    return jnp.tensordot(alpha.astype(masks.dtype), masks, 1)


def uniform(alive: Array) -> Array:
    """1 / how many, for those that are alive."""
    return alive / jnp.sum(alive)


def objective(logits: Array, by: By, classes: int | None) -> Array:
    """[B]: what the right task's share lowers."""
    if by == "entropy":
        log = jax.nn.log_softmax(logits)
        return -jnp.sum(jnp.exp(log) * log, -1)
    columns = logits.shape[-1]
    real = jnp.arange(columns) < (columns if classes is None else classes)
    return jax.nn.logsumexp(jnp.where(real, jax.lax.stop_gradient(logits), logits), axis=-1)


def find_task(goal: Callable[[Array], Array], known: Array, search: Search) -> Array:
    """The task whose share of the mixture lowers a scalar goal fastest.

    Args:
        goal: ``alpha [tasks] -> scalar``.
        known: bool [tasks], those learnt.
    """
    slope = jax.grad(goal)
    if search == "one_shot":
        return jnp.where(known, slope(uniform(known)), jnp.inf).argmin()

    def halve(_, alive):
        slopes = jnp.where(alive, slope(uniform(alive)), jnp.inf)
        middle = jnp.sort(slopes)[(jnp.sum(alive) - 1) // 2]
        return jnp.where(jnp.sum(alive) > 1, alive & (slopes <= middle), alive)

    rounds = int(math.log2(known.shape[0])) + 1
    alive = jax.lax.fori_loop(0, rounds, halve, known)
    return jnp.where(alive, slope(uniform(alive)), jnp.inf).argmin()
