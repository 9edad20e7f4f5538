"""The host pipeline: one order for all, read ahead, resumed anywhere, corrupt images named."""

import numpy as np
import pictures
import pytest

from jaxmerge.data.folders import folder
from jaxmerge.data.pictures import CorruptImage
from jaxmerge.data.pipeline import Examples, Order, examples, read
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.errors import UserError
from jaxmerge.evaluation import predict
from jaxmerge.models.clip import Preprocess
from jaxmerge.training.fit import Chunks, Training, fit
from jaxmerge.training.learner import from_clip

PREPARE = Preprocess(16)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    from jaxmerge.models import clip

    return clip.load(pictures.clip_folder(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def source(tmp_path):
    return folder(pictures.folder(tmp_path, {"cat": 14, "dog": 14}, ending="jpg"), "pets")


@pytest.fixture
def lazy(source):
    return Examples([(source.inputs, source.splits[s]) for s in ("test", "train")], PREPARE)


def test_an_order_goes_on_at_any_batch():
    order = Order(10, 4, 9, (3, 1))
    flat = np.concatenate(list(order))
    epochs = [np.random.default_rng((3, 1, e)).permutation(10) for e in range(4)]
    assert flat.tolist() == np.concatenate(epochs)[:36].tolist()
    assert [o.tolist() for o in order[5:7]] == [flat[20:24].tolist(), flat[24:28].tolist()]
    assert set(Order(3, 8, 1, (0,))[0].tolist()) == {0, 1, 2}  # fewer examples than a batch
    with pytest.raises(IndexError):
        order[9]


def test_chunks_of_steps_are_filled_up():
    chunks = Chunks(10, Training(epochs=1, batch=4, chunk=4, accumulate=2), (0,))
    assert len(chunks) == 1
    assert chunks[0].shape == (4, 2, 2)
    assert np.array_equal(chunks[0][2], chunks[0][1])  # two steps only
    assert np.array_equal(chunks[0][3], chunks[0][1])


def test_examples_are_those_of_an_array(source, lazy):
    whole = np.concatenate([PREPARE(source.inputs[source.splits[s]]) for s in ("test", "train")])
    assert len(lazy) == len(whole) == 26
    rows = np.array([[3, 25], [0, 3]])
    np.testing.assert_array_equal(lazy[rows], whole[rows])
    np.testing.assert_array_equal(lazy[4:7], whole[4:7])
    np.testing.assert_array_equal(examples(lazy.parts, PREPARE), whole)
    assert isinstance(examples(lazy.parts, PREPARE, room=1000), Examples)
    arrays = [(np.arange(10.0), np.array([4, 2])), (np.arange(3.0), np.array([], int))]
    assert examples(arrays, np.asarray).tolist() == [4, 2]
    assert len(examples([arrays[1]], np.asarray)) == 0


def test_what_is_read_does_not_depend_on_who_reads_it(lazy):
    order = Order(26, 4, 8, (0,))
    expected = [2 * lazy[rows] for rows in order]
    for inputs in (lazy[:26], lazy):
        actual = list(read(inputs, order, lambda x: 2 * x, workers=0))
        assert len(actual) == 8
        assert all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))
        (last,) = read(inputs, order, lambda x: 2 * x, first=7, workers=0)
        assert np.array_equal(last, expected[7])
    placed = read(lazy, order, place=lambda x: ("there", x), workers=0)
    assert next(placed)[0] == "there"
    placed.close()


def test_a_corrupt_image_in_the_middle_stops_the_reading(source, lazy):
    path = source.inputs.root / source.inputs.paths[source.splits["train"][5]]
    pictures.break_file(path)
    order = Order(26, 4, 6, (0,))
    with pytest.raises(
        CorruptImage, match=f"pets: 1 corrupt image: {path.parent.name}/{path.name}"
    ):
        list(read(lazy, order, workers=0, place=np.asarray))


def test_without_grain_the_line_says_what_to_install(lazy, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
    with pytest.raises(UserError, match=r"pip install 'jaxmerge\[data\]'"):
        next(read(lazy, [np.arange(3)]))
    assert next(read(lazy[:3], [np.arange(3)])).shape == (3, 16, 16, 3)


@pytest.mark.slow
def test_worker_processes_read_the_same(source, lazy):
    order = Order(26, 4, 6, (0,))
    actual = list(read(lazy, order, workers=2))
    assert all(np.array_equal(x, lazy[rows]) for x, rows in zip(actual, order, strict=True))
    pictures.break_file(source.inputs.root / source.inputs.paths[0])
    with pytest.raises(CorruptImage, match=r"pets: 1 corrupt image: cat/0.jpg"):
        list(read(lazy, order, workers=2))


def test_training_and_evaluation_of_examples_that_do_not_fit_into_memory(tiny_clip, source):
    scenario = class_incremental(source, 1)
    learner = from_clip(tiny_clip, scenario)
    task = scenario[0]
    lazy = Examples([(source.inputs, task.rows["train"])], learner.prepare)
    training = Training(epochs=2, batch=4, chunk=2)
    own = scenario.mask(0)
    one, two = (
        fit(learner, learner.params, inputs, task.labels("train"), own, training)
        for inputs in (lazy, lazy[: len(lazy)])
    )
    assert one[1] == two[1]
    assert len(one[1]) == 10
    whole_probe = predict.probe(learner, scenario, "test", batch=4)
    streamed = whole_probe._replace(
        chunks=predict.Batches(
            Examples([(source.inputs, task.rows["test"])], learner.prepare),
            [np.resize(np.arange(6), 8)[:4], np.resize(np.arange(6), 8)[4:]],
            learner.collate,
            np.asarray,
        )
    )
    params = [one[0]]
    np.testing.assert_array_equal(
        predict.logits(learner, params, whole_probe), predict.logits(learner, params, streamed)
    )
    assert len(streamed.upto(1).chunks) == 2
