"""Learners give the logits of the models they stand for."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmerge.data.digits import digits
from jaxmerge.data.glyphs.vocabulary import CONTEXT, build_tokenizer, write_tokenizer
from jaxmerge.data.sources import Source, Texts
from jaxmerge.data.splits import stratified
from jaxmerge.data.streams.builders import suite
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.models import bert, clip
from jaxmerge.studies.loop import Stream
from jaxmerge.training.fit import Training
from jaxmerge.training.learner import from_bert, from_clip

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tokenizer(folder)
    size = build_tokenizer().get_vocab_size()
    shape = {"width": 16, "layers": 1, "heads": 2, "hidden": 32}
    text = clip.Text(vocab=size, context=CONTEXT, bos=size - 2, eos=size - 1, pad=0, **shape)
    config = clip.Config(clip.Vision(image=16, patch=8, **shape), text, projection_dim=8)
    clip.save((config, clip.init(config, jax.random.key(0))), folder)
    return clip.load(folder)


def texts(name, words):
    labels = np.repeat(np.arange(len(words)), 10).astype(np.int32)
    inputs = Texts([f"{words[c]} number {i}" for i, c in enumerate(labels)])
    splits = stratified(labels, {"val": 2, "test": 2})
    return Source(name, inputs, labels, tuple(words), ("this is {}", "{}"), splits)


def test_clip_learner_gives_the_logits_of_clip(model):
    source = digits()
    scenario = class_incremental(source, 5)
    learner = from_clip(model, scenario)
    assert all(n.startswith("vision/") for n in learner.params)
    images = source.inputs[:6]
    actual = learner.logits(learner.params, learner.prepare(images))
    head = clip.zero_shot_head(model, source.classes, source.templates)
    features = clip.image_features(model.config, model.params, model.preprocess(images))
    expected = clip.logits(features, head, model.params["logit_scale"])
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_suite_has_the_heads_of_all_sources(model):
    sources = [texts("a", ["red", "green"]), texts("b", ["seven", "eight", "nine"])]
    learner = from_clip(model, suite(sources))
    assert learner.head.shape == (8, 5)
    expected = clip.zero_shot_head(model, sources[1].classes, sources[1].templates)
    np.testing.assert_allclose(learner.head[:, 2:], expected, rtol=1e-5, atol=1e-6)


def words_to_ids():
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [
        *special,
        *["this", "is", "red", "green", "seven", "eight", "number"],
        *map(str, range(10)),
    ]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return bert.Tokenizer(backend, max_tokens=16, end=3, pad=0)


@pytest.mark.parametrize("length", [0, 2, 16.0, None])
def test_a_length_that_holds_no_word(length):
    model = dataclasses.replace(bert.load(GOLDEN / "bert_small"), tokenizer=words_to_ids())
    scenario = class_incremental(texts("words", ["red", "green"]), 2)
    with pytest.raises(ValueError, match=rf"length is 3 tokens or more .* got {length}"):
        from_bert(model, scenario, length=length)


def test_bert_learner_gives_the_logits_of_bert_and_learns():
    model = bert.load(GOLDEN / "bert_small")
    model = dataclasses.replace(model, tokenizer=words_to_ids())
    source = texts("words", ["red", "green", "seven", "eight"])
    scenario = class_incremental(source, 2)
    learner = from_bert(model, scenario, length=16)
    rows = source.splits["test"]
    tokens = learner.prepare(source.inputs[rows])
    assert tokens.shape == (8, 16)
    actual = learner.logits(learner.params, tokens)
    features = bert.encode(model, source.inputs[rows])
    head = bert.zero_shot_head(model, source.classes, source.templates)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(actual, 20 * unit @ head, rtol=1e-3, atol=1e-3)
    training = Training(epochs=8, batch=8, rate=3e-3, chunk=4)
    stream = Stream(scenario, learner, training=training, batch=8).run()
    for losses in stream.losses:
        assert np.mean(losses[-3:]) < 0.5 * np.mean(losses[:2])
