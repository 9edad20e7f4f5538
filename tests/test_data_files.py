"""Images in folders and in prepared data sets: layouts, splits, corrupt files, wrong input."""

import json
import pickle

import numpy as np
import pictures
import pytest

from jaxmerge.data.folders import folder
from jaxmerge.data.npz import npz
from jaxmerge.data.pictures import CorruptImage, skip_corrupt
from jaxmerge.data.splits import stratified
from jaxmerge.errors import UserError

sizes = lambda source: [len(source.splits[s]) for s in ("train", "val", "test")]


def test_a_folder_for_each_class(tmp_path):
    root = pictures.folder(tmp_path / "pets", {"dog": 10, "black_cat": 20})
    source = folder(root)
    assert (source.name, source.classes) == ("pets", ("black cat", "dog"))
    assert sizes(source) == [21, 3, 6]
    assert np.bincount(source.labels[source.splits["test"]]).tolist() == [4, 2]
    row = source.splits["train"][0]
    assert source.inputs.label(row).startswith("black_cat/")
    assert [p.size for p in source.inputs[[row]]] == [source.inputs.picture(row).size]
    assert np.array_equal(folder(root).splits["train"], source.splits["train"])
    assert sizes(folder(root, per_class=2)) == [4, 3, 4]
    assert pickle.loads(pickle.dumps(source.inputs))[[row]][0].mode == "RGB"


def test_published_splits_and_domains(tmp_path):
    counts = {f"{s}/{d}/{c}": 4 for s in ("train", "test") for d in "xy" for c in ("a", "b")}
    source = folder(
        pictures.folder(tmp_path, counts), layout="{split}/{domain}/{class}/*", val=0.25
    )
    assert sizes(source) == [12, 4, 16]
    assert source.domain_names == ("x", "y")
    assert len(source.rows("val", classes=[1], domain=0)) == 1
    assert source.inputs.label(source.splits["test"][0]).startswith("test/x/a/")
    for name in ("training", "validation", "test"):
        pictures.folder(tmp_path / "three", {f"{name}/a": 3, f"{name}/b": 3})
    assert sizes(folder(tmp_path / "three")) == [6, 6, 6]


def test_domains_in_file_names(tmp_path):
    root = pictures.folder(tmp_path, {"n1": 6, "n2": 6})
    for c in ("n1", "n2"):
        for k in range(6):
            (root / c / f"{k}.png").rename(root / c / f"{'art' if k % 2 else 'sketch'}_{k}.png")
    source = folder(root, layout="{class}/{domain}_*", test=0.34)
    assert source.domain_names == ("art", "sketch")
    assert sizes(source) == [4, 4, 4]


def test_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing: .*nothing is not there"):
        folder(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"holds no images \(.bmp"):
        folder(tmp_path)
    pictures.folder(tmp_path / "a", {"test/x": 2, "val/x": 2})
    with pytest.raises(ValueError, match="found the splits test, val; expected train"):
        folder(tmp_path / "a")
    root = pictures.folder(tmp_path / "b", {"x": 2, "y/z": 2})
    with pytest.raises(ValueError, match=r"2 of 4 images do not lie as .*: y/z/0.png, y/z/1.png"):
        folder(root)
    with pytest.raises(ValueError, match="did you mean split"):
        folder(root, layout="{spilt}/{class}/*")
    lonely = folder(pictures.folder(tmp_path / "d", {"x": 1, "y": 20}))
    assert np.bincount(lonely.labels[lonely.splits["train"]]).tolist() == [1, 14]


@pytest.fixture
def broken(tmp_path):
    """Twelve pictures, three of them corrupt in three ways."""
    root = pictures.folder(tmp_path, {"cat": 6, "dog": 6}, ending="jpg")
    pictures.break_file(root / "cat" / "1.jpg")
    (root / "dog" / "2.jpg").write_bytes(b"")
    (root / "dog" / "4.jpg").write_bytes(b"<html>not found</html>")
    return folder(root, "pets", test=0.34, val=0.3)


def test_a_corrupt_image_stops_whoever_reads_it_by_name(broken):
    with pytest.raises(CorruptImage) as error:
        broken.inputs[np.arange(12)]
    text = str(error.value)
    assert text.startswith("pets: 3 corrupt images: cat/1.jpg (image file is truncated")
    assert "dog/2.jpg (not an image), dog/4.jpg (not an image)" in text
    assert "corrupt=skip" in text
    assert len(broken.inputs[[0, 2, 3]]) == 3


def test_corrupt_images_are_left_out_when_told_to(broken):
    with pytest.warns(UserWarning, match="left out 3 corrupt images: cat/1.jpg"):
        readable = skip_corrupt(broken)
    rows = np.concatenate(list(readable.splits.values()))
    assert len(rows) == 9
    assert len(broken.inputs[rows]) == 9
    assert (
        skip_corrupt(readable.__class__(**{**vars(readable), "inputs": np.zeros(12)})).name
        == "pets"
    )


