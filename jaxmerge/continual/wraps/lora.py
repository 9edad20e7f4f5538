"""Low-rank changes of frozen kernels, W + (alpha / rank) A B: a pair for every task or for all.

A is ``<kernel>/lora_a`` [tasks, in, rank], B is ``<kernel>/lora_b`` [tasks, rank, out]; B starts at
zero, so that a new pair changes nothing.

Memory: tasks x rank x (in + out) numbers a kernel; gradients and moments of one task's pair only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.records import Model
from jaxmerge.continual.wraps.kernels import chosen, fan_in
from jaxmerge.core.types import Array, Leaves

A, B = "/lora_a", "/lora_b"
Use = Literal["own", "sum", "shared"]


def adapter(name: str) -> bool:
    """Whether a leaf is part of a pair."""
    return name.endswith((A, B))


def with_lora(
    model: Model, tasks: int, rank: int, alpha: float, target: str, use: Use, train: str | None
) -> Model:
    """The model with pairs at its kernels.

    Args:
        rank: r, of one task.
        alpha: the change is scaled by alpha / rank.
        target: regular expression of the kernels; they are frozen, as is all else.
        use: "own": a task uses its own pair; "sum": those of all tasks up to it; "shared": there
            is one pair, which all tasks train.
        train: regular expression of other leaves that train (a head), or None.
    """
    many = 1 if use == "shared" else tasks

    def init(key: Array) -> Leaves:
        params = dict(model.init(key))
        names = chosen(params, target)
        for n, k in zip(
            names, jax.random.split(jax.random.fold_in(key, 1), len(names)), strict=True
        ):
            w = params[n]
            bound = fan_in(w) ** -0.5  # Kaiming uniform with a = sqrt 5, as torch's Linear
            params[n + A] = jax.random.uniform(k, (many, w.shape[0], rank), w.dtype, -bound, bound)
            params[n + B] = jnp.zeros((many, rank, w.shape[1]), w.dtype)
        return params

    def weights(params: Leaves, task: Array) -> Leaves:
        own = {n: p for n, p in params.items() if not adapter(n)}
        for n in own:
            if n + A not in params:
                continue
            a, b = params[n + A], params[n + B]
            if use == "sum":
                on = (jnp.arange(many) <= task).astype(a.dtype)
                change = jnp.einsum("t,tdr,tro->do", on, a, b)
            else:
                slot = 0 if use == "shared" else task
                change = a[slot] @ b[slot]
            own[n] = own[n] + (alpha / rank) * change
        return own

    def put(params: Leaves, merged: Leaves) -> Leaves:
        off = {n: jnp.zeros_like(p) for n, p in params.items() if n.endswith(B)}
        return {**params, **model.put(params, merged), **off}

    def answer(call: Callable | None):
        return call and (lambda params, x, task, *key: call(weights(params, task), x, task, *key))

    also = lambda n: train is not None and re.search(train, n) is not None and model.trainable(n)
    return model._replace(
        init=init,
        apply=answer(model.apply),
        predict=answer(model.predict),
        train=answer(model.train),
        from_features=answer(model.from_features),
        trainable=lambda n: adapter(n) or also(n),
        slots=lambda n: (adapter(n) and use != "shared") or model.slots(n),
        weights=lambda params, task: model.weights(weights(params, task), task),
        put=put,
    )
