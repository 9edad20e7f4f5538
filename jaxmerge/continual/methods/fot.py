"""Federated orthogonal training."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmerge.continual.memories import basis
from jaxmerge.continual.memories.clients import Local, each, parts_of, weights_of
from jaxmerge.continual.methods.fedavg import to_the_mean
from jaxmerge.continual.methods.gpm import (
    check_still,
    empty_bases,
    met_kernels,
    spans_of,
    thresholds,
)
from jaxmerge.continual.parts import with_trained
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, Pattern, Positive, Share, methods
from jaxmerge.continual.taps import layer_inputs
from jaxmerge.continual.wraps.kernels import matching
from jaxmerge.core.types import Array
from jaxmerge.numerics.subspaces import outside

Draws = Literal["uniform", "normal"]


@methods.register
def fot(
    threshold: Share | tuple[Share, ...] = 0.96,
    growth: float = 0.0,
    draws: Draws = "uniform",
    width: Count = 1,
    project: Pattern = ".*",
    capacity: Count | None = None,
    clients: Count = 64,
    epochs: Count = 1,
    batch: Count = 64,
    rate: Positive = 0.01,
    weight_decay: NonNegative = 1e-5,
) -> Method:
    """Federated orthogonal training: the server moves a kernel only outside old tasks' inputs.

    Formula: `fedavg`, and of what the server does to a kernel W [in, out]

        dW <- dW - U U' dW,    U [in, k] orthonormal;

    clients are not constrained, biases are averaged freely. In a task's last round every client
    sends, for the inputs A [in, n] of each kernel under its own trained weights, the sketch
    (A - U U'A) Z of random Z [n, width x in], the ratio |A - U U'A| / |A| and n; the server adds
    leading directions of the sum of the sketches to U (`join`).

    Args:
        threshold: e, the kept share of the energy, in [0, 1]; one number or one for each projected
            kernel in order.
        growth: what is added to it after every task.
        draws: of Z, "uniform" on [-1, 1) as for permuted MNIST, or "normal" as for CIFAR.
        width: columns of Z for each input of the kernel; 5 for dense kernels of CIFAR's network.
        project: regular expression of the kernels that are projected.
        capacity: columns of U; None: as many as inputs. Once all are used further directions,
            the weakest first, are left out and are unprotected.
        clients, epochs, batch, rate, weight_decay: see `fedavg`; the stream and the server's
            optimiser, ``sgd(1.0)``, too.

    Memory: in x capacity numbers a kernel, and `clients` models. A task's last round is trained
    twice.

    Source: Bakman et al., Federated Orthogonal Training, ICLR 2024, algorithms 1 and 2;
    duygunuryldz/Federated_Orthogonal_Training, ``fedavg_seq_cont``.

    Differs:
        Inputs are those of evaluation, the authors' those of training before dropout.

    >>> fot(0.94, clients=8)
    fot(threshold=0.94, clients=8)
    """
    local = Local(clients, epochs, batch, rate, weight_decay)

    def chosen(model, params, names):
        return thresholds("fot", model, params, project, names, threshold)

    def init(model, params, batch, stored):
        check_still("fot", model, params)
        return empty_bases(model, params, batch, chosen, capacity)

    def sketches(model, step):
        """Of all clients: their sum, and ratio and number of inputs of each."""

        def of_client(trained, examples, key):
            params = with_trained(model, step.params, trained, step.task)
            met, out = layer_inputs(model, params, examples, step.task), {}
            for i, (n, space) in enumerate(sorted(step.memory.items())):
                rows, d = met[n], met[n].shape[1]
                z = draw(draws, jax.random.fold_in(key, i), (len(rows), width * d), rows.dtype)
                many = jnp.sum(examples.weight > 0) * (len(rows) // len(examples.weight))
                out[n] = (*sketch(space, rows, z), many)
            return out

        examples = parts_of(step.batch, clients)
        keys = jax.random.split(jax.random.fold_in(step.key, 1), clients)
        return each(of_client, weights_of(model, step, local), examples, keys)

    def observe(model, step):
        def last(memory):
            sent = sketches(model, step)
            shares = chosen(model, step.params, met_kernels(model, step.params, step.batch))
            due = {n: basis.due(e, growth, step.task) for n, e in shares.items()}
            joined = {}
            for n, space in memory.items():
                rows, ratios, counts = sent[n]
                joined[n] = join(space, rows, ratios, counts, due[n])
            return joined

        ends = step.count == step.total - 1
        return jax.lax.cond(ends, last, lambda memory: memory, step.memory)

    return Method(
        init=init, gradient=to_the_mean(local), replaces=("the gradient",), spans=spans_of,
        observe=observe,
        claims=lambda model, params: matching(model, params, project),
    )  # fmt: skip


def draw(draws: Draws, key: Array, shape: tuple[int, ...], dtype) -> Array:
    """Random numbers of a sketch."""
    if draws == "uniform":
        return jax.random.uniform(key, shape, dtype, -1, 1)
    return jax.random.normal(key, shape, dtype)


def sketch(space: basis.Basis, inputs: Array, z: Array) -> tuple[Array, Array]:
    """What a client sends of a kernel's inputs ``[n, in]``: R Z ``[in, columns]``, |R| / |A|."""
    rest = outside(inputs.T, space.vectors)
    length = jnp.linalg.norm(inputs)
    ratio = jnp.linalg.norm(rest) / jnp.where(length > 0, length, 1)
    return rest @ z, jnp.where(space.rank > 0, ratio, 1)


def join(
    space: basis.Basis, sketches: Array, ratios: Array, counts: Array, energy: Array | float
) -> basis.Basis:
    """The basis with what the sketches of all clients add.

    Y = sum of the sketches = P S Q', rho the mean of the ratios by counts; the first p_1 .. p_i
    join for which (s_1^2 + .. + s_i^2) / |Y|^2 is above (rho - (1 - energy)) / rho, one at least;
    none that is only rounding of what the sketches of A itself would be, |Y| / rho.
    rho is a ratio of norms where `energy` is of squares, as in the authors' code.

    Args:
        sketches: [clients, in, columns]; ratios, counts: [clients].
    """
    total = jnp.sum(sketches, 0)
    rho = jnp.sum(ratios * counts) / jnp.maximum(jnp.sum(counts), 1)
    target = (rho - (1 - energy)) / jnp.where(rho > 0, rho, 1)
    p, s, _ = jnp.linalg.svd(total, full_matrices=False)
    squares = jnp.cumsum(s**2)
    before = jnp.concatenate([jnp.zeros(1, s.dtype), squares[:-1]])
    whole = jnp.sqrt(squares[-1]) / jnp.where(rho > 0, rho, 1)  # of sketches of A itself
    real = basis.real(s, len(p), whole)
    count = jnp.maximum(jnp.sum((before <= target * squares[-1]) & real), real[0])
    return basis.append(space, basis.fresh(space, p.T), count.astype(jnp.int32))
