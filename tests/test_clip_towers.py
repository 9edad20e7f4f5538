"""Two towers that train on pairs: the model by name, pairs from captions, CTP from its settings."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxmerge.continual.drivers import program
from jaxmerge.continual.optimisers import adam
from jaxmerge.continual.problems import pairs
from jaxmerge.continual.records import LAST
from jaxmerge.continual.registry import methods, models
from jaxmerge.continual.stream_records import Setup
from jaxmerge.continual.streams import split
from jaxmerge.data.digits import digits
from jaxmerge.data.glyphs.vocabulary import CONTEXT, build_tokenizer, write_tokenizer
from jaxmerge.data.splits import few
from jaxmerge.models import clip
from jaxmerge.models.clip.learner import captioned, clip_towers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    write_tokenizer(path)
    size = build_tokenizer().get_vocab_size()
    shape = {"width": 16, "layers": 1, "heads": 2, "hidden": 32}
    text = clip.Text(vocab=size, context=CONTEXT, bos=size - 2, eos=size - 1, pad=0, **shape)
    config = clip.Config(clip.Vision(image=16, patch=8, **shape), text, projection_dim=8)
    clip.save((config, clip.init(config, jax.random.key(0))), path)
    return str(path)


def test_captions_are_the_classes_in_templates(folder):
    model, source = clip.load(folder), digits()
    x, y = captioned(model, source, "test", seed=3)
    rows = source.splits["test"]
    np.testing.assert_array_equal(y, source.labels[rows])
    np.testing.assert_array_equal(x["image"], model.preprocess.crop(source.inputs[rows])[0])
    width = x["text"].shape[1]
    for i in range(0, 360, 40):
        own = [t.replace("{}", source.classes[y[i]]) for t in source.templates]
        assert x["text"][i].tolist() in model.tokenizer(own)[:, :width].tolist()
    assert len({tuple(t) for t in x["text"]}) > 30  # of 60 captions
    assert (captioned(model, source, "test", seed=4)[0]["text"] != x["text"]).any()


def test_the_model_is_both_towers_and_leaves_the_temperature(folder):
    given, model = clip.load(folder), clip_towers(folder).build()
    params = model.init(jax.random.key(0))
    assert set(params) == set(given.params) - {"logit_scale"}
    x, _ = captioned(given, digits(), "val")
    out = model.apply(params, {n: a[:4] for n, a in x.items()}, 0).aux
    image = clip.image_features(given.config, params, given.preprocess.normalise(x["image"][:4]))
    np.testing.assert_allclose(out["image"], image, rtol=1e-5)
    text = clip.text_features(given.config, params, x["text"][:4])
    np.testing.assert_allclose(out["text"], text, rtol=1e-5)


def test_ctp_learns_pairs_from_its_settings(folder):
    source = few(digits(), {"train": 12, "test": 6})
    train, test = (captioned(clip.load(folder), source, s) for s in ("train", "test"))
    stream = split(train, test, [[0, 1, 2], [3, 4, 5]], batch=12, epochs=30)
    model = models.from_settings({"clip_towers": {"pretrained": folder}})
    method = methods.from_settings({"method": "ctp", "queue": 24})
    setup = Setup(model, pairs(metrics=("same_class", "recall")), adam(3e-3), (method,))
    result = program(setup, stream, jax.random.key(0))
    R = np.asarray(result.R[LAST]["same_class"])
    assert bool(result.finite.all())
    losses = np.asarray(result.losses)[0]
    assert losses[-9:].mean() < losses[:9].mean() - 0.3
    assert (np.asarray(result.R[LAST]["recall"]) <= R).all()
    for n in ("vision/projection/kernel", "text/projection/kernel"):
        assert np.abs(result.state.params[n] - result.state.base[n]).max() > 0, n


def test_what_cannot_be(folder):
    x, y = captioned(clip.load(folder), digits(), "val")
    with pytest.raises(ValueError, match="the training data have 5 inputs and 270 labels"):
        split(({**x, "text": x["text"][:5]}, y), (x, y), [[0]])
