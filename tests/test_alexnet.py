"""The small AlexNet against a transcription in torch, and as the model of a stream."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.models import alexnet
from jaxmerge.models.alexnet.learner import alexnet as spec

SMALL = {"side": 28, "filters": (3, 4, 5), "hidden": (6, 7)}
IMAGES = np.random.default_rng(0).normal(size=(8, 28, 28, 3)).astype(np.float32)


def drawn(config):
    """Parameters without zeros and ones in them."""
    rng = np.random.default_rng(1)
    params = alexnet.init(config, jax.random.key(0))
    return {n: p if "kernel" in n else jnp.asarray(rng.uniform(0.5, 1.5, p.shape), jnp.float32)
            for n, p in params.items()}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("running", [False, True], ids=["batch", "running"])
def test_features_are_torchs(train, running):
    torch = pytest.importorskip("torch")
    nn = torch.nn
    config = alexnet.Config(running=running, **SMALL)
    params = drawn(config)
    norm = lambda make, width: make(width, track_running_stats=running)
    layers = []
    for k, (inputs, outputs, size) in enumerate(((3, 3, 4), (3, 4, 3), (4, 5, 2))):
        conv = nn.Conv2d(inputs, outputs, size, bias=False)
        kernel = np.asarray(params[f"conv_{k}/kernel"]).transpose(3, 2, 0, 1).copy()
        conv.weight.data = torch.tensor(kernel)
        layers += [conv, norm(nn.BatchNorm2d, outputs), nn.ReLU(), nn.MaxPool2d(2)]
    layers.append(nn.Flatten())
    side = config.last
    for k, (inputs, outputs) in enumerate(((5 * side**2, 6), (6, 7))):
        kernel = np.asarray(params[f"dense_{k}/kernel"])
        if k == 0:  # rows in the order of torch: channel, row, column
            kernel = kernel.reshape(side, side, 5, outputs).transpose(2, 0, 1, 3)
        dense = nn.Linear(inputs, outputs, bias=False)
        dense.weight.data = torch.tensor(kernel.reshape(inputs, outputs).T.copy())
        layers += [dense, norm(nn.BatchNorm1d, outputs), nn.ReLU()]
    net = nn.Sequential(*layers)
    norms = [m for m in net if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for k, layer in enumerate(norms):
        layer.weight.data = torch.tensor(np.array(params[f"norm_{k}/scale"]))
        layer.bias.data = torch.tensor(np.array(params[f"norm_{k}/bias"]))
        if running:
            layer.running_mean.data = torch.tensor(np.array(params[f"norm_{k}/mean"]))
            layer.running_var.data = torch.tensor(np.array(params[f"norm_{k}/variance"]))
    net.train(train)
    with torch.no_grad():
        expected = net(torch.tensor(IMAGES).permute(0, 3, 1, 2)).numpy()
    actual = alexnet.forward(config, params, IMAGES, train=train)
    np.testing.assert_allclose(actual.features, expected, rtol=1e-4, atol=1e-5)
    for k, layer in enumerate(norms if running and train else ()):
        moved = actual.statistics[f"norm_{k}/variance"]
        np.testing.assert_allclose(moved, layer.running_var.numpy(), rtol=1e-4, atol=1e-5)


def test_sizes_are_the_authors():
    shapes = alexnet.param_shapes(alexnet.Config(running=False))
    kernels = {n: s for n, s in shapes.items() if n.endswith("kernel")}
    assert kernels == {
        "conv_0/kernel": (4, 4, 3, 64), "conv_1/kernel": (3, 3, 64, 128),
        "conv_2/kernel": (2, 2, 128, 256), "dense_0/kernel": (1024, 2048),
        "dense_1/kernel": (2048, 2048),
    }  # fmt: skip
    assert not any("mean" in n for n in shapes)


def test_units_are_dropped_in_training_alone_and_by_the_key():
    model = spec(classes=3, **SMALL).build()
    params = model.init(jax.random.key(0))
    one, other = (model.train(params, IMAGES, 0, jax.random.key(k)).features for k in (1, 2))
    assert not np.array_equal(one, other)
    again = model.train(params, IMAGES, 0, jax.random.key(1)).features
    np.testing.assert_array_equal(one, again)
    out = model.apply(params, IMAGES, 0)
    np.testing.assert_array_equal(out.logits, model.apply(params, IMAGES, 0).logits)
    assert set(out.aux["taps"]) == {n for n in params if n.endswith("kernel")}
    rows = out.aux["taps"]["dense_0/kernel"]
    assert rows.shape[-1] == params["dense_0/kernel"].shape[0]


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="at least 19 pixels"):
        alexnet.Config(side=8)
    config = alexnet.Config(**SMALL)
    with pytest.raises(ValueError, match=r"expected \(batch, 28, 28, 3\)"):
        alexnet.features(config, alexnet.init(config, jax.random.key(0)), IMAGES[:, :8])
