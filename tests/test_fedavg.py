"""A round of federated averaging beside what other methods add to the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from tiny_streams import KEY, split, tiny

from jaxmerge.continual.drivers import program
from jaxmerge.continual.methods import fedavg
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.records import Method
from jaxmerge.continual.registry import methods
from jaxmerge.continual.stream_records import Setup


@methods.register
def drawn(strength: float = 1.0):
    """The sum of all weights, whose gradient is one number."""
    whole = lambda params: sum(jnp.sum(p) for p in jax.tree.leaves(params))
    return Method(loss=lambda model, step: strength * whole(step.params))


def test_gradients_of_other_losses_are_added_at_the_server():
    stream = split(tasks=1, steps=1, batch=6)
    clients = fedavg(2, batch=3, rate=0.1)

    def after(*chosen):
        setup = Setup(tiny(), classification(), sgd(1.0), chosen)
        return jax.jit(program)(setup, stream, KEY).state.params

    alone = after(clients)
    for n, p in after(clients, drawn(0.25)).items():
        np.testing.assert_allclose(p, alone[n] - 0.25, atol=1e-6)
