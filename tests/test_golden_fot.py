"""FOT against the authors' code: sketches, ranks, the server's step; `fedavg` by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_streams import close, given, load, stream
from golden_streams import learn as learnt

import jaxmerge.continual.methods as m
from jaxmerge.continual import streams
from jaxmerge.continual.federated import federated
from jaxmerge.continual.memories import basis
from jaxmerge.continual.methods.fot import join, sketch
from jaxmerge.continual.optimisers import sgd
from jaxmerge.numerics.subspaces import outside

NAMES = [f"layers.{i}.weight" for i in (0, 3, 6, 9)]


def inputs(z, client):
    """What each kernel meets under a client's own weights."""
    x = z[f"{client}_x"]
    for n in NAMES:
        yield n, x
        w, b = z[f"{client}_{n}"], z[f"{client}_{n.replace('weight', 'bias')}"]
        x = np.maximum(x @ w.T + b, 0)


def test_a_stream_of_the_authors(x64):
    z = load("fot", "mlp_stream")
    spaces = {n: basis.empty(z[f"init_{n}"].shape[1], dtype=jnp.float64) for n in NAMES}
    held = {k[len("init_") :]: jnp.asarray(v) for k, v in z.items() if k.startswith("init_")}
    tasks = 1 + max(int(k[4 : k.index("_")]) for k in z if k.startswith("task"))
    for t in range(tasks):
        who = [f"task{t}_client{c}" for c in range(int(z["clients"]))]
        for n in held:
            change = np.mean([z[f"{w}_{n}"] for w in who], 0) - held[n]
            if n in spaces:
                change = outside(change.T, spaces[n].vectors).T
            held[n] = held[n] + change
            close(held[n], z[f"task{t}_server_{n}"], 1e-12)
        sent = {n: [] for n in NAMES}
        for w in who:
            for n, x in inputs(z, w):
                y, ratio = sketch(spaces[n], jnp.asarray(x), z[f"{w}_random_{n}"])
                close(y, z[f"{w}_sketch_{n}"], 1e-12)
                close(ratio, z[f"{w}_ratio_{n}"], 1e-12)
                sent[n].append((y, ratio, len(x)))
        for n in NAMES:
            y, ratio, count = (
                jnp.stack([jnp.asarray(v) for v in x]) for x in zip(*sent[n], strict=True)
            )
            spaces[n] = join(spaces[n], y, ratio, count, z["epsilon"])
            assert int(spaces[n].rank) == z[f"task{t}_rank_{n}"]
            vectors = spaces[n].vectors
            close(vectors @ vectors.T, z[f"task{t}_projector_{n}"], 1e-10)


def test_a_convolution_of_the_authors(x64):
    z = load("fot", "conv_delta")
    flat = lambda k: z[k].reshape(len(z[k]), -1).T  # [channels height width, out]
    change = (flat("client0") + flat("client1")) / 2 - flat("global_kernel")
    space = basis.Basis(jnp.asarray(z["basis"]), jnp.int32(z["basis"].shape[1]))
    close(flat("global_kernel") + outside(change, space.vectors), flat("expected_global"), 1e-12)


def learn(model, data, optimiser, *methods):
    """The last state."""
    return learnt(model, data, *methods, optimiser=optimiser)[0].state


def small(tasks=2, steps=6, size=12):
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=s) * 0.4 for s in ((6, 5), (3, 6))]
    biases = [rng.normal(size=len(k)) * 0.1 for k in kernels]
    xs = [rng.normal(size=(steps, size, 5)) * (np.arange(5) < 2 + t) for t in range(tasks)]
    ys = [rng.integers(0, 3, (steps, size)) for _ in range(tasks)]
    model = given(tuple(kernels), tuple(biases))
    return model, stream(xs, ys)


@pytest.mark.parametrize("clients", [1, 3])
def test_one_step_of_all_clients_is_a_step_of_sgd(clients, x64):
    model, data = small()
    plain = learn(model, data, sgd(0.1))
    method = m.fedavg(clients, epochs=1, batch=12 // clients, rate=0.1)
    averaged = learn(model, data, sgd(1.0), method)
    for n, p in plain.params.items():
        close(averaged.params[n], p, 1e-12)


def test_epochs_of_one_client_are_steps_of_sgd_with_decay(x64):
    model, data = small(tasks=1, steps=1)
    again = data._replace(
        **{k: jnp.repeat(getattr(data, k), 4, 1) for k in ("rows", "origin", "weight")}
    )
    plain = learn(model, again, sgd(0.1, weight_decay=0.01))
    method = m.fedavg(1, epochs=4, batch=12, rate=0.1, weight_decay=0.01)
    for n, p in plain.params.items():
        close(learn(model, data, sgd(1.0), method).params[n], p, 1e-12)


def test_old_inputs_feel_nothing(x64):
    model, data = small()
    method = m.fot(1.0, clients=3, batch=2, rate=0.1)
    first = jax.tree.map(
        lambda x: x[:1], {k: getattr(data, k) for k in ("rows", "origin", "weight", "info")}
    )
    first = data._replace(**first)
    one, both = learn(model, first, sgd(1.0), method), learn(model, data, sgd(1.0), method)
    spaces = one.memory[0]
    assert int(spaces["layer_0/kernel"].rank) == 2  # the inputs of task 0 have two numbers
    for n, space in spaces.items():
        u = space.vectors
        change = both.params[n] - one.params[n]
        assert float(jnp.abs(change).max()) > 1e-3 or int(space.rank) == len(u)
        close(u.T @ change, jnp.zeros((u.shape[1], change.shape[1])), 1e-12)
        grown = both.memory[0][n].vectors
        close(grown.T @ grown, jnp.diag(jnp.arange(len(u)) < both.memory[0][n].rank), 1e-12)


def test_a_federated_stream():
    x, y = np.zeros((40, 2), np.float32), np.arange(40) % 4
    whole = streams.split((x, y), (x, y), [[0, 1], [2, 3]])
    dealt = federated(whole, 5, 2, 7, by_label=True)
    assert dealt.rows.shape == (2, 7, 8)
    assert all(len(set(y[c])) <= 2 for c in dealt.rows.reshape(-1, 4))  # two shards of two
    assert sorted(dealt.sample[1]) == sorted(np.flatnonzero(y >= 2))
    uneven = streams.split((x[:34], y[:34]), (x, y), [[0, 1], [2]])
    fewer = federated(uneven, 4, 2, 3)
    assert fewer.rows.shape == (2, 3, 8)
    assert fewer.weight[1].sum() == 3 * 2 * 2
    with pytest.raises(ValueError, match="6 clients a round cannot be chosen from 5"):
        federated(whole, 5, 6, 1)
    with pytest.raises(ValueError, match="20 examples of a task cannot be dealt to 21 clients"):
        federated(whole, 21, 2, 1)


def test_rounds_that_cannot_be_cut_are_refused():
    model, data = small()
    with pytest.raises(ValueError, match="12 examples cannot be cut into 5 clients"):
        learn(model, data, sgd(1.0), m.fedavg(5))
