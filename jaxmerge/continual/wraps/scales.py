"""Kernels that a task rescales inside the input spaces of two earlier tasks.

S_j [in, r_j] is an orthonormal basis of what task j fed to a kernel W [in, out], Q_a a small square
matrix that starts as the identity; j(a), a = 0, 1, are the earlier tasks that a task uses:

    W_eff = W + sum_a S_j(a) (Q_a - 1) S_j(a)' W

Leaves beside each kernel: ``/old_space`` [tasks, in, capacity] (columns from r_j on are zero),
``/old_scale`` [tasks, 2, capacity, capacity], which a task trains, and ``/old_used`` int32
[tasks, 2], -1 for none.

Memory: tasks x capacity x (in + 2 capacity) numbers a kernel; moments of one task's scales only.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxmerge.continual.operators import Operator
from jaxmerge.continual.records import Model
from jaxmerge.continual.wraps.kernels import fan_in, projected, reading
from jaxmerge.core.types import Array, Leaves
from jaxmerge.numerics.precision import full_precision

SPACE, SCALE, USED = "/old_space", "/old_scale", "/old_used"  # "/scale" is a norm's


def added(name: str) -> bool:
    """Whether a leaf is one of the three."""
    return name.endswith((SPACE, SCALE, USED))


@full_precision
def rescaled(kernel: Array, spaces: Array, scales: Array, used: Array) -> Array:
    """W_eff of one task.

    Args:
        kernel: W [in, out], or of a convolution [height, width, in, out].
        spaces: S [tasks, in, capacity].
        scales: Q [2, capacity, capacity]; used: int [2].
    """
    flat = kernel.reshape(-1, kernel.shape[-1])
    change = jnp.zeros_like(flat)
    for a in range(2):
        s = spaces[used[a]] * (used[a] >= 0).astype(flat.dtype)
        change = change + s @ ((scales[a] - jnp.eye(s.shape[1], dtype=flat.dtype)) @ (s.T @ flat))
    return kernel + change.reshape(kernel.shape)


@full_precision
def rescaled_rows(x: Array, spaces: Array, scales: Array, used: Array) -> Array:
    """x + sum_a x S_a (Q_a - 1) S_a' of rows [.., in]: times W they are x W_eff."""
    change = jnp.zeros_like(x)
    for a in range(2):
        s = spaces[used[a]]
        inside = (x @ s) * (used[a] >= 0).astype(x.dtype)
        change = change + (inside @ scales[a] - inside) @ s.T
    return x + change


def without(params: Leaves, task: Array) -> dict[str, Array]:
    """The params in which a task uses no scale, so that every W_eff is W."""
    off = {n: p.at[task].set(-1) for n, p in params.items() if n.endswith(USED)}
    return {**params, **off}


def with_scales(who: str, model: Model, tasks: int, target: str, capacity: int | None) -> Model:
    """The model with scales at its kernels.

    Args:
        who: the method, for messages.
        target: regular expression of the kernels.
        capacity: columns of a space; None: as many as inputs.
    """

    def init(key: Array) -> Leaves:
        params = dict(model.init(key))
        for n in projected(who, model, params, target):
            d, kind = fan_in(params[n]), params[n].dtype
            r = min(capacity or d, d)
            params[n + SPACE] = jnp.zeros((tasks, d, r), kind)
            params[n + SCALE] = jnp.tile(jnp.eye(r, dtype=kind), (tasks, 2, 1, 1))
            params[n + USED] = jnp.full((tasks, 2), -1, jnp.int32)
        return params

    def weights(params: Leaves, task: Array) -> Leaves:
        own = {n: p for n, p in params.items() if not added(n)}
        for n in own:
            if n + SPACE in params:
                scale, used = params[n + SCALE][task], params[n + USED][task]
                own[n] = rescaled(own[n], params[n + SPACE], scale, used)
        return own

    def operators(params: Leaves, task: Array) -> dict[str, Operator]:
        def one(n):
            there = params[n + SPACE], params[n + SCALE][task], params[n + USED][task]
            rows = lambda x, dot: dot(rescaled_rows(x, *there), params[n])
            return Operator(rows, lambda: rescaled(params[n], *there))

        return {n: one(n) for n in params if n + SPACE in params}

    def put(params: Leaves, merged: Leaves) -> Leaves:
        off = {n: jnp.full_like(p, -1) for n, p in params.items() if n.endswith(USED)}
        return {**params, **model.put(params, merged), **off}

    return reading(
        model, weights, operators, init=init, put=put,
        trainable=lambda n: n.endswith(SCALE) or (not added(n) and model.trainable(n)),
        slots=lambda n: n.endswith(SCALE) or (not added(n) and model.slots(n)),
    )  # fmt: skip
