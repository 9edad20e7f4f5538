"""A head that trains on encoders whose learner has a frozen one: start, methods, files."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.continual import methods
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification
from jaxmerge.continual.registry import models
from jaxmerge.data.sources import Source, Texts
from jaxmerge.data.splits import stratified
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.evaluation.predict import probe
from jaxmerge.studies.loop import Stream
from jaxmerge.training.encoder import encoder, with_trained_head
from jaxmerge.training.fit import Training
from jaxmerge.training.learner import Learner

NAMES = ("red", "green", "seven", "eight")
WORDS = {w: i for i, w in enumerate(("", "and", "so", "on", *NAMES))}
HOW = Training(epochs=2, batch=6, chunk=2, optimiser=sgd(0.1, momentum=0.9))


def tokens(texts):
    rows = [[WORDS[w] for w in text.split()] for text in texts]
    return np.array([(r + [0] * 8)[:8] for r in rows], np.int32)


def features(params, shown, dtype=jnp.float32):
    """The mean of the words' rows, of the tokens that a host has cut to a batch's longest."""
    on = (shown != 0).astype(dtype)[..., None]
    rows = params["words"].astype(dtype)[shown]
    return (jnp.sum(on * rows, 1) / jnp.sum(on, 1)).astype(jnp.float32)


def collate(rows):
    return rows[..., : int((rows != 0).sum(-1).max())]


@pytest.fixture(scope="module")
def scenario():
    labels = np.repeat(np.arange(4), 10).astype(np.int32)
    inputs = Texts([f"{NAMES[c]} {'and so on ' * (i % 3)}" for i, c in enumerate(labels)])
    splits = stratified(labels, {"val": 2, "test": 2})
    return class_incremental(Source("words", inputs, labels, NAMES, ("{}",), splits), 2)


@pytest.fixture(scope="module")
def frozen():
    words = np.random.default_rng(0).normal(size=(len(WORDS), 6)).astype(np.float32)
    head = words[4:].T / np.linalg.norm(words[4:].T, axis=0)
    half = functools.partial(features, dtype=jnp.bfloat16)
    return Learner({"words": words}, features, tokens, head, np.float32(5), collate, half, NAMES)


def learnt(learner, scenario, *more):
    return Stream(
        scenario, learner, methods=more, problem=classification("own"), training=HOW,
        deploys=["last model", "average"], batch=8,
    ).run()  # fmt: skip


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_from_names_it_starts_as_the_frozen_head(frozen, scenario, head):
    learner = with_trained_head(frozen, head=head)
    for chunk in probe(learner, scenario, "test").chunks:
        one, two = (k.logits(k.params, chunk) for k in (frozen, learner))
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
        lengths = np.linalg.norm(learner.features(learner.params, chunk), axis=1)
        np.testing.assert_allclose(lengths, frozen.scale, rtol=1e-5)


def test_from_zeros_no_class_is_before_another_and_it_learns(frozen, scenario):
    learner = with_trained_head(frozen, "zeros")
    chunk = probe(learner, scenario, "test").chunks[0]
    np.testing.assert_array_equal(learner.logits(learner.params, chunk), 0)
    assert np.diag(learnt(learner, scenario).outcomes["last model"].aware).mean() > 0.9


def test_head_and_encoder_train_and_merges_fold_both(frozen, scenario):
    learner = with_trained_head(frozen)
    stream = learnt(learner, scenario)
    for n in ("head/kernel", "head/bias", "words"):
        assert np.abs(np.asarray(stream.last[n]) - learner.params[n]).max() > 0, n
    assert set(stream.deployed["average"]) == set(learner.params)


OF_A_HEAD = {
    "slca": methods.slca(0.5, epochs=1, per_class=8),
    "slcapp": methods.slcapp(0.5, epochs=1, per_class=8),
    "prd": methods.prd(projection=4),
    "features in a buffer": methods.er(12, store="features"),
    "lwf": methods.lwf(),
    "train only": methods.train_only("^head/"),
    "another head above": methods.lingocl(np.eye(4, 6, dtype=np.float32)),
}


@pytest.mark.parametrize("name", OF_A_HEAD)
def test_methods_of_a_head_run_on_sentences(frozen, scenario, name):
    stream = learnt(with_trained_head(frozen), scenario, OF_A_HEAD[name])
    assert np.isfinite(np.array(stream.outcomes["last model"].matrix, float)).all()
    assert all(np.isfinite(p).all() for p in stream.last.values())


def test_slca_moves_the_encoder_slowly_and_deploys_an_aligned_head(frozen, scenario):
    """One step of SGD: the encoder's is a tenth, of the head the task's columns move alone; after
    the second task the head that predicts is not the one that goes on."""
    learner, how = with_trained_head(frozen), Training(epochs=1, batch=12, optimiser=sgd(0.1))
    run = lambda *more: Stream(
        scenario, learner, methods=more, problem=classification("own"), training=how
    )
    plain, slow = run(), run(methods.slca(0.1, epochs=1, per_class=8))
    plain.learn(0)
    slow.learn(0)
    moved = lambda s, n: np.asarray(s.last[n]) - np.asarray(learner.params[n])
    np.testing.assert_allclose(moved(slow, "words"), 0.1 * moved(plain, "words"), atol=1e-6)
    own = scenario.mask(0)
    one, two = (moved(s, "head/kernel") for s in (slow, plain))
    np.testing.assert_allclose(one[:, own], two[:, own], atol=1e-6)
    assert not one[:, ~own].any()
    np.testing.assert_array_equal(slow.memory[0].classes.known, own)
    slow.learn(1)
    apart = np.asarray(slow.last["head/kernel"]) - slow.memory[0].head["head/kernel"]
    assert np.abs(apart).max() > 0


def test_files_have_the_encoder_and_bfloat16_is_its_own(frozen, scenario, tmp_path):
    learner = with_trained_head(frozen)
    chunk = probe(learner, scenario, "test").chunks[0]
    half = learner.model("bfloat16").build().apply(learner.params, chunk, 0).logits
    assert 0 < np.abs(half - learner.logits(learner.params, chunk)).max() < 0.1
    written = []
    of_encoder = frozen._replace(write=lambda params, folder: written.append(set(params)))
    with_trained_head(of_encoder).write(learner.params, tmp_path)
    assert written == [{"words"}]
    assert learner.write is None


def test_what_cannot_be(frozen):
    with pytest.raises(ValueError, match="start: found 'name', expected names or zeros"):
        with_trained_head(frozen, "name")
    with pytest.raises(ValueError, match="a cosine head of zeros has no direction"):
        with_trained_head(frozen, "zeros", "cosine")
    with pytest.raises(ValueError, match="no bfloat16 form"):
        with_trained_head(frozen._replace(half=None)).model("bfloat16").build()
    with pytest.raises(ValueError, match="give it params"):
        with_trained_head(frozen).model().build().init(jax.random.key(0))
    assert models.get("encoder") is encoder
