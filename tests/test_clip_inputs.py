"""Texts, pictures and heads of CLIP against OpenAI's and transformers' own."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmerge.models import clip

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def tokenizer(shared):
    folder = shared / "data" / "clip-tokenizer"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return clip.load_tokenizer(folder, 77)


def letters() -> clip.Tokenizer:
    """A tokenizer of single letters, so that no vocabulary is needed."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + "</w>" for a in alphabet)])}
    vocab |= {"<|startoftext|>": 52, "<|endoftext|>": 53}
    backend = clip.from_bpe(vocab, [])
    return clip.Tokenizer(backend, context=8, start=52, end=53, pad=53)


def small_model() -> clip.Model:
    import jax

    vision = clip.Vision(image=8, patch=4, width=8, layers=1, heads=2, hidden=16)
    text = clip.Text(
        vocab=54, context=8, width=8, layers=1, heads=2, hidden=16, bos=52, eos=53, pad=53
    )
    config = clip.Config(vision, text, projection_dim=6)
    return clip.Model(config, clip.init(config, jax.random.key(0)), letters())


def test_ids_equal_openais(tokenizer):
    for row in json.loads((GOLDEN / "clip_tokens.json").read_text(encoding="utf-8")):
        ids = list(tokenizer(row["text"])[0])
        assert ids[: len(row["ids"]) + 2] == [49406, *row["ids"], 49407], row["text"]


def test_ids_equal_transformers_on_all_prompts(tokenizer, shared):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(shared / "data" / "clip-tokenizer")
    prompts = clip.load_prompts(shared / "data" / "clip-prompts" / "prompts.json")
    assert len(prompts) == 26
    texts = [
        template.replace("{}", name)
        for entry in prompts.values()
        for name in entry.classes
        for template in entry.templates[:2]
    ]
    expected = theirs(texts, padding="max_length", max_length=77)["input_ids"]
    np.testing.assert_array_equal(tokenizer(texts), expected)


def test_tokenizer_survives_a_folder(tmp_path):
    before = letters()
    before.save(tmp_path)
    after = clip.load_tokenizer(tmp_path, 8)
    assert (after.start, after.end, after.pad) == (52, 53, 53)
    np.testing.assert_array_equal(before(["ab c"]), [[52, 0, 27, 28, 53, 53, 53, 53]])
    np.testing.assert_array_equal(before(["ab c"]), after(["ab c"]))
    assert after.decode(after("ab c")[0]) == "ab c"


def test_long_texts_are_refused_unless_truncation_is_asked_for():
    with pytest.raises(
        ValueError, match=r"1 of 2 texts has more than the 6 tokens.*'abcdefgh' has 8.*truncate"
    ):
        letters()(["abc", "abcdefgh"])
    row = letters()("abcdefgh", truncate=True)[0]
    np.testing.assert_array_equal(row, [52, 0, 1, 2, 3, 4, 5, 53])


def test_pixels_equal_transformers():
    golden = load_file(GOLDEN / "clip_pixels.safetensors")
    preprocess = clip.Preprocess(24)
    for index in range(7):
        ours = preprocess(golden[f"picture_{index}"])
        expected = golden[f"expected_{index}"]
        in_steps = np.abs(ours - expected) * np.asarray(preprocess.std) * 255
        assert ours.dtype == np.float32
        assert in_steps.max() < 1e-3  # of one grey level


def test_pixels_of_batches_grey_and_pil():
    from PIL import Image

    golden = load_file(GOLDEN / "clip_pixels.safetensors")
    picture = golden["picture_0"]
    preprocess = clip.Preprocess(24)
    one = preprocess(picture)
    np.testing.assert_array_equal(preprocess(Image.fromarray(picture)), one)
    np.testing.assert_array_equal(preprocess([Image.fromarray(picture)] * 2)[1], one)
    np.testing.assert_array_equal(preprocess(np.stack([picture, picture]))[1], one)
    grey = picture[None, :, :, 0]
    coloured = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(preprocess(grey), preprocess(coloured))
    with pytest.raises(TypeError, match="found dtype float32, expected uint8"):
        preprocess(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match=r"found shape \(2, 8, 8, 4\), expected"):
        preprocess(np.zeros((2, 8, 8, 4), np.uint8))


