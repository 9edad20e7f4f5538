"""The glyph world: drawings, images, captions that are true, tokens, streams of tasks, ``mini``."""

from pathlib import Path

import numpy as np
import pytest

from jaxmerge.data import glyphs
from jaxmerge.data.glyphs import bank as banks
from jaxmerge.data.glyphs import render, strokes, suites, vocabulary
from jaxmerge.data.glyphs.concepts import COLOUR_NAMES, FRAMES, KIND_OF, STYLES


@pytest.fixture(scope="module")
def bank():
    """Every concept, a few drawings, one font."""
    return glyphs.build(drawings=2, fonts=("DejaVuSans",))


@pytest.fixture(scope="module")
def world(bank):
    return glyphs.World(bank)


# ------------------------------------------------------------------------------- drawings


@pytest.mark.parametrize("char", strokes.SKELETONS)
def test_skeletons_are_well_formed_and_fill_the_box(char):
    for strokes_of_one in strokes.parse(strokes.SKELETONS[char]):
        assert all(len(stroke) >= 2 for stroke in strokes_of_one)
    lines = strokes.draw(char, np.random.default_rng(0))
    low, high = lines.min((0, 1)), lines.max((0, 1))
    np.testing.assert_allclose((high - low).max(), 2.0, rtol=1e-6)
    np.testing.assert_allclose(low + high, 0, atol=1e-6)


def test_smooth_passes_through_its_points_and_closes_loops():
    points = np.array([(0.0, 0.0), (1.0, 0.2), (0.5, 1.0), (0.0, 0.0)])
    curve = strokes.smooth(points, pieces=60)
    np.testing.assert_allclose(curve[::60], points, atol=1e-12)
    entering, leaving = curve[-1] - curve[-2], curve[1] - curve[0]
    cosine = entering @ leaving / np.linalg.norm(entering) / np.linalg.norm(leaving)
    assert cosine > 0.9  # no corner where the loop closes


def test_handwriting_field_is_the_distance_to_the_path(monkeypatch):
    line = np.array([[(-1.0, 0.0), (1.0, 0.0)]])
    monkeypatch.setattr(strokes, "draw", lambda char, rng: line)
    field = banks.handwritten("1", np.random.default_rng(0))
    axis = (np.arange(48) + 0.5) / 48 * 2.5 - 1.25
    x, y = np.meshgrid(axis, axis)
    expected = np.hypot(np.maximum(np.abs(x) - 1, 0), y)
    np.testing.assert_allclose(field, expected, atol=1e-6)


def test_signed_distance_of_a_disc():
    axis = (np.arange(banks.FINE) + 0.5) / banks.FINE * 2.5 - 1.25
    x, y = np.meshgrid(axis, axis)
    field = banks.signed_distance(np.hypot(x, y) < 0.8)
    coarse = axis[1::3]
    x, y = np.meshgrid(coarse, coarse)
    assert np.abs(field - (np.hypot(x, y) - 0.8)).max() < 0.03  # one fine pixel is 0.017


def test_every_concept_has_drawings_in_the_styles_it_claims(bank):
    for number, concept in enumerate(glyphs.CONCEPTS):
        styles = {style for c, style in bank.rows if c == number}
        assert styles, concept
        if concept.kind in ("digit", "upper", "lower"):
            assert styles == {STYLES.index("printed"), STYLES.index("handwritten")}
    inked = (bank.fields < 0.1 * banks.UNIT).mean((1, 2))
    assert (inked > 0).all()
    assert (inked < 0.9).all()


def test_all_fonts_exist_and_are_split():
    assert not set(banks.FONTS) & set(banks.HELD_OUT_FONTS)
    for font in banks.FONTS + banks.HELD_OUT_FONTS:
        assert banks.printed("a", font) is not None
    with pytest.raises(ValueError, match="no font 'Nothing'"):
        banks.printed("b", "Nothing")


def test_a_missing_glyph_is_no_drawing():
    assert banks.printed("∇", "cmr10") is None


# ------------------------------------------------------------------------------- images


def test_images_are_deterministic_and_cover_all_domains(world):
    one, rows = world.sample(np.random.default_rng(3), 400)
    two, again = world.sample(np.random.default_rng(3), 400)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(rows, again)
    assert set(rows[:, 3]) == set(range(len(glyphs.DOMAINS)))
    np.testing.assert_array_equal(rows[:, 1], KIND_OF[rows[:, 0]])
    other, _ = world.sample(np.random.default_rng(4), 400)
    assert (one != other).any((1, 2, 3)).all()


