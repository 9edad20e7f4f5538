"""FW-Merging: merging as Frank-Wolfe over a pool of checkpoints of unknown quality.

    minimise  loss(theta),  theta in conv{theta_1 .. theta_T}

Each step takes the gradient at the merged model, asks a linear oracle for the checkpoint (or, leaf
by leaf, the checkpoints) best aligned with descent, and moves a step 2/(t+2) towards it.
Irrelevant models are simply never chosen.  The oracle is a fold over leaves: the pool may be lazy
files, of which one leaf at a time is read, so memory does not grow with the pool.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmerge.core.hyperparameters import check_range
from jaxmerge.core.names import check_same, is_float
from jaxmerge.core.types import Array, Leaves
from jaxmerge.drivers.batch_merge import merge
from jaxmerge.errors import closest
from jaxmerge.methods.sparse import ties
from jaxmerge.numerics.precision import full_precision
from jaxmerge.solvers.core import Loss, Solver, check_step, descend, finite

_to_simplex = jnp.vectorize(optax.projections.projection_simplex, signature="(n)->(n)")

Granularity = Literal["layer", "task"]
Oracle = Literal["inner", "cosine"]


class FrankWolfeState(NamedTuple):
    """The state of both variants.

    Attributes:
        step: int32, steps done.
        params: the merged model.
    """

    step: Array
    params: Leaves


def frank_wolfe(
    loss: Loss,
    pool: Sequence[Leaves],
    *,
    start: Leaves | None = None,
    granularity: Granularity = "layer",
    oracle: Oracle = "inner",
    step_size: float = 1.0,
    factor: float = 1.0,
    density: float | None = None,
) -> Solver:
    """FW-Merging with a hard oracle: one checkpoint (for each leaf) a step.

    Formula: s = argmin_m <grad, theta_m>;  theta <- theta + gamma factor (s - theta),
    gamma = step_size 2/(t + 2).

    Args:
        loss: ``(params, batch) -> scalar``, differentiable; the proxy data come in batches.
        pool: checkpoints, flat mappings, lazy or not.
        start: where to start; default the mean of the pool, which is in the hull.
        granularity: "layer" lets every parameter tensor choose its own checkpoint,
            "task" takes one for all of them.
        oracle: "inner", the exact inner product of the paper; "cosine", <g, theta_m>/|g||theta_m|
            summed over leaves, as the authors' released code has it.
        step_size: scales gamma; the release takes 0.1 for vision.
        factor: the merge function's coefficient; the release takes 0.3.
        density: merge with TIES at this density instead of task arithmetic.

    Info of a step: loss, gap (the duality gap <grad, theta - s>, >= 0 and an upper bound on the
    suboptimality of a convex loss, when theta is in the hull and the oracle exact), chosen (name
    or "all" -> index in the pool), step_size.

    Memory: 3 models (merged, gradient, update) and one leaf of a checkpoint.

    Source: FW-Merging, ICCV 2025, algorithm 1 and section 3; tested for O(1/t) on a quadratic.

    Example:
        >>> loss = lambda params, batch: jnp.sum((params["w"] - batch) ** 2)
        >>> pool = [{"w": np.float32([v])} for v in (0.0, 4.0)]
        >>> solver = frank_wolfe(loss, pool)
        >>> state, info = solver.step(solver.init(), jnp.array([4.0]))
        >>> info["chosen"], solver.params(state)["w"].tolist()
        ({'w': 1}, [4.0])
    """
    _check(granularity, oracle, step_size, density)
    check_range("factor", factor, -float("inf"), one=True)
    first = _start(pool, start)
    gradient = _gradient(loss)

    def step(state: FrankWolfeState, batch: Any):
        floats, rest = _split(state.params)
        value, grad = gradient(floats, rest, batch)
        scores = oracle_scores(grad, pool, oracle)
        best = {n: int(np.argmin(s)) for n, s in scores.items()}
        if granularity == "task":
            total = np.sum(list(scores.values()), axis=0)
            best = dict.fromkeys(best, int(np.argmin(total)))
        gamma = step_size * 2 / (int(state.step) + 2)
        vertex = {n: jnp.asarray(pool[m][n]) for n, m in best.items()}
        gap = sum(float(_inner(grad[n], floats[n] - vertex[n])) for n in grad)
        if density is None:
            new = {n: _towards(floats[n], vertex[n], gamma * factor) for n in floats}
        else:
            new = merge(ties(density, gamma * factor), floats, [vertex])
        chosen = best if granularity == "layer" else {"all": next(iter(best.values()))}
        info = {"loss": float(value), "gap": gap, "chosen": chosen, "step_size": gamma}
        return FrankWolfeState(state.step + 1, {**rest, **new}), info

    return Solver(lambda: FrankWolfeState(jnp.int32(0), first), step, lambda s: dict(s.params))


def soft_frank_wolfe(
    loss: Loss,
    pool: Sequence[Leaves],
    *,
    start: Leaves | None = None,
    vertices: int = 3,
    granularity: Granularity = "task",
    oracle: Oracle = "inner",
    inner_steps: int = 20,
    optimizer: optax.GradientTransformation | None = None,
) -> Solver:
    """FW-Merging with a soft oracle: the best few checkpoints, with coefficients that are learned.

    Formula: S = the `vertices` checkpoints of least <grad, theta_m>;  theta <- lambda_0 theta +
    sum_j lambda_j s_j, lambda in the simplex, by `inner_steps` projected gradient steps on the
    same batch from lambda = (1 - gamma, gamma/k, ...), gamma = 2/(t + 2), of which the best is
    kept, staying where it is among them.

    Args:
        vertices: k, how many checkpoints a step may mix.
        granularity: one lambda for all leaves ("task") or one for each ("layer").
        inner_steps: projected gradient steps on lambda.
        optimizer: an optax optimiser of lambda; default Adam at 0.05.
        loss, pool, start, oracle: as in `frank_wolfe`.

    Info of a step: loss before, loss_after, gap (as in `frank_wolfe`), chosen (indices in the
    pool), coefficients.

    Memory: k + 4 models.

    Source: FW-Merging, ICCV 2025, section 3.3 (FW_soft).  Differs: the released vision code runs
    AdaMerging inside; here the simplex projection of the paper keeps theta in the hull.

    Example:
        >>> loss = lambda params, batch: jnp.sum((params["w"] - batch) ** 2)
        >>> pool = [{"w": np.float32([v])} for v in (0.0, 4.0)]
        >>> solver = soft_frank_wolfe(loss, pool, vertices=1)
        >>> state, info = solver.step(solver.init(), jnp.array([4.0]))
        >>> info["chosen"], info["loss_after"] < info["loss"]
        ({'all': [1]}, True)
    """
    _check(granularity, oracle, 1.0, None)
    if not 1 <= vertices <= len(pool):
        raise ValueError(f"vertices must be in [1, {len(pool)}] for this pool, got {vertices}.")
    if inner_steps < 1:
        raise ValueError(f"inner_steps must be at least 1, got {inner_steps}.")
    first = _start(pool, start)
    optimizer = optimizer or optax.adam(0.05)
    gradient = _gradient(loss)

    @full_precision
    def mixed(coefficients, points):
        return {n: jnp.tensordot(c, points[n], 1) for n, c in coefficients.items()}

    @jax.jit
    def refine(coefficients, points, rest, batch):
        def objective(c):
            return loss({**rest, **mixed(_spread(c, points), points)}, batch)

        def keep(best, value, c):
            better = value < best[0]
            return jax.tree.map(lambda old, new: jnp.where(better, new, old), best, (value, c))

        def one(carry, _):
            c, opt, best = carry
            value, grads = jax.value_and_grad(objective)(c)
            best = keep(best, value, c)
            c, opt = descend(optimizer, grads, opt, c)
            c = jax.tree.map(_to_simplex, c)
            return (c, opt, best), None

        stay = jax.tree.map(lambda c: jnp.zeros_like(c).at[0].set(1), coefficients)
        carry = (coefficients, optimizer.init(coefficients), (objective(stay), stay))
        (c, _, best), _ = jax.lax.scan(one, carry, None, inner_steps)
        value, c = keep(best, objective(c), c)
        return c, mixed(_spread(c, points), points), value

    def step(state: FrankWolfeState, batch: Any):
        floats, rest = _split(state.params)
        value, grad = gradient(floats, rest, batch)
        scores = oracle_scores(grad, pool, oracle)
        order = {n: np.argsort(s, kind="stable")[:vertices] for n, s in scores.items()}
        if granularity == "task":
            total = np.argsort(np.sum(list(scores.values()), axis=0), kind="stable")[:vertices]
            order = dict.fromkeys(order, total)
        points = {
            n: jnp.stack([floats[n], *(jnp.asarray(pool[int(m)][n]) for m in order[n])])
            for n in floats
        }
        gap = sum(float(_inner(grad[n], x[0] - x[1])) for n, x in points.items())
        gamma = 2 / (int(state.step) + 2)
        from_here = jnp.array([1 - gamma] + [gamma / vertices] * vertices)
        names = list(points) if granularity == "layer" else ["all"]
        c, new, after = refine(dict.fromkeys(names, from_here), points, rest, batch)
        chosen = order if granularity == "layer" else {"all": next(iter(order.values()))}
        info = {
            "loss": float(value),
            "loss_after": float(after),
            "gap": gap,
            "chosen": {n: [int(m) for m in best] for n, best in chosen.items()},
            "coefficients": {n: np.asarray(x).tolist() for n, x in c.items()},
        }
        return FrankWolfeState(state.step + 1, {**rest, **new}), info

    return Solver(lambda: FrankWolfeState(jnp.int32(0), first), step, lambda s: dict(s.params))


def _gradient(loss: Loss):
    """(floats, other leaves, batch) -> the loss and its gradient, both finite."""

    @jax.jit
    def both(floats, rest, batch):
        value, grad = jax.value_and_grad(lambda p: loss({**rest, **p}, batch))(floats)
        return value, grad, finite(grad)

    def gradient(floats, rest, batch):
        value, grad, good = both(floats, rest, batch)
        check_step(loss, {**rest, **floats}, batch, value, good)
        return value, grad

    return gradient


def oracle_scores(grad: Leaves, pool: Sequence[Leaves], oracle: Oracle) -> dict[str, np.ndarray]:
    """Leaf name -> the score of every checkpoint on that leaf, [len(pool)]; the least is best.

    Args:
        grad: name -> array, the gradient of the loss.
        pool: checkpoints, lazy or not.
        oracle: "inner" or "cosine", see `frank_wolfe`.

    Raises:
        ValueError: a score is not finite, since a checkpoint holds NaN or Inf.

    Example:
        >>> pool = [{"w": np.float32([v])} for v in (1.0, 4.0)]
        >>> oracle_scores({"w": jnp.array([-1.0])}, pool, "inner")["w"].tolist()
        [-1.0, -4.0]
    """
    scores = {
        n: np.array([float(_score(g, jnp.asarray(model[n]), oracle)) for model in pool])
        for n, g in grad.items()
    }
    for n, values in scores.items():
        if not np.isfinite(values).all():
            wrong = np.flatnonzero(~np.isfinite(values)).tolist()
            raise ValueError(
                f"NaN or Inf in the score of models {wrong[:10]} of the pool, leaf {n!r}: check "
                "these checkpoints, or leave them out."
            )
    return scores


_inner = full_precision(jnp.vdot)


@functools.partial(jax.jit, static_argnums=2)
def _score(g, s, oracle):
    inner = _inner(g, s.astype(g.dtype))
    if oracle == "inner":
        return inner
    norms = jnp.linalg.norm(g) * jnp.linalg.norm(s.astype(g.dtype))
    return jnp.where(norms > 0, inner / jnp.where(norms > 0, norms, 1), 0)


@jax.jit
def _towards(theta, s, gamma):
    return (theta + gamma * (s.astype(theta.dtype) - theta)).astype(theta.dtype)


def _spread(coefficients, points):
    if "all" in coefficients and "all" not in points:
        return dict.fromkeys(points, coefficients["all"])
    return coefficients


def _split(params: Leaves) -> tuple[dict[str, Array], dict[str, Array]]:
    floats = {n: jnp.asarray(x) for n, x in params.items() if is_float(x)}
    return floats, {n: x for n, x in params.items() if n not in floats}


def _start(pool: Sequence[Leaves], start: Leaves | None) -> Leaves:
    if not pool:
        raise ValueError("The pool holds no model; FW-Merging needs at least one.")
    like = pool[0] if start is None else start
    check_same(like, *pool, who="model {} of the pool")
    if start is not None:
        return {n: jnp.asarray(x) if is_float(x) else x for n, x in start.items()}
    return {
        n: sum(jnp.asarray(m[n], jnp.float32) for m in pool) / len(pool) if is_float(x) else x
        for n, x in ((n, like[n]) for n in like)
    }


def _check(granularity: str, oracle: str, step_size: float, density: float | None) -> None:
    if granularity not in ("layer", "task"):
        raise ValueError(
            f"granularity is {granularity!r}: {closest(granularity, ('layer', 'task'))}"
        )
    if oracle not in ("inner", "cosine"):
        raise ValueError(f"oracle is {oracle!r}: {closest(oracle, ('inner', 'cosine'))}")
    check_range("step_size", step_size, 0, 1, open_low=True)
    if density is not None:
        check_range("density", density, 0, 1, open_low=True)