def test_preprocessor_config_round_trip_and_contradictions(tmp_path):
    model = small_model()
    mine = clip.Preprocess(8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    clip.save(clip.Model(model.config, model.params, model.tokenizer, mine), tmp_path)
    assert clip.load(tmp_path).preprocess == mine
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**mine.to_hf(), "crop_size": 10, "resample": 2}))
    with pytest.raises(ValueError, match=r"resample=2 \(expected 3.*crop_size=10 \(expected 8"):
        clip.load(tmp_path)


def test_random_crops_keep_nearly_all_of_the_picture():
    """On a ramp the crop's corners say which part of the picture it shows."""
    height, width, side = 60, 80, 32
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)
    batch = np.repeat(ramp[None], 200, axis=0)
    crops = clip.random_resized_crop(batch, side, np.random.default_rng(0)).astype(float)
    tall = crops[:, -1, 16, 0] - crops[:, 0, 16, 0] + height / side
    wide = crops[:, 16, -1, 1] - crops[:, 16, 0, 1] + width / side
    share, aspect = tall * wide / (height * width), wide / tall
    assert share.min() > 0.85
    assert share.max() < 1.05
    assert 0.92 < share.mean() < 0.98
    assert aspect.max() < 4 / 3 + 0.06
    assert np.ptp(crops[:, 0, 0, 0]) > 1  # places differ
    again = clip.random_resized_crop(batch, side, np.random.default_rng(0))
    np.testing.assert_array_equal(crops, again)


def test_zero_shot_head_is_the_normalised_mean_over_templates():
    model = small_model()
    templates, names = ("a {}", "no {}", "{}"), ("cat", "dog", "cow", "pig")
    head = clip.zero_shot_head(model, names, templates, batch=5)
    assert head.shape == (6, 4)
    for column, name in zip(np.asarray(head).T, names, strict=True):
        tokens = model.tokenizer([t.replace("{}", name) for t in templates])
        features = clip.normalise(clip.text_features(model.config, model.params, tokens))
        mean = features.mean(axis=0)
        np.testing.assert_allclose(column, mean / jnp.linalg.norm(mean), atol=1e-6)


def test_heads_refuse_bad_templates_and_missing_towers():
    model = small_model()
    with pytest.raises(ValueError, match=r"exactly one \{\}; found \['no place'\]"):
        clip.zero_shot_head(model, ["cat"], ["a {}", "no place"])
    with pytest.raises(TypeError, match="found a single text"):
        clip.zero_shot_head(model, "cat")
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        clip.zero_shot_head(clip.Model(model.config, model.params), ["cat"])


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(
        json.dumps({"pets": {"classes": ["cat", ["dog", "hound"]], "templates": ["{}"]}})
    )
    assert clip.load_prompts(file) == {"pets": (("cat", "dog"), ("{}",))}
    file.write_text(json.dumps({"pets": {"classes": []}, "cars": {}}))
    with pytest.raises(ValueError, match="need non-empty classes and templates: pets, cars"):
        clip.load_prompts(file)


