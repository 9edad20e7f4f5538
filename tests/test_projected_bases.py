"""What joins a basis of old inputs, and that bases stay orthonormal over a stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from projected_networks import SPACES, own
from tiny_streams import KEY, split

from jaxmerge.continual.drivers import program
from jaxmerge.continual.memories import basis
from jaxmerge.continual.methods.fot import join, sketch
from jaxmerge.continual.methods.osft import FREE, FROZEN
from jaxmerge.continual.optimisers import adamw, sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.wraps.scales import SPACE
from jaxmerge.models.mlp.learner import mlp


def orthonormal(columns, rank):
    """The largest deviation of M'M from the identity on so many columns, zero elsewhere."""
    there = np.diag((np.arange(columns.shape[1]) < rank).astype(float))
    columns = np.asarray(columns, float)
    return np.abs(columns.T @ columns - there).max()


def inputs_of(rng, n, d, rank, span=None):
    """Rows [n, d] of low rank whose directions differ in strength by a factor 1,000."""
    span = rng.normal(size=(rank, d)) if span is None else span
    return jnp.float32((rng.normal(size=(n, rank)) * np.geomspace(1, 1e-3, rank)) @ span)


grow, space = jax.jit(basis.grow), jax.jit(basis.space)


@jax.jit
def joined(m, x, z):
    """The basis with what the sketch of one client adds, at a threshold of 1."""
    y, ratio = sketch(m, x, z)
    return join(m, y[None], ratio[None], jnp.ones(1), 1.0)


@pytest.mark.parametrize(("n", "d", "rank"), [(20, 6, 2), (40, 60, 8), (2000, 33, 5)])
@pytest.mark.parametrize("way", ["grow", "space", "join"])
def test_no_rounding_joins_a_basis_at_a_threshold_of_one(way, n, d, rank):
    rng = np.random.default_rng(n + d)
    common = rng.normal(size=(rank, d))
    m = basis.empty(d)
    for t in range(6):
        x = inputs_of(rng, n, d, rank, common if t < 4 else None)
        before = int(m.rank)
        if way == "grow":
            m = grow(m, x, basis.due(0.97, 0.1, t + 1), False)
        elif way == "space":
            m, s = space(m, x, basis.due(1.0, 0.003, t), False, False)
            taken = int(jnp.sum(jnp.linalg.norm(s, axis=0) > 0.5))
            assert orthonormal(s, taken) < 1e-5
        else:
            z = jnp.float32(rng.normal(size=(n, d)))
            m = joined(m, x, z)
        assert orthonormal(m.vectors, int(m.rank)) < 1e-5, t
        new = {True: rank, False: 0}[t == 0 or t >= 4]
        assert int(m.rank) == min(before + new, d), t
        rest = x - (x @ m.vectors) @ m.vectors.T
        assert jnp.linalg.norm(rest) < 1e-4 * jnp.linalg.norm(x)


def test_a_threshold_that_grows_stops_at_one():
    x = inputs_of(np.random.default_rng(0), 30, 12, 4)
    for growth in (0.003, 0.1, 5.0):
        share = basis.due(0.97, growth, jnp.int32(11))
        assert float(share) <= 1
        assert int(basis.grow(basis.empty(12), x, share, False).rank) == 4


def test_beyond_the_capacity_the_weakest_directions_are_left_out():
    x = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    m = basis.grow(basis.empty(3, 2), x, 1.0, False)
    np.testing.assert_allclose(np.abs(m.vectors), np.eye(3)[:, :2], atol=1e-6)
    later = basis.grow(m, jnp.eye(3) * 5, 1.0, False)
    assert int(later.rank) == 2
    np.testing.assert_allclose(later.vectors, m.vectors)


@pytest.mark.parametrize("name", SPACES)
def test_bases_of_a_stream_of_low_rank_are_orthonormal(name):
    rng = np.random.default_rng(3)
    turn = rng.normal(size=(6, 60))
    stream = split(tasks=4, steps=6, batch=6, classes=20)
    stream = stream._replace(
        inputs=np.float32(stream.inputs @ turn),
        groups=stream.groups._replace(inputs=np.float32(stream.groups.inputs @ turn)),
    )
    optimiser = sgd(1.0) if name in ("fot", "coso") else adamw(0.01)
    more = {"threshold": 1.0} if name in ("gpm", "trgp", "cuber", "fot", "coso") else {"ratio": 0.4}
    network = mlp(60, (40,), 20, bias=False)
    state = jax.jit(program)(
        Setup(network, classification(), optimiser, (own(name, **more),)), stream, KEY
    ).state
    if name == "osft":
        for n in ("layer_0/kernel", "head/kernel"):
            held, free = (state.params[n + f"{p}left"] for p in (FROZEN, FREE))
            assert held.shape[1] == {"l": 16, "h": 8}[n[0]]
            assert orthonormal(held, held.shape[1]) < 1e-5
            assert jnp.abs(held.T @ free).max() < 1e-5
            held, free = (state.params[n + f"{p}right"].T for p in (FROZEN, FREE))
            assert orthonormal(held, held.shape[1]) < 1e-5
            assert jnp.abs(held.T @ free).max() < 1e-5
        return
    is_basis = lambda x: isinstance(x, basis.Basis)
    bases = [x for x in jax.tree.leaves(state.memory, is_leaf=is_basis) if is_basis(x)]
    assert len(bases) == 2
    for m in bases:
        assert int(m.rank) > 0
        assert orthonormal(m.vectors, int(m.rank)) < 1e-5
        if m.vectors.shape[0] == 60:
            assert int(m.rank) <= 6
    if name in ("trgp", "cuber"):
        for n in ("layer_0/kernel", "head/kernel"):
            for s in state.params[n + SPACE]:
                assert orthonormal(s, int(jnp.sum(jnp.linalg.norm(s, axis=0) > 0.5))) < 1e-5
    if name == "cuber":
        for m in state.memory[0].values():
            for off in np.asarray(m.off.projector):
                assert np.abs(off @ off - off).max() < 1e-5
