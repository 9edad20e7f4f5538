"""AdaMerging: merging coefficients, one a task or one a task and leaf, learned on unlabelled data.

theta(lambda) = theta_0 + sum_t lambda_t tau_t,   minimise the entropy of its predictions
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmerge.core.composition import chain
from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.names import is_float
from jaxmerge.core.types import Leaves
from jaxmerge.drivers.batch_merge import merge
from jaxmerge.folds.elementwise import add
from jaxmerge.numerics.precision import full_precision
from jaxmerge.solvers.core import Loss, Solver, check_step, descend, finite, task_vectors
from jaxmerge.transforms.sparsify import trim


class AdaMergingState(NamedTuple):
    """Coefficients and the optimiser's state; the task vectors stay outside.

    Attributes:
        coefficients: {"all": [T]} or leaf name -> [T].
        optimizer: optax state.
    """

    coefficients: Leaves
    optimizer: Any


def adamerging(
    loss: Loss,
    base: Leaves,
    models: Iterable[Leaves],
    *,
    granularity: Literal["layer", "task"] = "layer",
    init: float = 0.3,
    optimizer: optax.GradientTransformation | None = None,
    disentangle: float | None = None,
) -> Solver:
    """AdaMerging; with `disentangle`, AdaMerging++.

    Formula: lambda <- optimiser step on loss(theta_0 + sum_t lambda_t tau_t, batch).

    Args:
        loss: ``(params, batch) -> scalar``, usually `entropy(apply)`; sum over tasks with their
            own heads inside it.
        base: theta_0, name -> array.
        models: at least one, with the leaves of the base.
        granularity: "layer" (T coefficients for every parameter tensor) or "task" (T in all).
        init: lambda at the start.
        optimizer: default Adam at 1e-3, as published.
        disentangle: a density; the task vectors are first trimmed to it (over the whole model) and
            stripped of entries that disagree with the elected sign: AdaMerging++.

    Info of a step: loss, coefficients.

    Memory: T + 2 models and the activations of one backward pass.

    Source: Yang et al., AdaMerging, ICLR 2024, sections 3.2 and 3.3.  Differs: adapts on whatever
    batches it is given; the published protocol adapts on the test inputs that are then scored.

    Example:
        >>> from jaxmerge.solvers.core import entropy
        >>> base, models = {"w": np.zeros(2, np.float32)}, [{"w": np.float32([2, 0])}]
        >>> solver = adamerging(entropy(lambda params, x: x * params["w"]), base, models)
        >>> state, info = solver.step(solver.init(), jnp.ones((1, 2)))
        >>> round(info["coefficients"]["w"][0], 4)  # a step of Adam up from 0.3: surer predictions
        0.301
    """
    if granularity not in ("layer", "task"):
        raise ValueError(f"granularity must be 'layer' or 'task', got {granularity!r}.")
    check_range("init", init, -float("inf"), one=True)
    models = list(models)
    taus = task_vectors(base, models)
    if disentangle is not None:
        check_range("disentangle", disentangle, 0, 1, open_low=True)
        taus = _disentangled(base, models, disentangle)
    optimizer = optimizer or optax.adam(1e-3)
    fixed = {n: jnp.asarray(x) for n, x in base.items()}

    @full_precision
    def build(coefficients, taus):
        one = coefficients.get("all")
        moved = {
            n: (fixed[n] + jnp.tensordot(coefficients[n] if one is None else one, tau, 1)).astype(
                fixed[n].dtype
            )
            for n, tau in taus.items()
        }
        return {**fixed, **moved}

    def start() -> AdaMergingState:
        names = list(taus) if granularity == "layer" else ["all"]
        coefficients = {n: jnp.full(len(models), init, jnp.float32) for n in names}
        return AdaMergingState(coefficients, optimizer.init(coefficients))

    @jax.jit
    def jitted(state, taus, batch):
        value, grads = jax.value_and_grad(lambda c: loss(build(c, taus), batch))(state.coefficients)
        new = AdaMergingState(*descend(optimizer, grads, state.optimizer, state.coefficients))
        return new, value, finite(grads)

    def step(state: AdaMergingState, batch: Any):
        state, value, good = jitted(state, taus, batch)
        check_step(loss, fixed, batch, value, good)
        shown = {n: np.asarray(c).tolist() for n, c in state.coefficients.items()}
        return state, {"loss": float(value), "coefficients": shown}

    return Solver(start, step, lambda state: build(state.coefficients, taus))


def _disentangled(base: Leaves, models: list[Leaves], density: float) -> Leaves:
    """Task vectors after TIES' trim and election, stacked."""
    floats = {n: x for n, x in base.items() if is_float(x)}
    trimmed = [
        merge(chain(trim(density), add()), floats, [{n: m[n] for n in floats}]) for m in models
    ]
    taus = task_vectors(floats, trimmed)
    elect = {n: jnp.where(tau.sum(0) >= 0, 1, -1) for n, tau in taus.items()}
    return {n: jnp.where(tau * elect[n] > 0, tau, 0) for n, tau in taus.items()}
