"""The models of streams beside the frozen text head: heads, perceptron, ResNet, a toy decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_streams import KEY, split

import jaxmerge as jm
from jaxmerge.continual.drivers import program, run
from jaxmerge.continual.optimisers import sgd
from jaxmerge.continual.problems import classification, next_token
from jaxmerge.continual.records import LAST, Model, Outputs
from jaxmerge.continual.registry import models
from jaxmerge.continual.stream_records import Groups, Setup, Stream
from jaxmerge.models import mlp, resnet
from jaxmerge.models.convolution import is_statistic
from jaxmerge.models.mlp.learner import mlp as mlp_spec
from jaxmerge.models.mlp.learner import tower
from jaxmerge.models.resnet.learner import resnet18
from jaxmerge.models.trained_head import trained_head

SMALL = {"inputs": 6, "hidden": (8,), "classes": 6}
FEATURES = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def built(kind, classes=5, **more):
    model = trained_head(tower(mlp.Config(7, (3,))), 3, classes, kind, **more)
    return model, model.init(KEY)


def test_a_linear_head_is_its_formula():
    model, params = built("linear")
    out = model.from_features(params, FEATURES, 0)
    expected = FEATURES @ params["head/kernel"] + params["head/bias"]
    np.testing.assert_allclose(out.logits, expected, rtol=1e-6)
    assert "head/bias" not in built("linear", bias=False)[1]


def test_a_cosine_head_looks_at_directions_alone():
    model, params = built("cosine", scale=4.0)
    logits = model.from_features(params, FEATURES, 0).logits
    np.testing.assert_allclose(
        logits, model.from_features(params, 9 * FEATURES, 0).logits, rtol=1e-5
    )
    wide = {**params, "head/kernel": 3 * params["head/kernel"]}
    np.testing.assert_allclose(logits, model.from_features(wide, FEATURES, 0).logits, rtol=1e-5)
    own = {**params, "head/kernel": jnp.asarray(FEATURES[:1].T)}
    assert float(model.from_features(own, FEATURES, 0).logits[0, 0]) == pytest.approx(4, rel=1e-6)
    zero = model.from_features(params, jnp.zeros((1, 3)), 0).logits
    assert np.all(zero == 0)


def test_a_sigmoid_head_starts_at_one_over_the_classes():
    model, params = built("sigmoid", classes=8)
    shares = jax.nn.sigmoid(model.from_features(params, jnp.zeros((1, 3)), 0).logits)
    np.testing.assert_allclose(shares, 1 / 8, rtol=1e-6)


def test_a_head_reads_the_tower_in_every_form_and_offers_its_input():
    model, params = built("linear")
    x = np.random.default_rng(1).normal(size=(4, 7)).astype(np.float32)
    out = model.apply(params, x, 0)
    features = mlp.features(mlp.Config(7, (3,)), params, x)
    np.testing.assert_allclose(out.features, features, rtol=1e-6)
    assert set(out.aux["taps"]) == {"layer_0/kernel", "head/kernel"}
    again = model.from_features(params, out.features, 0)
    np.testing.assert_array_equal(out.logits, again.logits)


def test_a_frozen_tower_makes_a_probe():
    below = tower(mlp.Config(7, (3,)))._replace(trainable=lambda name: False)
    model = trained_head(below, 3, 5)
    assert [n for n in model.init(KEY) if model.trainable(n)] == ["head/kernel", "head/bias"]


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match=r"head.*'square'"):
        mlp_spec(head="square", **SMALL)
    with pytest.raises(ValueError, match="linear, cosine or sigmoid"):
        built("square")


@pytest.mark.parametrize("head", ["linear", "cosine", "sigmoid"])
def test_a_perceptron_learns_a_stream(head):
    loss, rate = ("sigmoid", 0.5) if head == "sigmoid" else ("softmax", 0.1)
    setup = Setup(
        mlp_spec(head=head, **SMALL), classification(columns="own", loss=loss), sgd(rate=rate),
        merges={"MagMax": jm.magmax(0.5)},
    )  # fmt: skip
    stream = split(steps=40)
    one, other = run(setup, stream, KEY), program(setup, stream, KEY)
    assert np.diag(one.R[LAST]["aware"]).min() > 0.9
    np.testing.assert_array_equal(one.R[LAST]["aware"], other.R[LAST]["aware"])
    assert bool(one.finite.all())


# ------------------------------------------------------------ batch statistics


def pictures(seed, count=8):
    """Class-incremental in two tasks: dark or light pictures, plain or striped."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4, dtype=np.int32), count)
    stripes = np.where(np.arange(8) % 2, 1.0, -1.0)[None, :, None, None]
    images = rng.normal(size=(len(labels), 8, 8, 3)) * 0.3
    images += np.where(labels % 2, 1.0, -1.0)[:, None, None, None]
    images += (labels // 2)[:, None, None, None] * stripes
    return images.astype(np.float32), labels


def picture_stream(steps=12, batch=8, tasks=2):
    inputs, targets = pictures(0)
    own = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)[:tasks]
    rng = np.random.default_rng(0)
    parts = [np.flatnonzero(np.isin(targets, np.flatnonzero(o))) for o in own]
    rows = [[rng.permutation(p)[:batch] for _ in range(steps)] for p in parts]
    rows = np.array(rows, np.int32)
    origin = np.broadcast_to(np.arange(tasks, dtype=np.int32)[:, None, None], rows.shape)
    test = pictures(1)
    groups = Groups(
        *test, np.int32([np.flatnonzero(np.isin(test[1], np.flatnonzero(o))) for o in own]),
        np.ones((tasks, 16), np.float32), np.arange(tasks, dtype=np.int32), {"own": own},
    )  # fmt: skip
    weight = np.ones(rows.shape, np.float32)
    return Stream(inputs, targets, rows, origin, weight, {"own": own}, groups)


