"""Federated averaging: a step is a round of clients."""

from __future__ import annotations

from collections.abc import Callable

from jaxmerge.continual.memories.clients import Local, average, weights_of
from jaxmerge.continual.parts import trained_leaves
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import Count, NonNegative, Positive, methods
from jaxmerge.core.types import Leaves


@methods.register
def fedavg(
    clients: Count = 64,
    epochs: Count = 1,
    batch: Count = 64,
    rate: Positive = 0.01,
    weight_decay: NonNegative = 0.0,
) -> Method:
    """Federated averaging: clients train from the global weights, the server takes their mean.

    Formula: theta <- theta - eta (theta - mean_c theta_c), theta_c the weights of client c after
    its own epochs of SGD on the objective. The optimiser of the setup is the server's and takes
    theta - mean_c theta_c for a gradient: ``sgd(1.0)`` is the plain mean, Adam is FedAdam.

    Args:
        clients: of a round. The batch of the stream is a round, an equal part for each client
            (`jaxmerge.continual.federated` makes such a stream).
        epochs, batch, rate, weight_decay: of a client's SGD.

    Memory: `clients` models.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized
    Data, AISTATS 2017, algorithm 1; the mean as a gradient: Reddi et al., Adaptive Federated
    Optimization, ICLR 2021, algorithm 1.

    Differs:
        Clients count equally, not by their number of examples. Running statistics are those of the
        round's whole batch at the global weights, no mean of clients' ones. Clients see the
        objective alone; gradients of other methods' losses, on the whole batch at the global
        weights, are added at the server.

    >>> fedavg(clients=8)
    fedavg(clients=8)
    """
    local = Local(clients, epochs, batch, rate, weight_decay)
    return Method(gradient=to_the_mean(local), replaces=("the gradient",))


def to_the_mean(local: Local) -> Callable[..., Leaves]:
    """A `gradient` hook: global weights minus the mean of the clients, for the objective's."""

    def gradient(model, step, grads, grad_at):
        mean = average(step, weights_of(model, step, local), local.clients)
        start = trained_leaves(model, step.params, step.task)
        plain = step.grads
        more = {n: g - plain[n] for n, g in grads.items() if g is not plain[n]}
        return {n: start[n] - mean[n] + more.get(n, 0) for n in grads}

    return gradient
