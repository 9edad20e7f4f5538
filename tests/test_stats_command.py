"""`jaxmerge stats` on real sentences and pictures, on a small BERT and on mini; its errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge import statistics
from jaxmerge.cli import stats
from jaxmerge.errors import UserError
from jaxmerge.io.sources import open_source

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