TINY = {"classes": 4, "width": 4, "blocks": (1,)}


def resnet_setup(decay=0.0):
    return Setup(
        resnet18(**TINY), classification(columns="own"),
        sgd(rate=0.05, momentum=0.9, weight_decay=decay),
        merges={"average": jm.average()},
    )  # fmt: skip


def test_a_step_moves_the_statistics_as_the_forward_pass_says_and_no_optimiser_touches_them():
    setup, stream = resnet_setup(decay=0.1), picture_stream(steps=1, tasks=1)
    state = run(setup, stream, KEY).state
    config = resnet.Config("cifar", width=4, blocks=(1,))
    images = stream.inputs[stream.rows[0, 0]]
    expected = resnet.forward(config, state.base, images, train=True).statistics
    for name, leaf in expected.items():
        np.testing.assert_allclose(state.params[name], leaf, rtol=1e-5, atol=1e-6)
    moments = jax.tree_util.tree_leaves_with_path(state.moments)
    assert not any(
        is_statistic(str(path[-1].key)) for path, _ in moments if hasattr(path[-1], "key")
    )
    assert set(expected) == {n for n in state.params if is_statistic(n)}


def test_a_resnet_learns_a_stream_and_both_drivers_agree():
    setup, stream = resnet_setup(), picture_stream(steps=30)
    one, other = run(setup, stream, KEY), program(setup, stream, KEY)
    assert np.diag(one.R[LAST]["aware"]).min() > 0.8
    np.testing.assert_array_equal(one.R[LAST]["aware"], other.R[LAST]["aware"])
    for name, leaf in other.state.params.items():  # XLA may sum a convolution in another order
        np.testing.assert_allclose(one.state.params[name], leaf, rtol=0, atol=1e-4)


def test_merges_see_the_statistics_unless_they_are_to_be_the_last_models():
    stream = picture_stream(steps=3)
    state = run(resnet_setup(), stream, KEY).state
    name = "stem/norm/mean"
    model = resnet18(**TINY).build()
    assert name in model.weights(state.params, 1)
    apart = resnet18(**TINY, merge_statistics=False).build()
    folded = apart.weights(state.params, 1)
    assert not any(map(is_statistic, folded))
    put = apart.put(state.params, {n: 0 * p for n, p in folded.items()})
    np.testing.assert_array_equal(put[name], state.params[name])


