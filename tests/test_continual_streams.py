"""Scenario builders, and the file readers they are used with."""

import dataclasses
import io
import json

import clouds
import numpy as np
import pytest
from PIL import Image

from jaxmerge.data.npz import npz
from jaxmerge.data.sources import Source, Texts
from jaxmerge.data.splits import stratified
from jaxmerge.data.streams import builders
from jaxmerge.data.text import banking77, clinc150, sentences
from jaxmerge.evaluation import predict
from jaxmerge.report.streams import draw


def small_source(name="dots", classes=4, domains=None, count=20):
    labels = np.repeat(np.arange(classes), count).astype(np.int32)
    where = None if domains is None else np.tile(np.arange(domains), len(labels) // domains)
    splits = stratified(labels, {"val": 4, "test": 4})
    return Source(
        name, np.arange(len(labels))[:, None], labels, tuple(f"{name} {c}" for c in range(classes)),
        ("{}",), splits, where, tuple(f"domain {d}" for d in range(domains or 0)),
    )  # fmt: skip


def test_domains_arrive_one_by_one_with_all_classes():
    source = small_source(domains=2)
    scenario = builders.domain_incremental(source, order=(1, 0))
    assert [t.name for t in scenario] == ["domain 1", "domain 0"]
    for t, d in enumerate((1, 0)):
        assert set(source.domains[scenario[t].rows["train"]]) == {d}
        assert scenario[t].classes == (0, 1, 2, 3)
        assert scenario.mask(t).all()
    with pytest.raises(ValueError, match="has no domains"):
        builders.domain_incremental(small_source())
    with pytest.raises(ValueError, match="order of domains"):
        builders.domain_incremental(source, order=(1, 1))


def test_shares_of_the_data_are_disjoint_and_balanced():
    source = small_source()
    scenario = builders.data_incremental(source, 3, seed=1)
    rows = [t.rows["train"] for t in scenario]
    assert sorted(np.concatenate(rows).tolist()) == sorted(source.splits["train"].tolist())
    assert [np.bincount(source.labels[r]).tolist() for r in rows] == [[4] * 4] * 3
    assert all(np.array_equal(t.rows["test"], source.splits["test"]) for t in scenario)
    with pytest.raises(ValueError, match=r"fewer than 13 training examples of dots 0 \(12\)"):
        builders.data_incremental(source, 13)


def test_recurring_classes_come_back():
    scenario = builders.recurring(small_source(), tasks=30, classes=2, seed=0)
    seen = [c for t in scenario for c in t.classes]
    assert len(scenario) == 30
    assert all(len(set(t.classes)) == 2 for t in scenario)
    assert np.bincount(seen, minlength=4).min() > 1
    data = scenario.split("test")  # what tasks share is prepared once
    distinct = np.unique(np.concatenate([t.rows["test"] for t in scenario]))
    assert len(data.inputs) == len(data.columns) == len(distinct)
    assert len(distinct) < len(data.index) == sum(len(t.rows["test"]) for t in scenario)
    for k, task in enumerate(scenario):
        assert data.columns[data.index[data.task == k]].tolist() == task.labels("test").tolist()
    again = builders.recurring(small_source(), tasks=30, classes=2, seed=0)
    assert [t.classes for t in again] == [t.classes for t in scenario]
    with pytest.raises(ValueError, match="1 to 4 a task"):
        builders.recurring(small_source(), tasks=3, classes=5)


def test_accuracies_on_tasks_that_share_examples():
    scenario = builders.recurring(clouds.source(), tasks=5, classes=2, seed=1)
    learner = clouds.learner()
    data = predict.probe(learner, scenario, "test", batch=16)
    actual = predict.logits_of(learner, learner.params, data)
    free, _ = predict.accuracies(actual[None], data)
    for t, task in enumerate(scenario):
        guess = learner.logits(learner.params, task.source.inputs[task.rows["test"]]).argmax(-1)
        assert free[0, t] == pytest.approx(np.mean(np.asarray(guess) == task.labels("test")))
    few = data.upto(2)
    assert np.array_equal(predict.logits_of(learner, learner.params, few), actual[: len(few.task)])


@pytest.mark.parametrize("differ", ["head", "all", "none", "late"])
def test_models_that_share_leaves_pass_together(differ, monkeypatch):
    """Those in which the leaves that the first two share are the same, where any differ."""
    scenario = builders.recurring(clouds.source(), tasks=5, classes=2, seed=1)
    learner = clouds.learner()
    data = predict.probe(learner, scenario, "test", batch=16)
    names = sorted(learner.params)
    moved = {"head": names[-1:], "all": names, "none": [], "late": names[-1:]}[differ]
    models = [
        {n: p + (0.1 * k if n in moved else 0) for n, p in learner.params.items()} for k in range(3)
    ]
    if differ == "late":
        models.insert(2, {n: p + 0.5 for n, p in learner.params.items()})
    alone, calls = predict.logits_of, []
    expected = np.stack([alone(learner, m, data) for m in models])
    monkeypatch.setattr(predict, "logits_of", lambda *a: calls.append(1) or alone(*a))
    actual = predict.logits(learner, iter(models), data)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == {"head": 0, "all": 3, "none": 3, "late": 1}[differ]


def test_task_incremental_learning_tells_the_task():
    scenario = builders.task_incremental(small_source(), 2)
    assert [t.classes for t in scenario] == [(0, 1), (2, 3)]
    assert str(scenario).startswith("task-incremental, 2 tasks of 2 classes, dots: 2 tasks, 4 cla")
    assert "read the task-aware figures" in str(scenario)
    with pytest.raises(ValueError, match="between 1 and 4 tasks; got 5"):
        builders.task_incremental(small_source(), 5)
    with pytest.raises(ValueError, match="at least one task, got 0"):
        builders.data_incremental(small_source(), 0)


def test_streams_are_drawn(tmp_path):
    one = small_source()
    texts = Source(
        "words", Texts([f"word {k}" for k in range(80)]), one.labels, one.classes, ("{}",),
        one.splits,
    )  # fmt: skip
    pictures = dataclasses.replace(small_source(), inputs=np.zeros((80, 4, 4), np.uint8))
    for name, source in (("numbers", small_source()), ("texts", texts), ("pictures", pictures)):
        path = tmp_path / f"{name}.png"
        draw(builders.recurring(source, tasks=22, classes=2), path, examples=2)
        with Image.open(path) as drawn:
            assert drawn.size[1] > drawn.size[0] > 300  # twenty rows


def test_a_suite_puts_heads_side_by_side_whatever_the_order():
    sources = [small_source("a", 3), small_source("b", 2), small_source("c", 4)]
    scenario = builders.suite(sources, order=(2, 0, 1))
    assert scenario.classes[:4] == ("a 0", "a 1", "a 2", "b 0")
    assert [t.columns.tolist() for t in scenario] == [[5, 6, 7, 8], [0, 1, 2], [3, 4]]
    data = scenario.split("test")
    assert set(data.columns[data.task == 0].tolist()) == {5, 6, 7, 8}
    assert set(data.columns[data.task == 2].tolist()) == {3, 4}
    with pytest.raises(ValueError, match="different names"):
        builders.suite([sources[0], sources[0]])


# ------------------------------------------------------------ files


def jpeg(colour):
    file = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


def write(folder, jpegs, extra=None):
    for split, count in (("train", 12), ("test", 4)):
        labels = np.arange(count) % 2
        arrays = {"labels": labels.astype(np.uint8), "class_names": np.array(["red", "blue"])}
        if jpegs:
            files = [jpeg(("red", "blue")[c]) for c in labels]
            arrays["jpeg"] = np.concatenate(files)
            arrays["offsets"] = np.cumsum([0, *(len(f) for f in files)])
        else:
            arrays["images"] = (labels * 200).astype(np.uint8)[:, None, None] + np.zeros(
                (7, 9), np.uint8
            )
        np.savez(folder / f"ink_{split}.npz", **arrays, **(extra or {}))


@pytest.mark.parametrize("jpegs", [False, True])
def test_npz_in_both_forms(tmp_path, jpegs):
    write(tmp_path, jpegs)
    source = npz(tmp_path, "ink", val=0.34, classes=("scarlet", "navy"))
    assert source.classes == ("scarlet", "navy")
    assert {s: len(r) for s, r in source.splits.items()} == {"train": 8, "val": 4, "test": 4}
    assert source.splits["test"].tolist() == [12, 13, 14, 15]
    assert np.bincount(source.labels[source.splits["val"]]).tolist() == [2, 2]
    batch = source.inputs[np.array([0, 13])]
    if jpegs:
        red, blue = (np.asarray(p).mean((0, 1)) for p in batch)
        assert red[0] > 200 > 100 > red[2]
        assert blue[2] > 200 > 100 > blue[0]
    else:
        assert batch[0].max() == 0
        assert batch[1].min() == 200
    few = npz(tmp_path, "ink", per_class=2, val=0.5)
    assert {s: len(r) for s, r in few.splits.items()} == {"train": 2, "val": 2, "test": 4}


def test_npz_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ink_train\.npz and no .*ink_test\.npz"):
        npz(tmp_path, "ink")
    write(tmp_path, True)
    data = dict(np.load(tmp_path / "ink_train.npz"))
    start = data["offsets"][3]
    data["jpeg"][start : start + 200] = 0
    np.savez(tmp_path / "ink_train.npz", **data)
    source = npz(tmp_path, "ink")
    with pytest.raises(ValueError, match="ink: 1 corrupt image: image 3"):
        source.inputs[np.arange(6)]
    with pytest.raises(ValueError, match="1 name for 2 classes"):
        npz(tmp_path, "ink", classes=("one",))
    del data["labels"]
    np.savez(tmp_path / "ink_train.npz", **data)
    with pytest.raises(ValueError, match="lacks labels"):
        npz(tmp_path, "ink")


def test_clinc150_keeps_its_official_splits(tmp_path):
    (tmp_path / "domains.json").write_text(json.dumps({"x": ["pay_bill", "pto"], "y": ["oil"]}))
    data = {
        "train": [["a", "oil"], ["b", "pay_bill"], ["c", "pto"]],
        "val": [["d", "pto"]], "test": [["e", "oil"]], "oos_train": [["f", "oos"]],
    }  # fmt: skip
    (tmp_path / "data_full.json").write_text(json.dumps(data))
    source = clinc150(tmp_path)
    assert source.classes == ("pay bill", "pto", "oil")
    assert source.labels.tolist() == [2, 0, 1, 1, 2]
    assert source.inputs[source.splits["test"]] == ["e"]


def test_banking77_reads_quoted_newlines(tmp_path):
    lines = [f'"text {i}\nmore",{c}' for i in range(10) for c in ("zed_card", "age?")]
    (tmp_path / "train.csv").write_text("text,category\n" + "\n".join(lines) + "\n")
    (tmp_path / "test.csv").write_text("text,category\nhello,age?\n")
    source = banking77(tmp_path)
    assert source.classes == ("age", "zed card")
    assert {s: len(r) for s, r in source.splits.items()} == {"train": 18, "val": 2, "test": 1}
    assert source.inputs[[0]] == ["text 0\nmore"]


def test_sentences_with_and_without_official_splits(tmp_path):
    (tmp_path / "custrev.all").write_bytes(
        b"".join(f"{i % 2} caf\xe9 {i}\n".encode("latin-1") for i in range(40))
    )
    source = sentences(tmp_path, "cr")
    assert {s: len(r) for s, r in source.splits.items()} == {"train": 32, "test": 4, "val": 4}
    assert source.inputs[[1]] == ["café 1"]
    (tmp_path / "TREC.train").write_text(
        "".join(f"HUM:ind who {i}\nNUM:date when\n" for i in range(9))
    )
    (tmp_path / "TREC.test").write_text("LOC:city where\n")
    trec = sentences(tmp_path, "trec")
    assert trec.classes[trec.labels[trec.splits["test"][0]]] == "place"
    with pytest.raises(ValueError, match="No set is named 'imdb': expected one of cr, mpqa"):
        sentences(tmp_path, "imdb")


def test_text_files_say_what_is_wrong(tmp_path):
    for read, missing in (
        (lambda: clinc150(tmp_path), r"clinc150: no .*data_full\.json and no .*domains\.json"),
        (lambda: banking77(tmp_path), r"banking77: no .*train\.csv and no .*test\.csv"),
        (lambda: sentences(tmp_path, "trec"), r"trec: no .*TREC\.train and no .*TREC\.test"),
    ):
        with pytest.raises(FileNotFoundError, match=missing):
            read()
    (tmp_path / "domains.json").write_text(json.dumps({"x": ["pto"]}))
    for text, message in (
        ("<html>", r"data_full\.json is not JSON"),
        ('{"train": []}', "data_full.json lacks val, test; it holds train"),
        ('{"train": [["a", "oil"]], "val": [], "test": []}', "1 unknown labels, such as 'oil'"),
    ):
        (tmp_path / "data_full.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            clinc150(tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("sentence,category\na,b\n")
    with pytest.raises(ValueError, match=r"expected the columns text, category; found .*sentence"):
        banking77(tmp_path)
    (tmp_path / "custrev.all").write_text("2 good\n")
    with pytest.raises(ValueError, match="unknown labels, such as '2'; expected 0, 1"):
        sentences(tmp_path, "cr")


def test_the_published_files(shared):
    folder = shared / "data"
    source = clinc150(folder / "clinc150")
    assert [len(source.splits[s]) for s in ("train", "val", "test")] == [15000, 3000, 4500]
    scenario = builders.class_incremental(source, 10)
    assert [len(t.rows["train"]) for t in scenario] == [1500] * 10
    assert len(banking77(folder / "banking77").classes) == 77
    pacs = npz(folder / "pacs", "pacs", per_class=5)
    assert len(builders.domain_incremental(pacs)) == 4
