"""Sources and splits: fixed, stratified, disjoint, and strict about what they are given."""

import dataclasses

import numpy as np
import pytest

from jaxmerge.data.digits import TEST, VAL, digits
from jaxmerge.data.sources import Source
from jaxmerge.data.splits import few, stratified


def test_digits_are_split_by_class_and_the_split_never_changes():
    source = digits()
    for split, count in (("val", VAL), ("test", TEST)):
        labels = source.labels[source.splits[split]]
        assert np.bincount(labels).tolist() == [count] * 10
    every = np.concatenate(list(source.splits.values()))
    assert sorted(every.tolist()) == list(range(1797))
    assert source.inputs.dtype == np.uint8
    assert source.inputs.max() == 255
    # a golden fact: figures of old runs stay comparable
    assert source.splits["test"][:6].tolist() == [0, 1, 6, 9, 15, 25]


def test_rows_by_class():
    source = digits()
    rows = source.rows("train", classes=(3, 8))
    assert set(source.labels[rows].tolist()) == {3, 8}
    assert len(rows) == len(source.rows("train", [3])) + len(source.rows("train", [8]))
    with pytest.raises(ValueError, match="no domains"):
        source.rows("train", domain=0)


def test_splits_by_share_and_by_count():
    labels = np.repeat([0, 1, 2], [10, 20, 40])
    actual = stratified(labels, {"val": 2, "test": 0.25}, seed=1)
    assert np.bincount(labels[actual["val"]]).tolist() == [2, 2, 2]
    assert np.bincount(labels[actual["test"]]).tolist() == [2, 5, 10]
    assert np.bincount(labels[actual["train"]]).tolist() == [6, 13, 28]
    again = stratified(labels, {"val": 2, "test": 0.25}, seed=1)
    assert all(np.array_equal(actual[s], again[s]) for s in actual)
    other = stratified(labels, {"val": 2, "test": 0.25}, seed=2)
    assert not np.array_equal(actual["train"], other["train"])


def test_a_class_without_training_examples_is_refused_by_name():
    with pytest.raises(ValueError, match="class 1 has 2 examples"):
        stratified(np.array([0] * 9 + [1] * 2), {"val": 1, "test": 1})


def test_few_examples_of_every_class():
    subset = few(digits(), {"train": 3, "test": 200})
    assert np.bincount(subset.labels[subset.splits["train"]]).tolist() == [3] * 10
    assert len(subset.splits["test"]) == 10 * TEST
    with pytest.raises(ValueError, match=r"no split 'trian': did you mean train.*val .* got 0"):
        few(digits(), {"trian": 3, "val": 0})


def test_a_source_names_everything_that_is_wrong_at_once():
    good = digits()
    with pytest.raises(ValueError) as error:
        dataclasses.replace(
            good,
            labels=good.labels[:-1],
            classes=good.classes[:9],
            templates=("a digit",),
            splits={**good.splits, "val": good.splits["test"]},
        )
    text = str(error.value)
    for part in ("1797 inputs for 1796 labels", "9 classes", "has no {}", "share rows"):
        assert part in text
    with pytest.raises(ValueError, match="no split val, test"):
        Source("x", np.zeros(2), np.zeros(2, np.int32), ("a",), ("{}",), {"train": np.arange(2)})