def test_a_pretrained_resnet_starts_a_stream(tmp_path):
    config = resnet.Config("cifar", width=4, blocks=(1,))
    params = resnet.init(config, jax.random.key(5))
    resnet.save((config, params), tmp_path)
    base = resnet18(**TINY, pretrained=str(tmp_path)).build().init(KEY)
    assert all(np.array_equal(base[name], leaf) for name, leaf in params.items())
    assert base["head/kernel"].shape == (4, 4)
    with pytest.raises(ValueError, match="set stem, width, blocks"):
        resnet18(classes=4, pretrained=str(tmp_path))
    still = resnet18(**TINY, pretrained=str(tmp_path), running=False).build()
    base = still.init(KEY)
    assert set(base) == {n for n in params if not is_statistic(n)} | {"head/kernel", "head/bias"}
    images = jax.random.normal(KEY, (3, 8, 8, 3))  # evaluation reads the batch, as training does
    asked, learnt = still.apply(base, images, 0), still.learn(base, images, 0, KEY)
    np.testing.assert_allclose(asked.logits, learnt.logits, atol=1e-6)
    assert "statistics" not in learnt.aux


# ------------------------------------------------------------ language is ordinary


@models.register
def toy_decoder(vocabulary: int = 12, width: int = 16, length: int = 8) -> Model:
    """One block of causal attention and a dense layer, over tokens."""

    def init(key):
        keys = jax.random.split(key, 5)
        draw = lambda k, *shape: 0.3 * jax.random.normal(k, shape)
        return {
            "token": draw(keys[0], vocabulary, width),
            "position": draw(keys[1], length, width),
            "qkv/kernel": draw(keys[2], width, 3 * width),
            "up/kernel": draw(keys[3], width, width),
            "head/kernel": draw(keys[4], width, vocabulary),
        }

    def apply(params, tokens, task):
        x = params["token"][tokens] + params["position"][None, : tokens.shape[1]]
        q, k, v = jnp.split(x @ params["qkv/kernel"], 3, axis=-1)
        scores = jnp.einsum("bid,bjd->bij", q, k) / width**0.5
        past = jnp.tril(jnp.ones(scores.shape[1:], bool))[None]
        x = x + jax.nn.softmax(jnp.where(past, scores, -1e9), axis=-1) @ v
        x = x + jax.nn.relu(x @ params["up/kernel"])
        return Outputs(x @ params["head/kernel"], x)

    return Model(init, apply)


def sentences(tasks=2, count=24, length=8, vocabulary=12):
    """Task t counts upwards in steps of t + 1."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, vocabulary, (tasks, count, 1))
    step = np.arange(1, tasks + 1)[:, None, None]
    text = (start + step * np.arange(length + 1)) % vocabulary
    return text.reshape(-1, length + 1).astype(np.int32)


def test_next_tokens_are_a_stream_like_any_other():
    text, tasks, count = sentences(), 2, 24
    rows = np.random.default_rng(1).integers(0, count, (tasks, 60, 8))
    rows = (rows + count * np.arange(tasks)[:, None, None]).astype(np.int32)
    origin = np.broadcast_to(np.arange(tasks, dtype=np.int32)[:, None, None], rows.shape)
    targets = text[:, 1:].copy()
    targets[:, 0] = -1  # one token says nothing of the step
    groups = Groups(
        text[:, :-1], targets, np.arange(tasks * count, dtype=np.int32).reshape(tasks, count),
        np.ones((tasks, count), np.float32), np.arange(tasks, dtype=np.int32), {},
    )  # fmt: skip
    stream = Stream(
        text[:, :-1], targets, rows, origin, np.ones(rows.shape, np.float32), {}, groups
    )
    setup = Setup(toy_decoder(), next_token(), sgd(rate=0.5), merges={"average": jm.average()})
    R = run(setup, stream, KEY).R
    learnt = R[LAST]["perplexity"]
    assert float(np.diag(learnt).max()) < 1.5  # 12 by chance
    assert float(learnt[1, 0]) > 2 * float(learnt[0, 0])  # and forgetting is seen
    assert np.isfinite(R["average"]["perplexity"]).all()
