"""CLIP against torch (golden files of tests/golden/make_clip.py), borders and errors."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmerge.models import clip
from jaxmerge.models.clip.modeling import VisionTower, _forward
from jaxmerge.models.transformer import bind

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


def test_each_block_equals_torch(case):
    """The state before block i, as torch has it, goes through our block i alone."""
    model, expected = case
    own = {
        name.removeprefix("vision/"): leaf
        for name, leaf in model.params.items()
        if name.startswith("vision/")
    }
    states = expected["vision_states"]
    for index in range(model.config.vision.layers):
        tower = bind(VisionTower, model.config, own)
        block = getattr(tower, f"block_{index:02d}")
        ours = block(jnp.asarray(states[index]), clip.Compute())
        np.testing.assert_allclose(ours, states[index + 1], atol=1e-5, rtol=0)


def test_bfloat16_errs_no_more_than_torch(case):
    model, expected = case
    compute = clip.Compute(dtype="bfloat16")
    for kind, features, inputs in (
        ("image_features", clip.image_features, "pixels"),
        ("text_features", clip.text_features, "tokens"),
    ):
        ours = features(model.config, model.params, expected[inputs], compute=compute)
        assert ours.dtype == jnp.float32
        error = np.abs(ours - expected[kind]).mean()
        theirs = np.abs(expected[f"{kind}_bf16"] - expected[kind]).mean()
        assert 0 < error < 1.1 * theirs


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


def test_other_parameters_do_not_compile_again():
    model = clip.load(GOLDEN / "clip_quick")
    pixels = load_file(GOLDEN / "clip_quick" / "expected.safetensors")["pixels"]
    clip.image_features(model.config, model.params, pixels)
    before = _forward._cache_size()
    other = {name: 2 * leaf for name, leaf in model.params.items()}
    clip.image_features(model.config, other, pixels)
    assert _forward._cache_size() == before


def test_several_models_at_once_equal_each_alone():
    model = clip.load(GOLDEN / "clip_quick")
    pixels = load_file(GOLDEN / "clip_quick" / "expected.safetensors")["pixels"]
    models = [{name: c * leaf for name, leaf in model.params.items()} for c in (0.5, 1.0, 2.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    together = jax.vmap(lambda params: clip.image_features(model.config, params, pixels))(stacked)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    for row, params in zip(together, models, strict=True):
        alone = clip.image_features(model.config, params, pixels)
        # Sums are grouped otherwise under vmap: features of length 1 differ by a few roundings.
        np.testing.assert_allclose(unit(row), unit(alone), rtol=0, atol=1e-6)


def test_regmean_sees_the_patch_kernel_in_both_layouts():
    """The patch embedding is a dense layer over patches, in our layout and in torch's."""
    import jaxmerge as jm
    from jaxmerge import statistics
    from jaxmerge.io.key_tables import export
    from jaxmerge.models.clip.params import hf_table
    from jaxmerge.statistics.layout import in_layout

    model = clip.load(GOLDEN / "clip_quick")
    name, key = "vision/patch/kernel", "vision_model.embeddings.patch_embedding.weight"
    pixels = load_file(GOLDEN / "clip_quick" / "expected.safetensors")["pixels"]
    apply = lambda params, images: clip.image_features(model.config, params, images)
    base = {n: p for n, p in model.params.items() if n.startswith("vision/")}
    statistic = statistics.gram(apply, base, [pixels])
    rows = pixels.reshape(5, 3, 8, 3, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 192)
    np.testing.assert_allclose(statistic.values[name], rows.T @ rows / 5, atol=1e-4)

    draw = np.random.default_rng(0)
    rest = {n: p for n, p in model.params.items() if n not in base}
    models = [
        {n: p + draw.standard_normal(p.shape).astype(np.float32) for n, p in base.items()}
        for _ in range(2)
    ]
    grams = [statistic._replace(values={name: statistic.values[name] * c}) for c in (1.0, 3.0)]
    ours = jm.merge(jm.regmean(), base, models, extras=[{"gram": g.values} for g in grams])
    table = [entry for entry in hf_table(model.config) if entry.key == key]
    leaves = [export(table, {**rest, **params}) for params in (base, *models)]
    theirs = [in_layout(g, table, leaves[0]) for g in grams]
    assert theirs[0].about["axis"] == {key: 1}
    extras = [{"gram": g.values} for g in theirs]
    merged = jm.merge(jm.regmean(axis=1), leaves[0], leaves[1:], extras=extras)
    np.testing.assert_allclose(export(table, ours)[key], merged[key], atol=1e-4)
