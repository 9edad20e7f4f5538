"""Clients of federated learning: the batch of a step is a round, cut into one part a client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmerge.continual.buffers import weighted
from jaxmerge.continual.parts import trained_leaves, with_trained
from jaxmerge.continual.records import Batch, Model, Step
from jaxmerge.core.types import Array, Leaves, Tree


class Local(NamedTuple):
    """How a client trains: SGD from the global weights, moments it has none.

    Attributes:
        clients: of a round.
        epochs, batch: passes over a client's examples, and how many make a step.
        rate, weight_decay: of SGD; decay enters the gradient.
    """

    clients: int
    epochs: int
    batch: int
    rate: Any
    weight_decay: Any


def parts_of(batch: Batch, clients: int) -> Batch:
    """The examples of each client, leaves ``[clients, N, ...]``.

    Args:
        batch: leaves [clients * N, ...].
        clients: how many.

    Raises:
        ValueError: they cannot be dealt out evenly.

    >>> batch = Batch(*[jnp.arange(6)] * 4)
    >>> parts_of(batch, 3).inputs.tolist()
    [[0, 1], [2, 3], [4, 5]]
    """
    size = batch.weight.shape[0]
    if size % clients:
        raise ValueError(
            f"A round of {size} examples cannot be cut into {clients} clients of equal size: make "
            "the stream's batch a multiple of them (`jaxmerge.continual.federated`)."
        )
    return jax.tree.map(lambda x: x.reshape(clients, size // clients, *x.shape[1:]), batch)


def each(run: Callable[..., Any], *args: Tree) -> Tree:
    """`run` for every client: together on an accelerator, one after the other on a CPU.

    Args:
        run: of one client.
        args: pytrees, leaves [clients, ...].

    >>> each(lambda x: x.sum(), jnp.arange(6).reshape(3, 2)).tolist()
    [1, 5, 9]
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(run)(*args)
    return jax.lax.map(lambda x: run(*x), args)


def weights_of(model: Model, step: Step, local: Local) -> Leaves:
    """The trained leaves of every client after its training, ``[clients, ...]``.

    Args:
        model: whose trained leaves move.
        step: its batch is the round, its params are the global weights.
        local: how a client trains.

    Memory: `clients` models.

    >>> model = Model(lambda key: {}, lambda params, x, task: x * params["w"])
    >>> batch = Batch(jnp.ones(4), jnp.ones(4), jnp.zeros(4, int), jnp.ones(4))
    >>> step = Step(*[None] * 13)._replace(
    ...     params={"w": jnp.zeros(1)}, batch=batch, task=0, key=jax.random.key(0),
    ...     objective=lambda out, batch: (out - batch.targets) ** 2 / 2,
    ... )
    >>> local = Local(2, epochs=1, batch=2, rate=0.5, weight_decay=0.0)
    >>> weights_of(model, step, local)["w"].tolist()
    [[0.5], [0.5]]
    """
    own = parts_of(step.batch, local.clients)
    start = trained_leaves(model, step.params, step.task)
    many = own.weight.shape[1]
    short = -many % local.batch

    def loss(trained: Leaves, examples: Batch, weight: Array, key: Array) -> Array:
        params = with_trained(model, step.params, trained, step.task)
        out = model.learn(params, examples.inputs, step.task, key)
        each_loss = weighted(weight, step.objective(out, examples))
        return jnp.sum(each_loss) / jnp.where(jnp.any(weight > 0), jnp.sum(weight), 1)

    def train(examples: Batch, key: Array) -> Leaves:
        order, drop = jax.random.split(key)
        passes = jax.vmap(lambda k: jax.random.permutation(k, many))(
            jax.random.split(order, local.epochs)
        )
        plan = jnp.pad(passes, ((0, 0), (0, short)), constant_values=-1).reshape(-1, local.batch)

        def one(trained: Leaves, x: tuple[Array, Array]) -> tuple[Leaves, None]:
            rows, k = x
            chosen = jax.tree.map(lambda v: v[rows], examples)
            weight = jnp.where(rows >= 0, chosen.weight, 0)
            grads = jax.grad(loss)(trained, chosen, weight, k)
            real = jnp.any(weight > 0)  # a batch without examples decays nothing
            move = lambda p, g: p - jnp.where(real, local.rate * (g + local.weight_decay * p), 0)
            return jax.tree.map(move, trained, grads), None

        return jax.lax.scan(one, start, (plan, jax.random.split(drop, len(plan))))[0]

    return each(train, own, jax.random.split(step.key, local.clients))


def average(step: Step, weights: Leaves, clients: int) -> Leaves:
    """The mean of the clients' leaves, each client that has examples once.

    Args:
        step: its batch is the round.
        weights: of every client, leaves [clients, ...].
        clients: how many.

    >>> batch = Batch(None, None, None, weight=jnp.array([1.0, 1.0, 0.0, 0.0]))
    >>> step = Step(*[None] * 13)._replace(batch=batch)  # the second client has no example
    >>> average(step, {"w": jnp.array([[2.0], [8.0]])}, 2)["w"].tolist()
    [2.0]
    """
    there = jnp.any(parts_of(step.batch, clients).weight > 0, axis=1)
    share = there / jnp.maximum(jnp.sum(there), 1)
    return {n: jnp.tensordot(share.astype(w.dtype), w, 1) for n, w in weights.items()}
