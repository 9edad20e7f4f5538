"""Merging as optimisation: `init / step / params`, any loss, any optax optimiser.

A `Solver` is to data-driven merging what an optax transformation is to training: three pure
functions over a state that is a pytree, so it can be jitted, checkpointed and resumed.

    solver = adamerging(entropy(apply), base, models)
    state = solver.init()
    for batch in batches:                       # adaptation data: never the data that is scored
        state, info = solver.step(state, batch)
    merged = solver.params(state)

or in one line ``merged, history = solve(solver, batches)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmerge.core.names import check_same, is_float
from jaxmerge.core.types import Array, Leaves, Tree, working_dtype
from jaxmerge.statistics.fisher import check_labels, pair

Loss = Callable[[Leaves, Tree], Array]  # (params, batch) -> scalar


class Solver(NamedTuple):
    """A data-driven merge.

    Attributes:
        init: ``() -> state``.
        step: ``(state, batch) -> (state, info)``; info has at least "loss", a float.
        params: ``state -> merged parameters``.
    """

    init: Callable[[], Any]
    step: Callable[[Any, Any], tuple[Any, dict[str, Any]]]
    params: Callable[[Any], Leaves]


def descend(optimizer: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    """The parameters after one step of an optax optimiser, and its state."""
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def solve(
    solver: Solver, batches: Iterable[Tree], state: Tree | None = None
) -> tuple[Leaves, list[dict[str, Any]]]:
    """Run a solver over batches, from `state` if given; the merged parameters and all infos.

    Args:
        solver: any of this package.
        batches: what its step takes, at least one.
        state: where to go on; None for the solver's start.

    Raises:
        ValueError: no batch; from a step, see `check_step`.

    Example:
        >>> step = lambda x, batch: ((x + batch) / 2, {"loss": 0.0})
        >>> halve = Solver(lambda: jnp.zeros(()), step, lambda x: {"w": x})
        >>> merged, history = solve(halve, [1.0, 1.0])
        >>> float(merged["w"]), len(history)
        (0.75, 2)
    """
    state = solver.init() if state is None else state
    history: list[dict[str, Any]] = []
    for batch in batches:
        state, info = solver.step(state, batch)
        history.append(info)
    if not history:
        raise ValueError("The solver needs adaptation data, got no batch.")
    return solver.params(state), history


def entropy(apply: Callable[[Leaves, Tree], Array]) -> Loss:
    """The mean entropy of the predictions on unlabelled inputs, AdaMerging's objective.

    Formula: -(1/B) sum_b sum_c p_bc log p_bc.

    Args:
        apply: ``(params, inputs [B, ...]) -> logits [B, C]``.

    Example:
        >>> loss = entropy(lambda params, x: x)
        >>> round(float(loss({}, jnp.zeros((1, 4)))), 4)
        1.3863
    """

    def loss(params, inputs):
        logp = jax.nn.log_softmax(apply(params, inputs))
        return -jnp.sum(jnp.exp(logp) * logp, -1).mean()

    return loss


def cross_entropy(apply: Callable[[Leaves, Tree], Array]) -> Loss:
    """The mean cross-entropy of ``(inputs, labels)`` batches; NaN where a label is no class.

    Args:
        apply: ``(params, inputs [B, ...]) -> logits [B, C]``.

    Example:
        >>> loss = cross_entropy(lambda params, x: x)
        >>> round(float(loss({}, (jnp.zeros((1, 4)), jnp.array([2])))), 4)
        1.3863
    """

    def loss(params, batch):
        inputs, labels = pair(batch)
        logp = jax.nn.log_softmax(apply(params, inputs))
        labels = jnp.where(jnp.asarray(labels) < 0, logp.shape[-1], labels)
        return -jnp.take_along_axis(logp, labels[:, None], 1, mode="fill").mean()

    def explain(params, batch):
        inputs, labels = batch
        check_labels(labels, jax.eval_shape(apply, params, inputs).shape)

    loss.explain = explain
    return loss


def finite(grads: Leaves) -> dict[str, Array]:
    """name -> whether all entries are finite; inside compiled code."""
    return {n: jnp.isfinite(g).all() for n, g in grads.items()}


def check_step(loss: Loss, params: Leaves, batch: Any, value: Array, good: dict) -> None:
    """Raise one ValueError if a step's loss or gradients are not finite, with the cause if known.

    Args:
        params: of the shapes that `loss` takes.
        value: the loss.
        good: what `finite` says of the gradients.

    Raises:
        ValueError: a batch without examples; labels outside the head; NaN or Inf, leaves named.
    """
    wrong = [n for n, fine in good.items() if not fine]
    if np.isfinite(value) and not wrong:
        return
    if any(np.shape(x)[:1] == (0,) for x in jax.tree.leaves(batch)):
        raise ValueError("The proxy set is empty: a batch has no examples.")
    explain = getattr(loss, "explain", None)
    if explain is not None:
        explain(params, batch)
    what = "the gradient" if np.isfinite(value) else "the loss and its gradient"
    raise ValueError(
        f"NaN or Inf in {what}, leaves {wrong[:10]}{' ...' * (len(wrong) > 10)}: check the inputs "
        "and the checkpoints, lower the learning rate, or compute in float32."
    )


def task_vectors(base: Leaves, models: Iterable[Leaves]) -> dict[str, Array]:
    """All task vectors of the float leaves, stacked: name -> [T, *leaf].  Memory: T x the model.

    Args:
        base: theta_0, name -> array.
        models: at least one, with the leaves of the base.

    Example:
        >>> one, two = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
        >>> task_vectors(one, [one, two])["w"].tolist()
        [[0.0, 0.0], [-1.0, -1.0]]
    """
    models = list(models)
    if not models:
        raise ValueError("A solver needs at least one model, got none.")
    check_same(base, *models)
    return {
        n: jnp.stack([jnp.asarray(m[n], working_dtype(b)) - jnp.asarray(b) for m in models])
        for n, b in base.items()
        if is_float(b)
    }
