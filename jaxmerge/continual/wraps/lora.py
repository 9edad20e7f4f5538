"""Low-rank changes of frozen kernels, W + s A B: a pair for every task or for all.

A is ``<kernel>/lora_a`` [tasks, in, rank], B is ``<kernel>/lora_b`` [tasks, rank, out]; B starts at
zero, so that a new pair changes nothing. s is alpha / rank, or alpha / sqrt(rank) for
rank-stabilised LoRA. DoRA (Liu et al. 2024, arXiv 2402.09353) trains the length of every column
besides, ``<kernel>/lora_m`` [tasks, out]:

    V = W + s A B,   W' = m V / |V|    (norms over the inputs; no gradient passes through |V|)

Memory: tasks x rank x (in + out) numbers a kernel; gradients and moments of one task's pair only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.records import Model
from jaxmerge.continual.wraps.kernels import chosen, fan_in, reading
from jaxmerge.core.types import Array, Leaves
from jaxmerge.numerics.precision import full_precision

A, B, M = "/lora_a", "/lora_b", "/lora_m"
Patterns = Sequence[tuple[str, float]]
Use = Literal["own", "sum", "shared"]


def adapter(name: str) -> bool:
    """Whether a leaf is part of a pair."""
    return name.endswith((A, B, M))


def pattern(table: Patterns, name: str, default: float) -> float:
    """What the first regular expression that is found in a name says.

    >>> pattern([("mlp/", 4), (".*", 2)], "block_00/mlp/up/kernel", 8)
    4
    """
    return next((value for regex, value in table if re.search(regex, name)), default)


@full_precision
def changed(params: Leaves, name: str, slot: Array | int, scale: float) -> Array:
    """A kernel with the pair of a slot on it, DoRA where it has lengths."""
    v = params[name] + scale * (params[name + A][slot] @ params[name + B][slot])
    if name + M not in params:
        return v
    length = jax.lax.stop_gradient(jnp.linalg.norm(v, axis=0))
    return v * (params[name + M][slot] / length)[None]


def with_lora(
    who: str, model: Model, tasks: int, rank: int, alpha: float, target: str, use: Use,
    train: str | None, *,
    ranks: Patterns = (), alphas: Patterns = (), rslora: bool = False, dora: bool = False,
) -> Model:  # fmt: skip
    """The model with pairs at its kernels.

    Args:
        who: the method, for messages.
        model: the one below.
        tasks: T, of the stream.
        rank: r, of one task.
        alpha: the change is scaled by alpha / rank.
        target: regular expression of the kernels; they are frozen, as is all else.
        use: "own": a task uses its own pair; "sum": those of all tasks up to it; "shared": there
            is one pair, which all tasks train.
        train: regular expression of other leaves that train (a head), or None.
        ranks, alphas: of kernels in whose names a regular expression is found; the first counts.
        rslora: alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732).
        dora: the lengths of columns train too; not with "sum".

    Raises:
        ValueError: DoRA of sums.

    >>> start = lambda key: {"fc/kernel": jnp.ones((3, 2))}
    >>> model = Model(start, lambda params, x, task: x @ params["fc/kernel"])
    >>> lora = with_lora("lora", model, 2, 1, 1.0, "fc", "own", None)
    >>> {n: p.shape for n, p in lora.init(jax.random.key(0)).items()}
    {'fc/kernel': (3, 2), 'fc/kernel/lora_a': (2, 3, 1), 'fc/kernel/lora_b': (2, 1, 2)}
    """
    many = 1 if use == "shared" else tasks
    if dora and use == "sum":
        raise ValueError("dora: lengths of columns belong to one pair, use='own' or 'shared'")

    def rank_of(name: str) -> int:
        return int(pattern(ranks, name, rank))

    def scale_of(name: str) -> float:
        r = rank_of(name)
        return pattern(alphas, name, alpha) / (r**0.5 if rslora else r)

    def init(key: Array) -> Leaves:
        params = dict(model.init(key))
        if train is not None and not any(map(also, params)):
            there = [n for n in params if model.trainable(n)]
            shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
            raise ValueError(
                f"{who}: no leaf that trains matches train={train!r}; there are: {shown}."
            )
        names = chosen(who, model, params, target)
        for n, k in zip(
            names, jax.random.split(jax.random.fold_in(key, 1), len(names)), strict=True
        ):
            w = params[n]
            bound = fan_in(w) ** -0.5  # Kaiming uniform with a = sqrt 5, as torch's Linear
            r = rank_of(n)
            params[n + A] = jax.random.uniform(k, (many, w.shape[0], r), w.dtype, -bound, bound)
            params[n + B] = jnp.zeros((many, r, w.shape[1]), w.dtype)
            if dora:
                params[n + M] = jnp.tile(jnp.linalg.norm(w, axis=0)[None], (many, 1))
        return params

    @full_precision
    def weights(params: Leaves, task: Array) -> Leaves:
        own = {n: p for n, p in params.items() if not adapter(n)}
        for n in own:
            if n + A not in params:
                continue
            if use == "sum":
                on = (jnp.arange(many) <= task).astype(own[n].dtype)
                change = jnp.einsum("t,tdr,tro->do", on, params[n + A], params[n + B])
                own[n] = own[n] + scale_of(n) * change
            else:
                own[n] = changed(params, n, 0 if use == "shared" else task, scale_of(n))
        return own

    def put(params: Leaves, merged: Leaves) -> Leaves:
        off = {n: jnp.zeros_like(p) for n, p in params.items() if n.endswith(B)}
        for n in (n for n in params if n.endswith(M)):
            off[n] = jnp.zeros_like(params[n]) + jnp.linalg.norm(merged[n.removesuffix(M)], axis=0)
        return {**params, **model.put(params, merged), **off}

    also = lambda n: train is not None and re.search(train, n) is not None and model.trainable(n)
    return reading(
        model, weights, init=init, put=put,
        trainable=lambda n: adapter(n) or also(n),
        slots=lambda n: (adapter(n) and use != "shared") or model.slots(n),
    )  # fmt: skip
