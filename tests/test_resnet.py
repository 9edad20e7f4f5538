"""ResNet against torchvision (golden files of tests/golden/make_resnet.py) and transformers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import drawn, sums
from safetensors.numpy import load_file, save_file

from jaxmerge.io.key_tables import absorb, export
from jaxmerge.models import resnet
from jaxmerge.models.convolution import is_statistic
from jaxmerge.models.resnet.params import torchvision_table

GOLDEN = Path(__file__).parent / "golden"
STEMS = ("imagenet", "cifar")
SMALL = resnet.Config("cifar", width=4, blocks=(1, 1))


@pytest.fixture(scope="module", params=STEMS)
def recorded(request, tmp_path_factory):
    golden = load_file(GOLDEN / f"resnet_{request.param}.safetensors")
    weights = {k.removeprefix("weights/"): v for k, v in golden.items() if k.startswith("weights/")}
    folder = tmp_path_factory.mktemp("resnet")
    save_file(weights, folder / "model.safetensors")
    return golden, weights, resnet.load(folder / "model.safetensors")


def logits(model, images, train):
    actual = resnet.forward(model.config, model.params, images, train=train)
    kernel, bias = model.params["head/kernel"], model.params["head/bias"]
    return actual.features @ kernel + bias[None], actual


def test_the_architecture_is_read_from_the_shapes(recorded):
    config = recorded[2].config
    assert (config.width, config.channels) == (6, 3)
    assert config.blocks == ((1, 1, 1) if config.stem == "imagenet" else (2, 1))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_features_and_logits_are_torchvisions(recorded, train):
    golden, _, model = recorded
    mode = "train" if train else "eval"
    actual, forward = logits(model, golden["images"], train)
    np.testing.assert_allclose(forward.features, golden[f"{mode}/features"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(actual, golden[f"{mode}/logits"], rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=[("imagenet", 224, 2), ("cifar", 32, 3)], ids=STEMS)
def full(request):
    """ResNet-18 itself, its weights drawn as the generator of the golden files draws them."""
    stem, side, seed = request.param
    golden, config = load_file(GOLDEN / f"resnet18_{stem}.safetensors"), resnet.Config(stem)
    classes, table = golden["eval/logits"].shape[1], torchvision_table(config, head=True)
    shapes = {
        **resnet.param_shapes(config),
        "head/kernel": (config.features, classes),
        "head/bias": (classes,),
    }
    torchs = export(table, {n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()})
    weights = drawn({key: zeros.shape for key, zeros in torchs.items()}, seed)
    np.testing.assert_allclose(sums(weights), golden["sums"], rtol=1e-12)
    images = np.random.default_rng(seed).normal(size=(2, side, side, 3)).astype(np.float32)
    return golden, resnet.Model(config, absorb(table, weights, shapes)), images


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_resnet18_is_torchvisions_at_its_full_size(full, train):
    golden, model, images = full
    assert (model.config.width, model.config.blocks) == (64, (2, 2, 2, 2))
    actual, forward = logits(model, images, train)
    mode = "train" if train else "eval"
    found = {f"{mode}/logits": actual, f"{mode}/features": forward.features}
    if train:  # the statistics of all twenty norms are the sums of what passes through every stage
        after = export(torchvision_table(model.config), {**model.params, **forward.statistics})
        found |= {f"after/{key}": leaf for key, leaf in after.items() if "running" in key}
    assert set(found) == {k for k in golden if k.startswith((mode, "after" if train else mode))}
    for key, leaf in found.items():
        size = np.abs(golden[key]).max()
        np.testing.assert_allclose(leaf, golden[key], rtol=0, atol=1e-5 * size, err_msg=key)


def test_running_statistics_move_as_torchvisions(recorded):
    golden, _, model = recorded
    now = resnet.forward(model.config, model.params, golden["images"], train=True).statistics
    after = export(torchvision_table(model.config), {**model.params, **now})
    running = [key for key in after if "running" in key]
    assert len(running) == len(now) == sum(map(is_statistic, model.params))
    for key in running:
        np.testing.assert_allclose(after[key], golden[f"after/{key}"], rtol=1e-5, atol=1e-5)
    untouched = resnet.forward(model.config, model.params, golden["images"]).statistics
    assert untouched == {}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_gradients_are_torchvisions(recorded, train):
    golden, weights, model = recorded

    def loss(params):
        out = logits(resnet.Model(model.config, params), golden["images"], train)[0]
        return -jnp.mean(jax.nn.log_softmax(out)[jnp.arange(3), jnp.array([0, 3, 1])])

    grads = export(torchvision_table(model.config, head=True), jax.grad(loss)(dict(model.params)))
    mode = "train/grad/" if train else "eval/grad/"
    for key, expected in golden.items():
        if key.startswith(mode):
            got = grads[key.removeprefix(mode)]
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    moved = [k for k in weights if "running" in k]
    if train:  # what the batch is normalised by, not what was running
        assert all(not np.any(grads[key]) for key in moved)


def test_a_row_of_a_kernels_input_times_the_kernel_is_what_the_layer_gives(recorded):
    golden, _, model = recorded
    images = golden["images"]
    inputs = resnet.forward(model.config, model.params, images, inputs=True).inputs
    kernels = {name for name in model.params if name.endswith("conv/kernel")}
    assert set(inputs) == kernels
    name, size = "block_01/first/conv/kernel", 3
    if model.config.stem == "imagenet":  # the first stride of two, the picture 10 x 10
        assert inputs["stem/conv/kernel"].shape == (3, 20, 20, 7 * 7 * 3)
    kernel = model.params[name]
    rows = inputs[name]
    assert rows.shape[-1] == size * size * kernel.shape[2]
    name = "stem/conv/kernel"
    kernel, stride = model.params[name], 2 if model.config.stem == "imagenet" else 1
    pad = (kernel.shape[0] // 2,) * 2
    direct = jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    product = inputs[name] @ kernel.reshape(-1, kernel.shape[-1])
    np.testing.assert_allclose(product, direct, rtol=0, atol=1e-5)


def test_filling_enters_no_statistics():
    params = resnet.init(SMALL, jax.random.key(0))
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    weight = np.array([1, 1, 0.5, 1, 0, 0], np.float32)
    full = resnet.forward(SMALL, params, images[:4], train=True)
    filled = resnet.forward(SMALL, params, images, train=True, weight=weight)
    np.testing.assert_allclose(filled.features[:4], full.features, rtol=1e-5, atol=1e-6)
    for name, leaf in full.statistics.items():
        np.testing.assert_allclose(filled.statistics[name], leaf, rtol=1e-5, atol=1e-6)
    nothing = resnet.forward(SMALL, params, images, train=True, weight=0 * weight)
    for name, leaf in nothing.statistics.items():
        np.testing.assert_array_equal(leaf, params[name])


def test_a_variance_that_a_merge_made_negative_counts_as_zero():
    params = resnet.init(SMALL, jax.random.key(0))
    params["stem/norm/variance"] = params["stem/norm/variance"] - 2
    assert np.isfinite(resnet.features(SMALL, params, jnp.ones((1, 8, 8, 3)))).all()


def test_statistics_are_measured_anew_as_the_mean_over_batches():
    params = resnet.init(SMALL, jax.random.key(0))
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(4, 8, 8, 3)).astype(np.float32) + k for k in range(2)]
    actual = resnet.recalibrated(SMALL, params, batches)
    conv = [
        resnet.forward(SMALL, params, x, inputs=True).inputs["stem/conv/kernel"] for x in batches
    ]
    kernel = params["stem/conv/kernel"]
    per_batch = [np.asarray(rows @ kernel.reshape(-1, kernel.shape[-1])) for rows in conv]
    mean = np.mean([x.mean((0, 1, 2)) for x in per_batch], 0)
    variance = np.mean([x.reshape(-1, x.shape[-1]).var(0, ddof=1) for x in per_batch], 0)
    np.testing.assert_allclose(actual["stem/norm/mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual["stem/norm/variance"], variance, rtol=1e-4)
    assert actual["stem/norm/scale"] is params["stem/norm/scale"]
    with pytest.raises(ValueError, match="found no batch"):
        resnet.recalibrated(SMALL, params, [])


@pytest.mark.parametrize("layout", ["hf", "torchvision"])
def test_a_folder_comes_back_bit_for_bit(tmp_path, layout):
    config = resnet.Config(width=4, blocks=(1, 2))
    params = resnet.init(config, jax.random.key(1))
    head = {"head/kernel": jnp.ones((8, 3)), "head/bias": jnp.arange(3.0)}
    model = resnet.Model(config, params | head, ("cat", "dog", "owl"))
    resnet.save(model, tmp_path / "out", layout=layout)
    back = resnet.load(tmp_path / "out")
    assert (back.config, back.classes) == (config, model.classes)
    assert set(back.params) == set(model.params)
    assert all(np.array_equal(back.params[name], leaf) for name, leaf in model.params.items())


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"stem 'mnist'.*width 0.*blocks"):
        resnet.Config("mnist", width=0, blocks=())
    params = resnet.init(SMALL, jax.random.key(0))
    with pytest.raises(ValueError, match=r"found shape \(2, 8, 8, 1\)"):
        resnet.features(SMALL, params, jnp.ones((2, 8, 8, 1)))
    with pytest.raises(KeyError, match="stem/conv/kernel"):
        resnet.features(SMALL, {}, jnp.ones((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="stem of ImageNet only"):
        resnet.save((SMALL, params), tmp_path, layout="hf")
    deep = absorb(torchvision_table(SMALL), export(torchvision_table(SMALL), params),
                  resnet.param_shapes(SMALL))  # fmt: skip
    weights = export(torchvision_table(SMALL), deep)
    save_file({**weights, "layer1.0.conv3.weight": np.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="bottleneck"):
        resnet.load(tmp_path)


@pytest.mark.parity
def test_transformers_reads_what_we_write_and_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = resnet.Config()
    params = resnet.init(config, jax.random.key(0))
    head = {
        "head/kernel": 0.1 * jax.random.normal(jax.random.key(1), (512, 7)),
        "head/bias": jnp.arange(7.0),
    }
    resnet.save((config, params | head), tmp_path)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    images = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype(np.float32)
    model = resnet.load(tmp_path)
    for train in (False, True):
        theirs.train(train)
        with torch.no_grad():
            expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).logits.numpy()
        np.testing.assert_allclose(logits(model, images, train)[0], expected, rtol=1e-4, atol=1e-4)
