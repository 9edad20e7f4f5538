"""Streams of arrays: which rows, labels and columns each task has."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_streams import KEY, blobs, setup

from jaxmerge.continual.drivers import program
from jaxmerge.continual.streams import permuted, pixels, split

X = np.arange(40, dtype=np.uint8).reshape(20, 2)
Y = np.arange(20, dtype=np.int32) % 4
ORDER = [[2, 0], [3, 1]]


def used(stream, t):
    return stream.rows[t][stream.weight[t] > 0]


@pytest.mark.parametrize("epochs", [1, 2])
def test_every_example_of_a_task_comes_once_a_pass(epochs):
    stream = split((X, Y), (X, Y), ORDER, batch=3, epochs=epochs)
    for t, part in enumerate(ORDER):
        rows = np.flatnonzero(np.isin(Y, part))
        assert sorted(used(stream, t)) == sorted(np.tile(rows, epochs))
        assert sorted(stream.sample[t]) == sorted(rows)
    assert stream.info["own"].tolist() == [[True, False, True, False], [False, True, False, True]]
    assert not np.array_equal(used(stream, 0), used(split((X, Y), (X, Y), ORDER, seed=1), 0))


def test_domains_share_columns():
    stream = split((X, Y), (X, Y), ORDER, scenario="domain")
    assert stream.info["own"].tolist() == [[True, True], [True, True]]
    place = {int(c): int(p) for c, p in zip(Y, stream.targets, strict=True)}
    assert place == {2: 0, 0: 1, 3: 0, 1: 1}


def test_unequal_tasks_are_filled_up():
    stream = split((X, Y), (X, Y), [[0], [1, 2, 3]], batch=4)
    assert stream.weight.sum((1, 2)).tolist() == [5, 15]
    assert stream.groups.weight.sum(1).tolist() == [5, 15]
    with pytest.raises(ValueError, match="A class is in one task only"):
        split((X, Y), (X, Y), [[0, 1], [1, 2]])


def test_permutations_are_those_of_the_task_an_example_is_from():
    stream = permuted((X, Y), (X, Y), 3, examples=7, first=False, seed=2)
    assert stream.info["permutation"][0].tolist() == [0, 1]
    assert stream.weight.sum((1, 2)).tolist() == [7, 7, 7]
    stream = stream._replace(info={"permutation": np.array([[0, 1], [1, 0]])})
    actual = pixels(jnp.asarray(X[:2]), stream.info, jnp.array([0, 1]), None) * 255
    np.testing.assert_allclose(actual, [[0, 1], [3, 2]])


def test_what_fills_a_short_batch_leaves_the_loss_finite():
    """A filler of another task has no column of its own there: its loss is inf, its weight 0."""
    data = blobs()
    short = split(data, data, [[4, 5], [2, 3], [0, 1]], scenario="task", batch=7)
    actual = jax.jit(program)(setup(columns="own"), jax.tree.map(jnp.asarray, short), KEY)
    assert actual.finite.all()
    assert np.isfinite(actual.losses).all()
