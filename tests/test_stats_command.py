"""`jaxmerge stats` on real sentences and pictures, on a small BERT and on mini; its errors."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxmerge as jm
from jaxmerge import statistics
from jaxmerge.cli import stats
from jaxmerge.cli.data import class_names, open_data
from jaxmerge.data.streams.scenario import class_incremental
from jaxmerge.data.tables import table
from jaxmerge.errors import UserError
from jaxmerge.io.sources import open_source
from jaxmerge.models import bert

SMALL = Path(__file__).parent / "golden" / "bert_small"
MINI = Path(jm.__file__).parent / "assets" / "mini"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small BERT with a vocabulary."""
    folder = tmp_path_factory.mktemp("bert")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(SMALL / name, folder)
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] please pay bill weather alarm joke a question about the"
    (folder / "vocab.txt").write_text("\n".join(words.split()))
    return folder


@pytest.fixture(scope="module")
def intents(tmp_path_factory):
    """Four intents in CLINC150's files."""
    folder = tmp_path_factory.mktemp("clinc150")
    names = ["pay_bill", "weather", "alarm", "joke"]
    texts = lambda k: [
        [f"{'please ' * (i % 3)}{n.replace('_', ' ')}", n] for i, n in enumerate(names * k)
    ]
    data = {"train": texts(4), "val": texts(1), "test": texts(1)}
    (folder / "data_full.json").write_text(json.dumps(data))
    (folder / "domains.json").write_text(json.dumps({"a": names[:2], "b": names[2:]}))
    return folder


@pytest.mark.parametrize("kind", ["gram", "fisher"])
def test_sentences_on_a_bert(kind, encoder, intents, tmp_path, capsys):
    out = tmp_path / "found.safetensors"
    stats.run(
        str(encoder), data=str(intents), kind=kind, variant="sampled", samples=8, batch=8, out=out
    )
    assert "8 examples of clinc150" in capsys.readouterr().out
    source = open_source(str(encoder))
    statistic = statistics.load(out, source)  # in the checkpoint's own names, for its own weights
    assert statistic.kind == kind
    name = next(n for n in statistic.values if n.endswith("intermediate.dense.weight"))
    shape = source[name].shape
    expected = (shape[1], shape[1]) if kind == "gram" else shape
    assert statistic.values[name].shape == expected
    assert np.abs(statistic.values[name]).max() > 0
    source.close()


def test_padding_is_no_data(encoder, intents, tmp_path):
    grams = []
    for batch in (1, 8):  # sentences alone and together, filled up to the same length
        out = tmp_path / f"{batch}.safetensors"
        stats.run(
            str(encoder), data=str(intents), kind="gram", samples=8, batch=batch, out=out, json=True
        )
        grams.append(statistics.load(out).values)
    for n, g in grams[0].items():
        np.testing.assert_allclose(g, grams[1][n], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_measured_is_refused(encoder, intents, tmp_path):
    out = tmp_path / "x.safetensors"
    measure = lambda ref, **how: stats.run(str(ref), **{"kind": "gram", "out": out, **how})
    with pytest.raises(UserError, match="expected digits, a folder of class folders"):
        measure(MINI, data=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="found model_type 'clip', expected bert"):
        measure(MINI, data=str(intents))
    with pytest.raises(ValueError, match="found model_type 'bert', expected clip"):
        measure(encoder, data="digits")
    with pytest.raises(UserError, match="a sentence encoder is whole"):
        measure(encoder, data=str(intents), base=str(MINI))
    with pytest.raises(UserError, match="did you mean"):
        measure(MINI, data="digits", kind="gramm")
    with pytest.raises(UserError, match="is a folder: name the file"):
        measure(MINI, data="digits", out=tmp_path)
    with pytest.raises(UserError, match="at least 1, got 0"):
        measure(MINI, data="digits", samples=0)
    assert not out.exists()


@pytest.fixture
def pictures(tmp_path):
    for kind in ("n01", "n02"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for k in range(5):
            Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(tmp_path / "pets" / kind / f"{k}.png")
    return tmp_path / "pets"


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    lines = [f"thing {k},{k % 2 + 1},{'test' if k < 4 else 'train'}" for k in range(20)]
    path.write_text("\n".join(["review,stars,fold", *lines]))
    return path


def test_what_is_said_of_data_reaches_its_reader(pictures, reviews, tmp_path):
    names = tmp_path / "names.yaml"
    names.write_text("n02: a dog\n")
    source = open_data(str(pictures), classes=names, templates=["a {}", "the {}"])
    assert source.classes == ("n01", "a dog")
    assert source.templates == ("a {}", "the {}")
    names.write_text('{"1": "bad", "2": "good"}')
    source = open_data(str(reviews), "review", "stars", "fold", names, "it is {}")
    assert source.classes == ("bad", "good")
    assert source.templates == ("it is {}",)
    assert source.splits["test"].tolist() == [0, 1, 2, 3]
    images, labels = np.zeros((8, 4, 4), np.uint8), np.arange(8) % 2
    for split in ("train", "test"):
        np.savez(tmp_path / f"x_{split}.npz", images=images, labels=labels, class_names=["a", "b"])
    assert open_data(f"{tmp_path}/x", classes={"b": "bird"}).classes == ("a", "bird")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"text": "review"}, "a folder of images: --text has no meaning there; what can be said of"
         " it is --classes, --templates"),
        ({"label": "a", "split": "b", "templates": "a {}"}, "--label, --split have no meaning"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_for_data_is_refused(pictures, given, message):
    with pytest.raises(UserError, match=message):
        open_data(str(pictures), **given)
    with pytest.raises(UserError, match=r"digits of scikit-learn: --.* no meaning there; leave it"):
        open_data("digits", **given)


@pytest.mark.parametrize("text", ["- 1\n- 2", "a: true", "just words", "", "a: [b]", "{}"])
def test_files_without_names_are_refused(text, tmp_path):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(UserError, match=r"names.yaml: .*(expected names of classes|is no text)"):
        class_names(tmp_path / "names.yaml")


class Reached(Exception):
    """The head is made, and the model was measured."""


def test_stats_cuts_long_class_names_where_it_is_asked(pictures, tmp_path, monkeypatch):
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["cat", "dog " * 40]))
    out = tmp_path / "gram.safetensors"
    how = {"data": str(pictures), "kind": "gram", "classes": names, "samples": 2, "out": out}
    with pytest.raises(ValueError, match=r"or add --truncate\.$"):
        stats.run(str(MINI), **how)
    monkeypatch.setattr(statistics, "gram", lambda *_, **__: None)
    monkeypatch.setattr(statistics, "in_layout", lambda *_: (_ for _ in ()).throw(Reached))
    with pytest.raises(Reached):
        stats.run(str(MINI), **how, truncate=True)


def test_the_lines_for_a_sentence_encoder_in_the_guide(encoder, tmp_path, monkeypatch):
    """As they stand, on a small BERT in the place of MiniLM."""
    guide = (Path(__file__).parents[1] / "docs" / "own-data.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```py\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    rows = [f"a question about the {c},{c}" for c in ("weather", "alarm") for _ in range(10)]
    (tmp_path / "weather.csv").write_text("\n".join(["text,label", *rows]))
    monkeypatch.chdir(tmp_path)
    small = bert.load(str(encoder))
    monkeypatch.setattr(bert, "load", lambda name: small)
    names = {"table": table, "class_incremental": class_incremental}
    exec(lines, names)
    assert names["learner"].head.shape[1] == 2