def test_every_image_shows_something(world):
    images, _ = world.sample(np.random.default_rng(5), 600)
    assert images.reshape(600, -1).std(1).min() > 2


def test_rendering_an_upright_disc_matches_its_area(bank, monkeypatch):
    number = next(i for i, c in enumerate(glyphs.CONCEPTS) if c.name == "circle")
    monkeypatch.setattr(render, "_normal", lambda rng, n, scale: np.zeros(n, np.float32))
    monkeypatch.setattr(render, "_slow", lambda rng, n: np.zeros((n, 32, 32), np.float32))
    monkeypatch.setattr(
        render, "_uniform", lambda rng, n, low, high: np.full(n, (low + high) / 2, np.float32)
    )
    drawn = STYLES.index("drawn")
    rows = np.array([[number, KIND_OF[number], drawn, 0, 1, 0]], np.int32)
    images = render.render(bank, bank.rows[number, drawn][:1], rows, np.random.default_rng(0))
    white, black = 245.0, 12.0
    share = (images[0, :, :, 0].mean() - black) / (white - black)
    radius = 0.95 * 0.71  # of the shape, times the middle of the range of scales
    assert abs(share - np.pi * radius**2 / 4) < 0.02


def test_the_coarse_domain_is_what_a_coarse_scanner_sees(bank):
    coarse = glyphs.World(bank, domains={"pixelated": 1.0})
    images, rows = coarse.sample(np.random.default_rng(0), 300, np.arange(300) % 10)
    white_on_black = (rows[:, 4] == 1) & (rows[:, 5] == 0)
    assert white_on_black.mean() > 0.5
    grey = images[white_on_black]
    assert (grey == grey[..., :1]).all()
    blocks = grey[..., 0].reshape(-1, 8, 4, 8, 4)
    nearest = (blocks == blocks[:, :, :1, :, :1]).all((1, 2, 3, 4))
    assert nearest.any()  # enlarged by repetition: 8 x 8 blocks of one level, one of 17
    levels = blocks[nearest][:, :, 0, :, 0].astype(float) / 255 * 16
    assert np.abs(levels - np.rint(levels)).max() < 0.04


def test_a_concept_without_drawing_is_refused():
    small = glyphs.World(glyphs.build(drawings=2, fonts=("DejaVuSans",), concepts=[3]))
    with pytest.raises(ValueError, match="no drawing of 'seven'"):
        small.sample(np.random.default_rng(0), 2, [3, 7])


# ------------------------------------------------------------------------------- captions


def test_a_caption_is_true_of_its_image_and_says_what_it_states(world):
    rng = np.random.default_rng(0)
    _, rows = world.sample(rng, 500)
    pairs = [glyphs.caption(row, rng) for row in rows]
    true = glyphs.true_of(np.stack([stated for _, stated in pairs]), rows)
    assert true.diagonal().all()
    assert true.mean() < 0.2
    for (text, stated), row in zip(pairs, rows, strict=True):
        if stated[0] >= 0:
            assert any(head in text for head in glyphs.CONCEPTS[row[0]].heads)
        if stated[2] >= 0:
            assert STYLES[row[2]] in text
        if stated[5] >= 0:
            assert f"{COLOUR_NAMES[row[5]]} background" in text


def test_true_of_is_false_for_another_concept_colour_or_domain():
    row = np.array([7, 0, 1, 2, 3, 4])
    stated = np.array([row, [7, 0, -1, -1, -1, -1], [-1, 0, -1, 2, -1, -1]])
    images = np.array([row, [7, 0, 1, 2, 3, 5], [8, 0, 1, 2, 3, 4], [7, 0, 1, 1, 3, 4]])
    expected = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 1, 0]]
    np.testing.assert_array_equal(glyphs.true_of(stated, images), np.array(expected, bool))


# ------------------------------------------------------------------------------- tokens


def test_captions_have_no_unknown_token_and_fit(world):
    tokenizer = vocabulary.build_tokenizer()
    unknown, end = (tokenizer.token_to_id(t) for t in (vocabulary.UNKNOWN, vocabulary.END))
    rng = np.random.default_rng(1)
    rows = np.array([[i, k, s, d, 4, 4] for i, k in enumerate(KIND_OF) for s in (0, 1)
                     for d in range(len(glyphs.DOMAINS))], np.int32)  # fmt: skip
    tokens = vocabulary.encode(tokenizer, [glyphs.caption(row, rng)[0] for row in rows])
    assert tokens.shape[1] == vocabulary.CONTEXT
    assert not (tokens == unknown).any()
    assert ((tokens == end).sum(1) == 1).all()


