"""CLIP against torch (golden files of tests/golden/make_clip.py), borders and errors."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmerge.models import clip

GOLDEN = Path(__file__).parent / "golden"
CASES = ["clip_quick", "clip_gelu"]
COMPUTES = [
    clip.Compute(),
    clip.Compute(attention="fused"),
    clip.Compute(scan=True),
    clip.Compute(remat="dots"),
    clip.Compute(remat="full", scan=True),
]


@pytest.fixture(params=CASES)
def case(request):
    folder = GOLDEN / request.param
    return clip.load(folder), load_file(folder / "expected.safetensors")


@pytest.mark.parametrize("compute", COMPUTES, ids=str)
def test_features_equal_torch(case, compute):
    model, expected = case
    images = clip.image_features(model.config, model.params, expected["pixels"], compute=compute)
    texts = clip.text_features(model.config, model.params, expected["tokens"], compute=compute)
    np.testing.assert_allclose(images, expected["image_features"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(texts, expected["text_features"], atol=1e-5, rtol=0)


def test_logits_equal_torch(case):
    model, expected = case
    images = clip.image_features(model.config, model.params, expected["pixels"])
    texts = clip.text_features(model.config, model.params, expected["tokens"])
    logits = clip.logits(images, clip.normalise(texts).T, model.params["logit_scale"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4, rtol=0)


def test_bfloat16_is_near_float32(case):
    model, expected = case
    compute = clip.Compute(dtype="bfloat16")
    images = clip.image_features(model.config, model.params, expected["pixels"], compute=compute)
    assert images.dtype == jnp.float32
    scale = np.abs(expected["image_features"]).max()
    np.testing.assert_allclose(images / scale, expected["image_features"] / scale, atol=0.03)


@pytest.mark.parametrize(
    "compute", [clip.Compute(attention="fused"), clip.Compute(remat="full", scan=True)], ids=str
)
def test_gradients_do_not_depend_on_how(compute):
    model = clip.load(GOLDEN / "clip_quick")
    expected = load_file(GOLDEN / "clip_quick" / "expected.safetensors")

    def loss(params, compute):
        features = clip.image_features(
            model.config, params, jnp.asarray(expected["pixels"]), compute=compute
        )
        return jnp.sum(features**2)

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    plain = gradient(model.params, clip.Compute())
    other = gradient(model.params, compute)
    # A key's bias has gradient zero but for rounding, so the measure is the largest entry of all.
    size = max(float(jnp.abs(leaf).max()) for leaf in plain.values())
    for name in plain:
        np.testing.assert_allclose(
            plain[name] / size, other[name] / size, atol=1e-6, rtol=0, err_msg=name
        )


def test_folder_round_trip_is_exact(case, tmp_path):
    model, _ = case
    clip.save(model, tmp_path)
    again = clip.load(tmp_path)
    assert again.config == model.config
    assert again.preprocess == model.preprocess
    assert set(again.params) == set(model.params)
    for name, leaf in model.params.items():
        assert leaf.dtype == again.params[name].dtype == jnp.float32
        np.testing.assert_array_equal(leaf, again.params[name], err_msg=name)


def test_saved_tensors_equal_the_original_file(tmp_path):
    clip.save(clip.load(GOLDEN / "clip_quick"), tmp_path)
    ours = load_file(tmp_path / "model.safetensors")
    theirs = load_file(GOLDEN / "clip_quick" / "model.safetensors")
    assert set(ours) == set(theirs)
    for key in theirs:
        assert ours[key].shape == theirs[key].shape
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


def test_init_has_the_shapes_of_the_config(case):
    model, _ = case
    params = clip.init(model.config, jax.random.key(0))
    assert {name: leaf.shape for name, leaf in params.items()} == clip.param_shapes(model.config)
    assert set(params) == set(model.params)
    assert params["vision/block_01/attn/query/kernel"].shape == (24, 24)
