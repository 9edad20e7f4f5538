"""What buffers promise beside their oracles: herding, shares, eight bits, memory alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_streams import KEY, setup, split, tiny

from jaxmerge.continual import buffers
from jaxmerge.continual.drivers import run
from jaxmerge.continual.memories import eight_bits, gaussians, herding
from jaxmerge.continual.methods import agem, clib, der, derpp, er
from jaxmerge.continual.methods.clib import from_memory
from jaxmerge.continual.methods.pl_fms import keep_probability
from jaxmerge.continual.registry import methods, models
from jaxmerge.data.streams.blurry import i_blurry


def greedy(f, many):
    """Algorithm 4 of iCaRL, written out."""
    f = f / np.linalg.norm(f, axis=1, keepdims=True)
    taken = []
    for k in range(min(many, len(f))):
        means = [(f[[*taken, i]].sum(0)) / (k + 1) for i in range(len(f))]
        far = [np.inf if i in taken else np.sum((f.mean(0) - m) ** 2) for i, m in enumerate(means)]
        taken.append(int(np.argmin(far)))
    return taken


def test_herding_is_greedy(x64):
    rng = np.random.default_rng(0)
    f, labels = rng.normal(size=(30, 5)), rng.integers(0, 4, 30)
    weight = (np.arange(30) % 7 > 0) * 1.0
    rank = np.asarray(herding.ranks(jnp.asarray(f), jnp.asarray(labels), jnp.asarray(weight), 5, 6))
    for c in range(4):
        own = np.flatnonzero((labels == c) & (weight > 0))
        order = own[np.argsort(rank[own])][: min(6, len(own))]
        assert order.tolist() == own[greedy(f[own], 6)].tolist()
    assert (rank[weight == 0] == 6).all()


def test_a_herded_buffer_has_equal_shares_and_only_shrinks_old_ones():
    """Six classes in three tasks, 12 places: 6, 3, 2 a class."""
    after = []
    keep = lambda t, state, R: after.append(state.memory[0])
    run(setup(er(12, select="herding")), split(tasks=3, steps=4), KEY, watch=keep)
    for memory, share in zip(after, (6, 3, 2), strict=True):
        labels = np.asarray(memory["rows"].targets)[: int(memory["met"])]
        assert np.unique(labels, return_counts=True)[1].tolist() == [share] * (12 // share)
    old, new = after[0]["rows"].inputs, after[-1]["rows"].inputs
    first = set(np.asarray(after[0]["rows"].targets).tolist())
    kept = [i for i, c in enumerate(np.asarray(after[-1]["rows"].targets)) if int(c) in first]
    assert len(kept) == 4
    assert all((np.asarray(old) == np.asarray(new[i])).all(1).any() for i in kept)


CLASSES, LONG = 6, 44
COMES_BACK = {
    "all again": [[0, 1, 2, 3] * 5] * 3,
    "recurring": [[0, 1] * 9, [0, 2] * 5, [0, 3], [1, 4] * 7, [0, 5] * 4, [2, 5] * 8],
    "i-Blurry": i_blurry(np.repeat(np.arange(CLASSES), 20), 3, 50, 20, seed=1).columns,
    "one leaks first": [[0, 1, 1, 1, 1], [0] * 9 + [1], [2] * 9 + [3], [3] * 20],
    "disjoint": [[0, 1] * 8, [3] * 12, [2, 4, 4, 4], [5]],
}


@jax.jit
def filled_up(old, rank, features, labels, weight):
    """The memory of 8 places after a task of up to `LONG` examples."""
    size = len(rank)
    new = herding.ranks(features, labels, weight, CLASSES, size)
    ranks, both = jnp.concatenate([rank, new]), jnp.concatenate([old["label"], labels])
    rows = {"label": labels, "id": jnp.arange(LONG)}
    return *herding.refill(size, CLASSES, old, rows, ranks, both), new


@pytest.mark.parametrize("name", COMES_BACK)
def test_a_class_that_comes_back_has_its_share_and_no_more(name):
    rng, size, met = np.random.default_rng(0), 8, set()
    old = {"label": np.zeros(size, int), "id": np.zeros(size, int)}
    rank = np.full(size, size)
    for classes in COMES_BACK[name]:
        labels, weight = np.resize(classes, LONG), (np.arange(LONG) < len(classes)) * 1.0
        features = rng.normal(size=(LONG, 3))
        before = {c: rank[(old["label"] == c) & (rank < size)] for c in met}
        rows, ranks, count, new = filled_up(old, rank, features, labels, weight)
        old, rank = jax.tree.map(np.asarray, rows), np.asarray(ranks)
        there, returns = np.arange(size) < count, met & set(classes)
        met |= set(classes)
        share = size // len(met)
        assert (rank[there] < share).all()
        assert (rank[~there] == size).all()
        for c in met:
            mine = rank[there & (old["label"] == c)]
            assert sorted(mine) == list(range(len(mine))), "places within a class are 0, 1, ..."
            assert 1 <= len(mine) <= share
            if c in classes and c not in returns:  # as herding ranks them
                assert (np.asarray(new)[old["id"][there & (old["label"] == c)]] == mine).all()
            elif c not in classes:  # an old class only shrinks
                assert mine.tolist() == before[c][before[c] < share].tolist()


def test_of_a_class_that_comes_back_old_and_new_take_turns():
    old, new = {"id": jnp.arange(4)}, {"id": 10 + jnp.arange(3)}
    ranks, labels = jnp.array([1, 0, 4, 4, 2, 0, 1]), jnp.zeros(7, int)
    rows, rank, count = herding.refill(4, 1, old, new, ranks, labels)
    assert int(count) == 4
    assert rows["id"][jnp.argsort(rank)].tolist() == [1, 11, 0, 12]


def test_more_classes_than_places():
    labels = jnp.array([0, 1, 0, 1, 2, 3, 3])
    ranks = jnp.array([0, 0, 0, 0, 0, 0, 1])
    rows, rank, count = herding.refill(2, 4, labels[:2], labels[2:], ranks, labels)
    assert (rows.tolist(), rank.tolist(), int(count)) == ([0, 1], [0, 0], 2)


def test_a_known_class_keeps_its_gaussian():
    rng = np.random.default_rng(0)
    f, labels = jnp.asarray(rng.normal(size=(20, 3))), jnp.arange(20) % 2
    every, one = jnp.ones(20), jnp.ones(3, bool)
    known = gaussians.learn(gaussians.empty(3, 3), f, labels, every, one, 1e-4)
    leak = jnp.where(jnp.arange(20) < 19, 2, 0)  # all of class 2, but for one of class 0
    now = gaussians.learn(known, f + 3, leak, every, one, 1e-4)
    assert now.known.all()
    for before, after in zip(known[:2], now[:2], strict=True):
        assert (before[:2] == after[:2]).all()
        assert (before[2] != after[2]).any()


@pytest.mark.parametrize(
    ("size", "like", "words"),
    [
        (0, jnp.zeros(1), "size must be a whole number from 1 on, got 0"),
        (2.0, jnp.zeros(1), "size must be a whole number from 1 on, got 2.0"),
        (2, jnp.zeros(()), "comes in batches .* of one row or more"),
        (2, {"x": jnp.zeros((0, 3))}, "comes in batches .* of one row or more"),
    ],
)
def test_a_buffer_of_nothing(size, like, words):
    with pytest.raises(ValueError, match=words):
        buffers.empty(size, like)


def test_eight_bits():
    x = jax.random.normal(KEY, (5, 4, 3)) * jnp.arange(5)[:, None, None]
    packed = eight_bits.packed(x)
    assert packed.values.dtype == jnp.int8
    apart = jnp.abs(eight_bits.unpacked(packed) - x)
    assert (apart <= packed.scale[:, None, None] / 2 + 1e-6).all()
    result = run(setup(er(20, store="features")), split(tasks=3, steps=4), KEY)
    rows = result.state.memory[0]["rows"]
    assert rows.inputs.values.dtype == jnp.int8
    assert rows.inputs.values.shape == (20, 8)


def test_training_on_memory_alone_takes_nothing_from_the_batch():
    """A memory of one example: the gradient is that of this example, whatever the batch."""
    method = clib(size=1, replay=3, adaptive=False)
    s = split(tasks=1, steps=1, batch=4)
    result = run(setup(method), s, KEY)
    kept = result.state.memory[0].examples
    assert int(kept.met) == 4
    alone = s._replace(
        rows=np.full((1, 1, 1), np.argmax((s.inputs == np.asarray(kept.rows.inputs[0])).all(1))),
        origin=np.zeros((1, 1, 1), np.int32), weight=np.ones((1, 1, 1), np.float32),
    )  # fmt: skip
    plain = run(setup(), alone, KEY)
    for n, p in plain.state.params.items():
        np.testing.assert_allclose(result.state.params[n], p, atol=1e-6, err_msg=n)


@methods.register
def all_from_the_stream():
    """Every example of the batch trains itself, so that the memory fills nothing up."""
    return from_memory(5, None, 0.9, 1, False, lambda memory, step: step.batch.weight)


def test_with_all_examples_from_the_stream_it_is_fine_tuning():
    s = split(tasks=2, steps=3, batch=4)
    first, plain = (run(setup(*m), s, KEY) for m in ((all_from_the_stream(),), ()))
    for n, p in plain.state.params.items():
        np.testing.assert_allclose(first.state.params[n], p, atol=1e-6, err_msg=n)


def test_the_share_of_the_stream_grows_with_the_age_of_a_class():
    first = jnp.array([0, 10, 40, jnp.iinfo(jnp.int32).max])
    p = keep_probability(first, jnp.array([0, 1, 2]), 40, 44, 200)
    np.testing.assert_allclose(p, np.array([43, 33, 3]) / (200 / 3), rtol=1e-6)


@models.register
def of_directions():
    """The tiny classifier of x / |x|, which of a row of zeros is NaN."""
    model = tiny().build()
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return model._replace(apply=lambda params, x, task: model.apply(params, unit(x), task))


@pytest.mark.parametrize(
    "method", [er(20), er(20, select="herding"), der(20), derpp(20), agem(20), clib(20)], ids=str
)
def test_a_model_that_cannot_read_zeros_learns_with_a_buffer(method):
    """Free places are read too, with weight 0; a sentence without tokens is such a row."""
    config = dataclasses.replace(setup(method), model=of_directions())
    result = run(config, split(), KEY)
    assert all(np.isfinite(p).all() for p in result.state.params.values())
