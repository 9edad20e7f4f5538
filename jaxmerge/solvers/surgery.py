"""Representation surgery: mend the features of a merged model, task by task, without labels.

A merged model's features are biased away from each single model's.  A small residual adapter per
task, learned to undo that on unlabelled inputs, is put after the merged encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax

from jaxmerge.core.types import Array, Leaves, Tree
from jaxmerge.solvers.core import Solver, check_step, descend, finite

Features = Callable[[Tree], Array]  # inputs -> [B, d]


def surgery(
    merged: Features,
    single: Features,
    width: int,
    *,
    rank: int = 16,
    key: jax.Array,
    optimizer: optax.GradientTransformation | None = None,
) -> Solver:
    """Learn the adapter of one task from unlabelled inputs.

    Formula: z' = z - relu(z A) B, minimise mean |z'(merged) - z(single)|_1.

    Args:
        merged: features of the merged model.
        single: features of this task's own model, the target.
        width: d of the features.
        rank: of A [d, rank] and B [rank, d]; the paper takes 16 or 64.
        key: PRNG key of A; B starts at zero, so the adapter starts as the identity.
        optimizer: default Adam at 1e-3.

    `params(state)` are the adapter's, for `operate`.

    Memory: 2 d rank floats.

    Source: Yang et al., Representation Surgery for Multi-Task Model Merging, ICML 2024, eq. 4.

    Example:
        >>> solver = surgery(lambda x: x + 1.0, lambda x: x, 2, rank=1, key=jax.random.key(0))
        >>> state, info = solver.step(solver.init(), jnp.ones((3, 2)))
        >>> info["loss"], solver.params(state)["down"].shape
        (1.0, (2, 1))
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    optimizer = optimizer or optax.adam(1e-3)

    def init():
        down = jax.random.normal(key, (width, rank)) / width**0.5
        adapter = {"down": down, "up": jnp.zeros((rank, width))}
        return adapter, optimizer.init(adapter)

    @jax.jit
    def jitted(state, source, target):
        adapter, opt = state
        objective = lambda a: jnp.abs(operate(a, source) - target).mean()
        value, grads = jax.value_and_grad(objective)(adapter)
        return descend(optimizer, grads, opt, adapter), value, finite(grads)

    def step(state, inputs):
        state, value, good = jitted(state, merged(inputs), single(inputs))
        check_step(operate, state[0], inputs, value, good)
        return state, {"loss": float(value)}

    return Solver(init, step, lambda state: dict(state[0]))


def operate(adapter: Leaves, features: Array) -> Array:
    """Features [B, d] after the adapter.

    Args:
        adapter: ``down`` [d, rank] and ``up`` [rank, d], of `surgery`.
        features: [B, d], of the merged model.

    Example:
        >>> adapter = {"down": jnp.ones((2, 1)), "up": jnp.ones((1, 2))}
        >>> operate(adapter, jnp.array([[1.0, 2.0]]))
        Array([[-2., -1.]], dtype=float32)
    """
    return features - jax.nn.relu(features @ adapter["down"]) @ adapter["up"]


def bias(merged: Features, single: Features, batches: Iterable[Tree]) -> float:
    """Representation bias: the mean |z(merged) - z(single)|, what surgery reduces (eq. 2).

    Args:
        merged: features of the merged model.
        single: features of this task's own model.
        batches: of inputs.

    Example:
        >>> bias(lambda x: x + 1.0, lambda x: x, [jnp.ones((3, 2))])
        1.0
    """
    gaps = [jnp.abs(merged(x) - single(x)).mean(-1) for x in batches]
    if not any(map(len, gaps)):
        raise ValueError("The representation bias needs data, got no example.")
    return float(jnp.concatenate(gaps).mean())