def test_corrupt_jpegs_of_a_numpy_file(tmp_path):
    import io

    def file(path, count, bad):
        encoded = []
        for k in range(count):
            out = io.BytesIO()
            pictures.picture(k % 2, k).save(out, "JPEG")
            encoded.append(np.frombuffer(b"nothing" if k == bad else out.getvalue(), "u1"))
        offsets = np.cumsum([0, *map(len, encoded)])
        labels = np.arange(count) % 2
        np.savez(
            path,
            jpeg=np.concatenate(encoded),
            offsets=offsets,
            labels=labels,
            class_names=["a", "b"],
        )

    file(tmp_path / "x_train.npz", 10, 3)
    file(tmp_path / "x_test.npz", 4, -1)
    source = npz(tmp_path, "x")
    with pytest.raises(CorruptImage, match=r"x: 1 corrupt image: image 3 \(not an image\)"):
        source.inputs[range(14)]
    with pytest.warns(UserWarning, match="image 3"):
        assert sizes(skip_corrupt(source))[2] == 4


def test_a_numpy_file_without_examples(tmp_path):
    for split, count in (("train", 0), ("test", 2)):
        images = np.zeros((count, 4, 4), np.uint8)
        labels = np.zeros(count, int)
        np.savez(tmp_path / f"x_{split}.npz", images=images, labels=labels, class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"x_train\.npz holds no examples"):
        npz(tmp_path, "x")


# ------------------------------------------------------------ tensorflow-datasets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Data sets that tensorflow-datasets prepared just now."""
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")
    root = tmp_path_factory.mktemp("tfds")
    pictures.prepare(root, "pets", ["a_cat", "dog"], {"train": 20, "test": 6})
    for config in ("sketch", "art"):
        pictures.prepare(root, "drawn", ["house", "tree"], {"train": 10, "test": 4}, config)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An own cache for labels."""
    monkeypatch.setenv("JAXMERGE_CACHE", str(tmp_path / "cache"))


def test_a_prepared_data_set_is_read_without_tensorflow(prepared):
    import sys

    from jaxmerge.data.tfds import tfds

    source = tfds(prepared, "pets")
    assert source.classes == ("a cat", "dog")
    assert sizes(source) == [18, 2, 6]
    assert np.bincount(source.labels).tolist() == [13, 13]
    test = source.splits["test"]
    # the colour tells the label, so pictures and labels belong together
    colours = np.array([np.asarray(p).mean((0, 1)) for p in source.inputs[np.arange(26)]])
    means = np.array([colours[source.labels == c].mean(0) for c in (0, 1)])
    nearest = np.abs(colours[:, None] - means).sum(-1).argmin(1)
    assert np.array_equal(nearest, source.labels)
    assert "of pets/1.0.0 test" in source.inputs.label(test[0])
    assert np.array_equal(tfds(prepared, "pets").labels, source.labels)  # from the cache
    assert (
        source.inputs[test[:2]][0].tobytes()
        == pickle.loads(pickle.dumps(source.inputs))[test[:2]][0].tobytes()
    )
    assert "tensorflow" not in sys.modules


def test_configurations_are_domains(prepared):
    from jaxmerge.data.tfds import tfds

    source = tfds(prepared, "drawn", configs=("sketch", "art"))
    assert source.domain_names == ("sketch", "art")
    assert [len(source.rows("test", domain=d)) for d in (0, 1)] == [4, 4]
    one = tfds(prepared, "drawn/art")
    assert one.domains is None
    assert sizes(one) == [8, 2, 4]


def test_data_sets_that_are_not_there(prepared, tmp_path):
    from jaxmerge.data.tfds import tfds

    line = r"cifar100 is not prepared in .*run: tfds build cifar100 --data_dir=\S+ --file_format"
    with pytest.raises(UserError, match=line):
        tfds(prepared, "cifar100")
    with pytest.raises(ValueError, match="no split 'training'; it has test, train"):
        tfds(prepared, "pets", splits={"train": "training"})
    with pytest.raises(ValueError, match="no feature colour; it has image, label"):
        tfds(prepared, "pets", label="colour")
    old = tmp_path / "pets" / "1.0.0"
    old.mkdir(parents=True)
    for file in (prepared / "pets" / "1.0.0").iterdir():
        (old / file.name).write_bytes(file.read_bytes())
    info = json.loads((old / "dataset_info.json").read_text())
    (old / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="is in the format tfrecord, without random access"):
        tfds(tmp_path, "pets")


def test_a_file_is_no_folder_of_images(tmp_path):
    (tmp_path / "texts.csv").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file, no folder of images"):
        folder(tmp_path / "texts.csv")


def test_labels_may_be_words_in_a_list():
    parts = stratified(["a", "b"] * 6, {"test": 2})
    assert {k: len(v) for k, v in parts.items()} == {"test": 4, "train": 8}


def test_a_folder_without_an_image_is_named(tmp_path):
    pictures.folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    (tmp_path / "pets" / "bird" / "young").mkdir(parents=True)
    (tmp_path / "pets" / ".cache").mkdir()
    with pytest.warns(UserWarning, match="pets: no image in bird: left out"):
        assert folder(tmp_path / "pets").classes == ("cat", "dog")


def test_corrupt_is_a_choice_of_two(tmp_path):
    pictures.folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    (tmp_path / "pets" / "cat" / "x.png").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="corrupt is one of stop, skip, got 'skp'"):
        folder(tmp_path / "pets", corrupt="skp")
    with pytest.warns(UserWarning, match="pets: left out 1 corrupt image: cat/x.png"):
        assert len(folder(tmp_path / "pets", corrupt="skip").splits["train"]) < 7
