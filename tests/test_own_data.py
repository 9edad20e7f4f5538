"""What a new user brings: folders of pictures, tables of texts, labels as they come."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from jaxmerge.data.folders import folder
from jaxmerge.data.sources import Source
from jaxmerge.data.splits import stratified
from jaxmerge.data.tables import table

ROWS = [(f"sentence {k} of {c}", c) for c in ("bad", "good", "so_so") for k in range(10)]


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    lines = [f'"{text}, really",{label},x' for text, label in ROWS]
    path.write_text("review,stars,more\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def pets(tmp_path):
    for kind in ("n02099601", "n02123045"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for k in range(10):
            picture = np.full((9, 8, 3), 10 * k, np.uint8)
            Image.fromarray(picture).save(tmp_path / "pets" / kind / f"{k}.png")
    return tmp_path / "pets"


def test_a_table_has_own_names_templates_and_splits(reviews):
    source = table(
        reviews, text="review", label="stars", classes={"so_so": "neither good nor bad"},
        templates=["the writer finds it {}"], val=0.2, test=0.2,
    )  # fmt: skip
    assert source.name == "reviews"
    assert source.classes == ("bad", "good", "neither good nor bad")
    assert source.templates == ("the writer finds it {}",)
    assert {s: len(rows) for s, rows in source.splits.items()} == {"train": 18, "val": 6, "test": 6}
    assert source.inputs[[0]] == ["sentence 0 of bad, really"]
    for split in source.splits.values():
        assert len(set(np.bincount(source.labels[split]))) == 1


def test_splits_are_a_column_or_files(tmp_path):
    rows = [
        {"text": t, "label": c, "part": "validation" if k % 5 == 0 else "training", "year": k % 2}
        for k, (t, c) in enumerate(ROWS)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = table(path, split="part", domain="year")
    assert len(source.splits["val"]) == 6
    assert source.domain_names == ("0", "1")
    (tmp_path / "b.tsv").write_text("label\ttext\nbad\tno\ngood\tyes\n")
    both = table({"train": path, "test": tmp_path / "b.tsv"}, val=0.1)
    assert both.splits["test"].tolist() == [30, 31]
    named = table({"Training": path, "dev": tmp_path / "b.tsv"})
    assert named.splits["val"].tolist() == [30, 31]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"text": "reviews"}, r"no column 'reviews'; it has the columns 'review', 'stars', 'more'"),
        ({"classes": ["a", "b"]}, "2 names for 3 classes; expected one each, in the order bad"),
        ({"classes": {"goood": "x"}}, "names 'goood', which is none of its classes"),
        ({"split": "more"}, r"found the splits x.*; expected train"),
    ],
)
def test_a_table_says_what_does_not_fit(reviews, given, message):
    with pytest.raises(ValueError, match=message):
        table(reviews, **{"text": "review", "label": "stars", **given})


def test_a_table_without_a_line(tmp_path):
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(ValueError, match=r"no column 'text', 'label'; it has no line\."):
        table(tmp_path / "a.csv")


def test_rows_without_text_are_named_by_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nfine,good\n,good\nfine,\n")
    with pytest.raises(ValueError, match="2 rows lack one of text, label, on lines 3, 4"):
        table(path)
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"'\.xlsx', expected one of \.csv"):
        table(tmp_path / "a.xlsx")
    (tmp_path / "b.csv").write_bytes(b"text,label\ncaf\xe9,good\n")
    with pytest.raises(ValueError, match="is not UTF-8"):
        table(tmp_path / "b.csv")


def test_a_folder_has_own_names(pets):
    assert folder(pets, classes=["dog", "cat"]).classes == ("dog", "cat")
    assert folder(pets, classes={"n02123045": "cat"}).classes == ("n02099601", "cat")
    with pytest.raises(ValueError, match="1 name for 2 classes"):
        folder(pets, classes=["dog"])


def own(labels, **more):
    given = {
        "name": "own", "inputs": np.zeros((8, 4)), "classes": ["cat", "dog"],
        "templates": "a photo of a {}.",
        "splits": stratified(np.zeros(8, int), {"val": 1, "test": 1}),
    }  # fmt: skip
    return Source(labels=labels, **{**given, **more})


@pytest.mark.parametrize(
    "labels", [[0, 1] * 4, np.array([0, 1] * 4, np.int64), ["cat", "dog"] * 4, [0.0, 1.0] * 4]
)
def test_labels_are_taken_as_they_come(labels):
    source = own(labels)
    assert source.labels.dtype == np.int32
    assert source.labels.tolist() == [0, 1] * 4
    assert source.templates == ("a photo of a {}.",)
    assert source.rows("train", classes=[1]).size


def test_texts_in_a_list_are_read_as_texts():
    source = own(["cat", "dog"] * 4, inputs=[f"text {k}" for k in range(8)])
    assert source.inputs[np.array([2, 0])] == ["text 2", "text 0"]


@pytest.mark.parametrize(
    "labels, message",
    [
        (["cat", "dgo"] * 4, "the label 'dgo' is none of the classes: did you mean dog"),
        ([0.5] * 8, "labels are float64, such as .*expected positions in classes, or their names"),
        (np.zeros((8, 2), int), r"labels have the shape \(8, 2\), expected one label an example"),
        ([0, 2] * 4, "labels from 0 to 2 for 2 classes"),
    ],
)
def test_labels_that_cannot_be_are_refused_in_one_line(labels, message):
    with pytest.raises(ValueError, match=message):
        own(labels)


@pytest.mark.parametrize(
    "shares, message",
    [
        ({"val": 0.9, "test": 0.2}, r"sum below 1; got val=0.9, test=0.2\.$"),
        ({"val": 2}, r"got val=2\.$"),
        ({"val": 1}, r"got val=1\.$"),
        ({"val": -0.1, "test": float("nan")}, r"got val=-0.1, test=nan\.$"),
        ({"test": "a"}, r"got test='a'\.$"),
        ({"val": None}, r"got val=None\.$"),
        ({"val": True}, r"got val=True\.$"),
    ],
)
@pytest.mark.parametrize("read", ["folder", "table"])
def test_shares_that_cannot_be_held_out_are_refused(read, shares, message, request):
    if read == "folder":
        reading = partial(folder, request.getfixturevalue("pets"))
    else:
        reading = partial(table, request.getfixturevalue("reviews"), text="review", label="stars")
    with pytest.raises(ValueError, match=message):
        reading(**shares)


def test_a_share_of_a_split_that_is_there_does_not_count(tmp_path):
    files = {}
    for split in ("train", "test"):
        files[split] = tmp_path / f"{split}.csv"
        files[split].write_text("text,label\n" + "".join(f"{t},{c}\n" for t, c in ROWS))
    assert len(table(files, val=0.8, test=0.9).splits["val"]) == 24
    assert not len(table(files, val=0).splits["val"])


def test_a_string_is_one_template(pets, reviews):
    assert folder(pets, templates="a drawing of a {}").templates == ("a drawing of a {}",)
    source = table(reviews, text="review", label="stars", templates="it is {}")
    assert source.templates == ("it is {}",)
    with pytest.raises(ValueError, match=r"the template 'a drawing' has no \{\}"):
        folder(pets, templates="a drawing")


def test_classes_of_one_name_are_refused_by_name(pets, reviews):
    with pytest.raises(ValueError, match="the classes 0, 1 are all named 'dog'"):
        folder(pets, classes={"n02099601": "dog", "n02123045": "dog"})
    with pytest.raises(ValueError, match="0, 2 are all named 'so so'; each needs its own name"):
        table(reviews, text="review", label="stars", classes={"bad": "so so"})
    with pytest.raises(ValueError, match=r"0, 2 are all named 'a'.*1, 3, 4 are all named 'b'"):
        Source("x", np.zeros(5), [0, 1, 2, 3, 4], ["a", "b", "a", "b", "b"], "{}",
               {"train": [0], "val": [1], "test": [2]})  # fmt: skip
