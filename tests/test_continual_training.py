"""Training: gradient accumulation, bfloat16, trainable leaves, packed sentences."""

import re
from pathlib import Path

import clouds
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.continual.methods import ewc, train_only
from jaxmerge.continual.problems import cross_entropy
from jaxmerge.continual.records import Batch, Border
from jaxmerge.data.digits import digits
from jaxmerge.data.splits import few
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.models import bert, clip, packing
from jaxmerge.training.fit import Training, fit
from jaxmerge.training.learner import from_clip

GOLDEN = Path(__file__).parent / "golden"
OWN = np.ones(clouds.CLASSES, bool)


def trained(learner, training, *methods):
    source = clouds.source()
    rows = source.splits["train"]
    options = {"methods": methods}
    return fit(
        learner, learner.params, source.inputs[rows], source.labels[rows], OWN, training, **options
    )


def test_accumulated_gradients_are_those_of_the_whole_batch():
    learner = clouds.learner()
    whole, losses = trained(learner, Training(epochs=2, batch=12, rate=0.02, chunk=3))
    parts, again = trained(learner, Training(epochs=2, batch=12, rate=0.02, chunk=3, accumulate=3))
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    for n in whole:
        np.testing.assert_allclose(parts[n], whole[n], rtol=1e-4, atol=1e-5, err_msg=n)


def test_bfloat16_trains_float32_weights_to_nearly_the_same():
    def half(params, inputs):
        low = {n: p.astype(jnp.bfloat16) for n, p in params.items()}
        return clouds.features(low, inputs.astype(jnp.bfloat16)).astype(jnp.float32)

    learner = clouds.learner()
    _, losses = trained(learner, Training(epochs=2, batch=12, rate=0.02))
    training = Training(epochs=2, batch=12, rate=0.02, dtype="bfloat16")
    low, rough = trained(learner._replace(half=half), training)
    assert all(p.dtype == jnp.float32 for p in low.values())
    assert rough != losses
    np.testing.assert_allclose(rough, losses, rtol=0.1, atol=0.05)
    with pytest.raises(ValueError, match="no bfloat16 form"):
        trained(learner, training)


def test_leaves_that_no_rule_names_stay():
    learner = clouds.learner()
    trained_model, _ = trained(learner, Training(epochs=1, batch=12), train_only("^a/"))
    same = {n: np.array_equal(trained_model[n], learner.params[n]) for n in trained_model}
    assert same == {"a/kernel": False, "a/bias": False, "b/kernel": True}


def test_only_queries_keys_and_values_train_under_the_documented_pattern():
    """ "QKV-only training" of the rehearsal-free paper, for one stage of a stream on `mini-2k`."""
    pattern = re.search(r'``"(attn/[^"|]*\|key\|[^"]*/)"``', train_only.__doc__)[1]
    model = clip.load(Path(clip.__file__).parents[2] / "assets" / "mini-2k")
    scenario = class_incremental(few(digits(), {"train": 4}), 5)
    learner, (source,), task = from_clip(model, scenario), scenario.sources, scenario[0]
    rows, before = task.rows["train"], learner.params
    after, _ = fit(
        learner, before, learner.prepare(source.inputs[rows]), task.labels("train"),
        scenario.mask(0), Training(epochs=1, batch=4), methods=[train_only(pattern)],
    )  # fmt: skip
    changed = {n for n in before if not np.array_equal(before[n], after[n])}
    assert set(after) == set(before)
    assert changed == {
        f"vision/block_{k:02d}/attn/{part}/{leaf}"
        for k in range(model.config.vision.layers)
        for part in ("query", "key", "value")
        for leaf in ("kernel", "bias")
    }


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"batch 10 is not a multiple of accumulate 4.*float16"):
        Training(batch=10, accumulate=4, dtype="float16")


def test_a_drawn_label_has_the_mean_of_the_true_fisher():
    learner = clouds.learner()._replace(scale=jnp.float32(1))  # no label is rare
    model, params = learner.model().build(), dict(learner.params)
    own = jnp.isin(jnp.arange(clouds.CLASSES), np.array([0, 2, 5]))
    objective = lambda out, batch: cross_entropy(out.logits, batch.targets, own)

    def importance(labels, times):
        inputs = np.tile(clouds.source().inputs[:4], (times, 1))
        zero = np.zeros(len(inputs), np.int32)
        data = Batch(inputs, zero, zero, np.ones(len(inputs), np.float32))
        read = lambda count: jax.tree.map(lambda x: x[:count], data)
        method = ewc(labels=labels, examples=10**4).build()
        border = Border(0, params, None, jax.random.key(0), read, objective)
        memory = method.init(model, params, data, inputs)
        return method.end(model, params, memory, border)[1].weight

    true, drawn = importance("expected", 1), importance("sampled", 500)
    for n in true:
        size = np.abs(true[n]).max()
        np.testing.assert_allclose(drawn[n], true[n], atol=0.15 * size, err_msg=n)


def test_few_keeps_so_many_of_every_class_and_domain():
    source = clouds.source()
    actual = few(source, {"train": 3, "test": 2})
    for split, count in (("train", 3), ("test", 2), ("val", 6)):
        rows = actual.splits[split]
        assert set(rows) <= set(source.splits[split])
        assert np.bincount(source.labels[rows]).tolist() == [count] * clouds.CLASSES
    assert np.array_equal(few(source, {"train": 3}).splits["train"], actual.splits["train"])


# ------------------------------------------------------------ packing


@pytest.fixture(scope="module")
def model():
    return bert.load(GOLDEN / "bert_small")


def sentences(pad, lengths, width=14):
    rng = np.random.default_rng(0)
    tokens = np.full((len(lengths), width), pad, np.int32)
    for row, count in zip(tokens, lengths, strict=True):
        row[:count] = rng.integers(1 + pad, 20, count)
    return tokens


def test_packed_sentences_have_the_features_and_gradients_of_padded_ones(model):
    tokens = sentences(model.config.pad, [3, 11, 1, 6, 7])
    packed = packing.pack(tokens, model.config.pad)
    assert packed.at.shape == (28,)  # all 28 tokens and no padding
    assert packed.tokens.shape == (5, 12)

    def loss(params, inputs):
        features = bert.text_features(model.config, params, inputs)
        return jnp.sum(features * jnp.arange(features.size).reshape(features.shape))

    both = jax.jit(jax.value_and_grad(loss))
    for inputs in (packed, packing.pack(tokens[:3], model.config.pad)):  # 28 of 28, 15 of 16
        actual, slopes = both(model.params, inputs)
        expected, exact = both(model.params, tokens[: len(inputs.tokens)])
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        scale = max(float(jnp.abs(g).max()) for g in exact.values())
        for n in exact:
            np.testing.assert_allclose(slopes[n], exact[n], atol=1e-5 * scale, err_msg=n)


def test_chunks_of_batches_are_packed_to_one_shape():
    tokens = np.stack([sentences(0, [2, 5, 4]), sentences(0, [9, 1, 1])])
    packed = packing.pack(tokens, 0)
    assert packed.at.shape == (2, 12)
    assert packed.back.shape == packed.tokens.shape == (2, 3, 12)
    for k in range(2):
        real = packed.at[k][packed.at[k] < packed.tokens[k].size]
        np.testing.assert_array_equal(packed.tokens[k].ravel()[real], tokens[k][tokens[k] != 0])
