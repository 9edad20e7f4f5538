"""Localize-and-Stitch: find the few weights that hold each skill, stitch only those together.

The dataless form keeps the largest entries of each task vector (`jm.localize_and_stitch`); here
the mask of one model is learned from a few examples, then given to `jm.stitch` as side information.

    masks = [learn(localize(loss, base, m), batches) for m in models]
    jm.merge(jm.stitch(), base, models, extras=[{"mask": mask} for mask in masks])
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.types import Leaves
from jaxmerge.numerics.measures import keep_count
from jaxmerge.solvers.core import Loss, Solver, check_step, descend, finite, task_vectors


class LocalizeState(NamedTuple):
    """Mask logits of one model and the optimiser's state.

    Attributes:
        logits: name -> array like the leaf; the mask is sigmoid(logits).
        optimizer: optax state.
    """

    logits: Leaves
    optimizer: Any


def localize(
    loss: Loss,
    base: Leaves,
    model: Leaves,
    *,
    density: float = 0.1,
    penalty: float = 0.0,
    bias: float = 3.0,
    optimizer: optax.GradientTransformation | None = None,
) -> Solver:
    """Learn which entries of one model's task vector its task needs.

    Formula: minimise over S  loss(theta_0 + sigmoid(S) tau, batch) + penalty * mean sigmoid(S);
    S starts at +bias on the `density` share of largest |tau| (over the whole model), -bias
    elsewhere; the mask is the `density` share of largest S in the end.

    Args:
        loss: ``(params, batch) -> scalar``, differentiable.
        base: theta_0, name -> array.
        model: with the leaves of the base.
        density: share of entries kept, in (0, 1]; the paper takes 0.01 to 0.1.
        penalty: weight of the l1 term, >= 0.
        bias: how sure the starting mask is.
        optimizer: default SGD at 1e4 scaled by the model's size as the gradient of one entry is
            tiny (the release takes one step at 1e8 on a mean loss).

    `params(state)` is the localised model theta_0 + mask tau; `mask(state, density)` the mask.

    Memory: 5 models and one backward pass.

    Source: He et al., Localize-and-Stitch, TMLR 2025, section 3.2.  Differs: several steps of any
    optax optimiser instead of one of fixed rate.

    Example:
        >>> loss = lambda params, batch: jnp.sum((params["w"] - batch) ** 2)
        >>> base, model = {"w": np.zeros(2, np.float32)}, {"w": np.float32([2, 1])}
        >>> solver = localize(loss, base, model, density=0.5)
        >>> state, info = solver.step(solver.init(), jnp.array([2.0, 0.0]))
        >>> mask(state, 0.5)["w"].tolist(), solver.params(state)["w"].tolist()
        ([True, False], [2.0, 0.0])
    """
    check_range("density", density, 0, 1, open_low=True, one=True)
    check_range("penalty", penalty, 0, one=True)
    tau = {n: x[0] for n, x in task_vectors(base, [model]).items()}
    fixed = {n: jnp.asarray(x) for n, x in base.items()}
    optimizer = optimizer or optax.sgd(1e4)

    def build(gate):
        return {**fixed, **{n: (fixed[n] + gate[n] * tau[n]).astype(fixed[n].dtype) for n in tau}}

    def init() -> LocalizeState:
        largest = top_share({n: jnp.abs(x) for n, x in tau.items()}, density)
        logits = {n: jnp.where(m, bias, -bias).astype(jnp.float32) for n, m in largest.items()}
        return LocalizeState(logits, optimizer.init(logits))

    size = sum(x.size for x in tau.values())

    def objective(logits, batch):
        gate = {n: jax.nn.sigmoid(s) for n, s in logits.items()}
        return loss(build(gate), batch) + penalty * sum(g.sum() for g in gate.values()) / size

    @jax.jit
    def jitted(state, batch):
        value, grads = jax.value_and_grad(objective)(state.logits, batch)
        new = LocalizeState(*descend(optimizer, grads, state.optimizer, state.logits))
        return new, value, finite(grads)

    def step(state: LocalizeState, batch: Any):
        state, value, good = jitted(state, batch)
        check_step(loss, fixed, batch, value, good)
        return state, {"loss": float(value)}

    return Solver(init, step, lambda state: build(mask(state, density)))


def mask(state: LocalizeState, density: float) -> Leaves:
    """The learned mask, name -> bool array, with `density` of all entries set.

    Args:
        state: of `localize`.
        density: share of all entries, in (0, 1].

    Example:
        >>> mask(LocalizeState({"w": jnp.array([3.0, -3.0])}, None), 0.5)["w"].tolist()
        [True, False]
    """
    return top_share(state.logits, density)


def top_share(scores: Leaves, density: float) -> Leaves:
    """The entries among the `density` share of largest scores over all leaves together.

    Args:
        scores: name -> array.
        density: share of all entries, in (0, 1]; what ties with the last is among them.

    Example:
        >>> top_share({"a": np.array([1.0, 4.0]), "b": np.array([3.0, 2.0])}, 0.5)["b"].tolist()
        [True, False]
    """
    check_range("density", density, 0, 1, open_low=True, one=True)
    flat = np.concatenate([np.asarray(x).ravel() for x in scores.values()])
    k = keep_count(density, flat.size)
    least = np.partition(flat, flat.size - k)[flat.size - k]
    return {n: jnp.asarray(x) >= least for n, x in scores.items()}