def test_unknown_words_fall_apart_into_characters(tmp_path):
    vocabulary.write_tokenizer(tmp_path)
    from jaxmerge.models import clip

    tokenizer = clip.load_tokenizer(tmp_path, vocabulary.CONTEXT)
    built = vocabulary.build_tokenizer()
    texts = ["a photo of an owl.", "the letter A", "the letter a", FRAMES[0].format("日")]
    np.testing.assert_array_equal(tokenizer(texts), vocabulary.encode(built, texts))
    assert built.encode("owl").tokens[1:4] == ["o", "##w", "##l"]
    assert (tokenizer(texts[1]) != tokenizer(texts[2])).any()


# ------------------------------------------------------------------------------- streams


def _same(one, two):
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(one, split).images, getattr(two, split).images)
        np.testing.assert_array_equal(getattr(one, split).labels, getattr(two, split).labels)


def test_class_incremental_deals_every_class_once():
    classes = list(range(8))
    tasks = glyphs.class_incremental(3, seed=1, sizes=(3, 2, 2), classes=classes)
    names = [name for task in tasks for name in task.class_names]
    assert sorted(names) == sorted(glyphs.class_phrase(c) for c in classes)
    assert [len(task.class_names) for task in tasks] == [3, 3, 2]
    again = glyphs.class_incremental(3, seed=1, sizes=(3, 2, 2), classes=classes)
    for one, two in zip(tasks, again, strict=True):
        _same(one, two)
    other = glyphs.class_incremental(3, seed=2, sizes=(3, 2, 2), classes=classes)
    assert [t.class_names for t in other] != [t.class_names for t in tasks]
    assert len(suites.by_kind("digit", "upper", "lower")) == 62


def test_domain_incremental_keeps_the_classes():
    tasks = glyphs.domain_incremental(sizes=(2, 1, 1), classes=[0, 1, 2])
    assert [task.name for task in tasks] == list(glyphs.DOMAINS)
    assert len({task.class_names for task in tasks}) == 1
    assert len({task.train.images.tobytes() for task in tasks}) == len(tasks)
    inverted = tasks[glyphs.DOMAINS.index("inverted")].train.images
    plain = tasks[glyphs.DOMAINS.index("plain")].train.images
    assert np.median(plain) > 180 > 70 > np.median(inverted)


def test_eight_tasks_have_eight_label_sets():
    tasks = glyphs.eight_tasks(sizes=(1, 1, 1))
    assert len(tasks) == 8
    names = [name for task in tasks for name in task.class_names]
    assert len(names) == len(set(names)) == len(glyphs.CONCEPTS)
    for task in tasks:
        assert len(task.train.images) == len(task.class_names)
        np.testing.assert_array_equal(task.train.labels, np.arange(len(task.class_names)))


def test_splits_share_no_image():
    task = glyphs.make_task("digits", range(10), sizes=(6, 3, 3))
    seen = [image.tobytes() for part in (task.train, task.validation, task.test)
            for image in part.images]  # fmt: skip
    assert len(seen) == len(set(seen)) == 120


def test_wrong_tasks_are_refused():
    with pytest.raises(ValueError, match="distinct concepts"):
        glyphs.make_task("twice", [3, 3])
    with pytest.raises(ValueError, match=r"unknown domains \['foggy'\]"):
        glyphs.make_task("fog", [3], domains={"foggy": 1.0})
    with pytest.raises(ValueError, match="found 11 tasks, expected 1 to 10"):
        glyphs.class_incremental(11, classes=range(10))


# ------------------------------------------------------------------------------- mini


@pytest.mark.skipif(
    not (Path(glyphs.__file__).parents[2] / "assets/mini/model.safetensors").exists(),
    reason="the weights of mini are not in this checkout",
)
def test_mini_reads_held_out_digits():
    from jaxmerge.models import clip

    folder = Path(glyphs.__file__).parents[2] / "assets/mini"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6
    model = clip.load(folder)
    task = glyphs.make_task("digits", range(10), sizes=(1, 1, 30))
    head = clip.zero_shot_head(model, task.class_names, ("a photo of {}.",))
    features = clip.image_features(
        model.config, model.params, clip.preprocess(task.test.images, model.config)
    )
    guess = np.argmax(np.asarray(features) @ np.asarray(head), 1)
    assert (guess == task.test.labels).mean() > 0.5
