"""Moments of the optimiser that go on over the borders of tasks."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmerge.continual import optimisers, problems, streams
from jaxmerge.continual.drivers import program, run
from jaxmerge.continual.methods import gpm, lora, supsup
from jaxmerge.continual.stream_records import Setup
from jaxmerge.models.mlp.learner import mlp

NETWORK, PROBLEM = mlp(6, (5,), 6), problems.classification()


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    data = rng.normal(size=(24, 6)).astype(np.float32), np.arange(24) % 6
    return streams.split(data, data, [[0, 1], [2, 3], [4, 5]], batch=4, epochs=2)


def test_kept_moments_are_those_of_one_optimiser(stream):
    """Against a loop that makes Adam once; new ones end elsewhere."""
    setup = Setup(NETWORK, PROBLEM, optimisers.adam(0.05), moments="kept")
    model, key = NETWORK.build(), jax.random.key(3)
    params, adam = dict(model.init(jax.random.split(key)[0])), optax.adam(0.05)
    moments = adam.init(params)
    for t in range(stream.tasks):
        for rows in stream.rows[t]:
            x, y = jnp.asarray(stream.inputs[rows]), jnp.asarray(stream.targets[rows])

            def loss(p, x=x, y=y, t=t):
                logits = model.apply(p, x, t).logits
                return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

            updates, moments = adam.update(jax.grad(loss)(params), moments, params)
            params = optax.apply_updates(params, updates)
    found = program(setup, stream, key).state.params
    in_turn = run(setup, stream, key).state.params
    new = program(Setup(NETWORK, PROBLEM, optimisers.adam(0.05)), stream, key).state.params
    for n, p in params.items():
        np.testing.assert_allclose(found[n], p, atol=1e-5)
        np.testing.assert_allclose(in_turn[n], found[n], atol=1e-6)
    assert max(float(jnp.abs(new[n] - found[n]).max()) for n in new) > 1e-2


def test_kept_momentum_does_not_leak_into_a_span(stream):
    setup = Setup(
        mlp(6, (5,), 6, bias=False), PROBLEM, optimisers.sgd(0.1, momentum=0.9),
        (gpm(0.7, examples=8),), moments="kept",
    )  # fmt: skip
    states = []
    run(setup, stream, jax.random.key(0), watch=lambda t, state, R: states.append(state))
    for before, after in itertools.pairwise(states):
        for n, basis in before.memory[0].items():
            change = after.params[n] - before.params[n]
            assert float(jnp.abs(change).max()) > 1e-3
            assert float(jnp.abs(basis.vectors.T @ change).max()) < 1e-6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"moments": "keep"}, "no moments are named 'keep': did you mean kept"),
        ({"optimiser": optimisers.cosine(0.1)}, "the schedule of cosine.* ends with each task"),
        ({"methods": (supsup(),)}, "has a slot for each task"),
        ({"methods": (lora(2),)}, "has a slot for each task"),
    ],
)
def test_moments_that_cannot_be_kept(stream, changed, message):
    given = {
        "model": NETWORK,
        "problem": PROBLEM,
        "optimiser": optimisers.adam(),
        "moments": "kept",
    }
    with pytest.raises(ValueError, match=message):
        program(Setup(**given | changed), stream, jax.random.key(0))
