"""CLIP's folders: OpenCLIP's layout, shards, towers alone, pickles, and what is refused."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxmerge.models import clip

GOLDEN = Path(__file__).parent / "golden"
CASE = GOLDEN / "clip_quick"
OPEN = GOLDEN / "open_clip"


def equal(one, other) -> None:
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def copy(folder: Path, tensors: dict, config: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    if config is None:
        config = json.loads((CASE / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_open_clip_gives_the_same_features():
    model = clip.load(OPEN)
    expected = load_file(GOLDEN / "open_clip_expected.safetensors")
    assert model.config.activation == "gelu"
    assert model.config.vision.heads == 3
    assert model.preprocess == clip.Preprocess(16, (0.5,) * 3, (0.25,) * 3)
    images = clip.image_features(model.config, model.params, expected["pixels"])
    texts = clip.text_features(model.config, model.params, expected["tokens"])
    np.testing.assert_allclose(images, expected["image_features"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(texts, expected["text_features"], atol=1e-5, rtol=0)
    logits = clip.logits(images, clip.normalise(texts).T, model.params["logit_scale"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4, rtol=0)


def test_open_clip_round_trip_is_exact(tmp_path):
    model = clip.load(OPEN)
    clip.save(model, tmp_path, layout="open_clip")
    theirs = load_file(OPEN / "open_clip_model.safetensors")
    equal(load_file(tmp_path / "open_clip_model.safetensors"), theirs)
    again = clip.load(tmp_path)
    assert again.config == model.config
    assert again.preprocess == model.preprocess
    config = json.loads((OPEN / "open_clip_config.json").read_text())
    assert json.loads((tmp_path / "open_clip_config.json").read_text()) == config


def test_open_clip_to_hugging_face_and_back_is_exact(tmp_path):
    model = clip.load(OPEN)
    clip.save(model, tmp_path / "hf")
    clip.save(clip.load(tmp_path / "hf"), tmp_path / "back", layout="open_clip")
    theirs = load_file(OPEN / "open_clip_model.safetensors")
    equal(load_file(tmp_path / "back" / "open_clip_model.safetensors"), theirs)


def test_openai_state_dict_tells_its_architecture(tmp_path):
    """OpenAI's own dicts hold three extra numbers; heads are 64 wide, the activation quick."""
    vision = clip.Vision(image=16, patch=8, width=64, layers=1, heads=1, hidden=128)
    text = clip.Text(
        vocab=30, context=6, width=64, layers=2, heads=1, hidden=96, bos=28, eos=29, pad=0
    )
    config = clip.Config(vision, text, projection_dim=8)
    params = clip.init(config, jax.random.key(1))
    clip.save((config, params), tmp_path, layout="open_clip")
    tensors = load_file(tmp_path / "open_clip_model.safetensors")
    numbers = {"input_resolution": 16, "context_length": 6, "vocab_size": 30}
    tensors |= {key: np.asarray(value, np.int64) for key, value in numbers.items()}
    (tmp_path / "bare").mkdir()
    save_file(tensors, tmp_path / "bare" / "ViT.safetensors")
    model = clip.load(tmp_path / "bare" / "ViT.safetensors")
    assert model.config == config
    equal(model.params, params)


def test_shards_load_as_one(tmp_path):
    tensors = load_file(CASE / "model.safetensors")
    keys = sorted(tensors)
    where = {}
    for index, part in enumerate((keys[::2], keys[1::2])):
        file = f"model-0000{index + 1}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, tmp_path / file)
        where |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (tmp_path / "config.json").write_text((CASE / "config.json").read_text())
    equal(clip.load(tmp_path).params, clip.load(CASE).params)


@pytest.mark.parametrize(
    ("prefix", "projected"),
    [("vision_model.", True), ("vision_model.", False), ("", False)],  # "": transformers 5
)
def test_image_tower_alone_loads_onto_a_base(tmp_path, prefix, projected):
    """As fine-tuned towers are published: CLIPVisionModel, with or without its projection."""
    base = clip.load(CASE)
    tensors, config = (
        load_file(CASE / "model.safetensors"),
        json.loads((CASE / "config.json").read_text()),
    )
    tuned = {
        key.replace("vision_model.", prefix): value + np.float32(0.5)
        for key, value in tensors.items()
        if key.startswith("vision_model.")
    }
    architecture = "CLIPVisionModel"
    if projected:
        tuned["visual_projection.weight"] = tensors["visual_projection.weight"] + np.float32(0.5)
        architecture = "CLIPVisionModelWithProjection"
    tower = {"model_type": "clip_vision_model", **config["vision_config"]}
    tower |= {"architectures": [architecture], "projection_dim": 16}
    folder = copy(tmp_path / "tuned", tuned, tower)

    alone = clip.load(folder)
    assert alone.config.text is None
    assert alone.config.projection_dim == (16 if projected else None)
    with pytest.raises(ValueError, match="without text tower"):
        clip.text_features(alone.config, alone.params, np.zeros((1, 4), np.int32))

    full = clip.load(folder, base=base)
    assert full.config == base.config
    assert set(full.params) == set(base.params)
    for name, leaf in full.params.items():
        changed = name.startswith("vision/") and (projected or name != "vision/projection/kernel")
        np.testing.assert_array_equal(
            leaf, base.params[name] + np.float32(0.5 * changed), err_msg=name
        )