def test_features_of_a_data_set_equal_those_of_its_batches(tmp_path):
    from PIL import Image

    model = small_model()
    images = np.random.default_rng(0).integers(0, 256, (7, 12, 10, 3), np.uint8)
    expected = clip.image_features(model.config, model.params, clip.Preprocess(8)(images))
    np.save(tmp_path / "images.npy", images)
    files = [tmp_path / f"{index}.png" for index in range(7)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    for source in (images, np.load(tmp_path / "images.npy", mmap_mode="r"), files):
        actual = clip.encode_images(model, source, batch=3)
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert clip.encode_images(model, images[:0]).shape == (0, 6)


def test_features_refuse_wrong_inputs():
    model = small_model()
    config, params = model.config, model.params
    with pytest.raises(
        ValueError, match=r"found shape \(1, 9, 9, 3\), expected \(batch, 8, 8, 3\)"
    ):
        clip.image_features(config, params, jnp.zeros((1, 9, 9, 3)))
    with pytest.raises(TypeError, match="found dtype uint8, expected normalised floats"):
        clip.image_features(config, params, jnp.zeros((1, 8, 8, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"found shape \(1, 9\), expected \(batch, at most 8\)"):
        clip.text_features(config, params, jnp.zeros((1, 9), int))
    with pytest.raises(TypeError, match="found dtype float32, expected integers"):
        clip.text_features(config, params, jnp.zeros((1, 8)))
    less = {name: leaf for name, leaf in params.items() if "norm2" not in name}
    with pytest.raises(
        KeyError, match=r"vision tower: .*block_00/norm2/bias, block_00/norm2/scale"
    ):
        clip.image_features(config, less, jnp.zeros((1, 8, 8, 3)))
    wrong = {**params, "text/position": jnp.zeros((7, 8))}
    with pytest.raises(ValueError, match=r"position: found \(7, 8\), expected \(8, 8\)"):
        clip.text_features(config, wrong, jnp.zeros((1, 8), int))


def test_many_long_texts_make_one_short_error():
    with pytest.raises(ValueError, match=r"^1000 of 1000 texts have more") as error:
        letters()(["abcdefgh" * 40] * 1000)
    assert "and 995 more. Shorten them" in str(error.value)
    assert len(str(error.value)) < 1000


def test_accuracies_of_many_models_through_one_compiled_step():
    from jaxmerge.models.clip import extract

    model = small_model()
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (11, 8, 8, 3), np.uint8)
    labels, head = draw.integers(0, 3, 11), np.eye(6, 3, dtype=np.float32)
    merged = [{n: c * leaf for n, leaf in model.params.items()} for c in (1.0, -0.5, 3.0)]
    before = extract._hits._cache_size()
    actual = clip.accuracies(model, merged, images, labels, head, batch=4)
    assert extract._hits._cache_size() == before + 1
    for params, share in zip(merged, actual, strict=True):
        alone = clip.encode_images(clip.Model(model.config, params), images, batch=11)
        assert share == np.mean(alone[:, :3].argmax(axis=1) == labels)
    with pytest.raises(ValueError, match=r"found 10 for 11 images"):
        clip.accuracies(model, merged, images, labels[:10], head)
    with pytest.raises(ValueError, match=r"expected 0 to 1, the columns of the head"):
        clip.accuracies(model, merged, images, np.full(11, 2), head[:, :2])


def test_what_is_no_array_is_refused():
    model = small_model()
    config, params = model.config, model.params
    with pytest.raises(TypeError, match="images: found list, expected an array"):
        clip.image_features(config, params, [[1.0]])
    with pytest.raises(TypeError, match="tokens: found str, expected an array"):
        clip.text_features(config, params, "a cat")
    with pytest.raises(TypeError, match="compute: found 'bfloat16', expected a Compute"):
        clip.image_features(config, params, jnp.zeros((1, 8, 8, 3)), compute="bfloat16")
    with pytest.raises(ValueError, match="found ids 2 to 99, expected 0 to 53"):
        clip.text_features(config, params, np.array([[2, 99]]))
    with pytest.raises(TypeError, match=r"found str, expected PIL.*encode_images reads files"):
        clip.preprocess(["a.jpg"], config)
    with pytest.raises(ValueError, match="vision: expected at least 1, found heads 0"):
        clip.Config(clip.Vision(heads=0), None)
    assert clip.preprocess([], config).shape == (0, 8, 8, 3)