def test_base_of_another_architecture_is_refused(tmp_path):
    base = clip.load(CASE)
    other = replace(base.config.vision, hidden=40)
    config = clip.Config(other, None, 16, activation="gelu")
    clip.save((config, clip.init(config, jax.random.key(0))), tmp_path)
    with pytest.raises(ValueError, match=r"vision.hidden: found 40, the base has 48; activation"):
        clip.load(tmp_path, base=base)


def test_missing_unexpected_and_wrong_shapes_are_listed_at_once(tmp_path):
    tensors = load_file(CASE / "model.safetensors")
    del tensors["logit_scale"], tensors["vision_model.post_layernorm.bias"]
    tensors["extra.weight"] = np.zeros(2, np.float32)
    tensors["text_projection.weight"] = np.zeros((16, 23), np.float32)
    with pytest.raises(ValueError) as error:
        clip.load(copy(tmp_path / "model", tensors))
    text = str(error.value)
    assert "missing: logit_scale, vision_model.post_layernorm.bias" in text
    assert "unexpected: extra.weight" in text
    assert "text_projection.weight: found (16, 23), expected (16, 24)" in text


def test_float16_and_bfloat16_on_disk(tmp_path):
    model = clip.load(CASE)
    for dtype, error in (("float16", 1e-3), ("bfloat16", 8e-3)):
        clip.save(model, tmp_path / dtype, dtype=dtype)
        again = clip.load(tmp_path / dtype)
        for name, leaf in model.params.items():
            assert again.params[name].dtype == np.float32
            np.testing.assert_allclose(again.params[name], leaf, rtol=error, atol=1e-6)
    with pytest.raises(ValueError, match="found 'int8', expected float32, float16 or bfloat16"):
        clip.save(model, tmp_path, dtype="int8")


def test_a_base_of_float64_files_loads(shared):
    folder = shared / "golden" / "clip_vision"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    config = clip.Config.from_hf(json.loads((folder / "config.json").read_text()))
    model = clip.load(folder / "base.safetensors", config=config)
    assert model.config.text is None
    assert model.params["vision/block_01/mlp/up/kernel"].shape == (24, 72)


def test_programs_and_nothing_are_refused(tmp_path):
    archive = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ViT-B-32/constants.pkl", b"")
        file.writestr("ViT-B-32/data.pkl", b"")
    with pytest.raises(ValueError, match=r"TorchScript archive.*Convert it.*state_dict"):
        clip.load(archive)
    with pytest.raises(ValueError, match="There is no model"):
        clip.load(tmp_path / "nothing" / "here")
    save_file(load_file(CASE / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected a config\.json beside the weights"):
        clip.load(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ValueError, match="found model_type 'resnet', expected clip"):
        clip.load(tmp_path)


def test_open_clip_models_of_other_kinds_are_refused(tmp_path):
    config = json.loads((OPEN / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "convnext"
    config["model_cfg"]["custom_text"] = True
    save_file(load_file(OPEN / "open_clip_model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"custom_text=True; vision_cfg.timm_model_name='convnext'"
    ):
        clip.load(tmp_path)


def test_configs_survive_hugging_face_and_are_checked():
    for name, known in clip.VARIANTS.items():
        assert clip.Config.from_hf(known.config.to_hf()) == clip.variant(name)
        assert clip.variant(known.hub[0]) == known.config
    with pytest.raises(KeyError, match="did you mean ViT-B/32"):
        clip.variant("ViT-B-32")
    with pytest.raises(
        ValueError, match=r"width 30 is not a multiple of 4 heads.*image 20.*'mish'"
    ):
        clip.Config(clip.Vision(image=20, patch=8, width=30, heads=4), None, activation="mish")


def large(name: str, millions: float):
    return pytest.param(name, millions, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("ViT-B/32", 151.28),
        ("ViT-B/16", 149.62),
        large("ViT-L/14", 427.62),
        large("ViT-L/14@336", 427.94),
        large("ViT-H/14", 986.11),
        large("ViT-g/14", 1366.68),
        large("ViT-bigG/14", 2539.57),
    ],
)
def test_variants_have_the_published_number_of_parameters(name, millions):
    """Millions of parameters, as OpenCLIP's table of models gives them."""
    sizes = clip.param_shapes(clip.variant(name)).values()
    assert round(sum(int(np.prod(shape)) for shape in sizes) / 1e6, 2) == millions


def test_parameters_that_are_not_the_configs_are_not_saved(tmp_path):
    model = clip.load(CASE)
    params = {**model.params, "extra": np.zeros(2), "vision/position": np.zeros((3, 3))}
    with pytest.raises(
        ValueError,
        match=r"extra: not of this.*vision/position: found \(3, 3\), expected \(10, 24\)",
    ):
        clip.save((model.config, params), tmp_path / "model")
    del params["logit_scale"]
    with pytest.raises(KeyError, match="missing: logit_scale"):
        clip.save((model.config, params), tmp_path / "model")
    assert not (tmp_path / "model").exists()
