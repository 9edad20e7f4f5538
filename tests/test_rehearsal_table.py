"""experiments/rehearsal.py: what it refuses in one line, before anything is read or run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The command, with words of a command line."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import rehearsal

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["rehearsal.py", f"data={tmp_path}", *words])
        rehearsal.main()

    return run


def test_unknown_methods(main, tmp_path):
    with pytest.raises(SystemExit, match=r"no method 'OnPru': did you mean OnPro\?; no method 'x'"):
        main("methods=OnPru,ER,x", f"out={tmp_path / 'new.json'}")
    assert not list(tmp_path.iterdir())


def test_a_file_of_other_settings(main, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [], "images": 1000, "seeds": [0]}))
    words = "has images=1000, asked for 2000: give another out="
    with pytest.raises(SystemExit, match=rf"has seeds=.0., asked for .0, 1.: .*; .*{words}"):
        main("images=2000", "seeds=2", f"out={path}")


def test_unknown_streams(main):
    with pytest.raises(SystemExit, match=r"stream=clinc: did you mean clinc150\?"):
        main("stream=clinc")


def test_a_file_of_another_stream(main, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [], "images": 5000, "seeds": [0]}))
    with pytest.raises(SystemExit, match=r"has stream=mnist, asked for fashion: give another out="):
        main("stream=fashion", "seeds=1", f"out={path}")


def test_stored_rows_have_the_settings_of_the_script(main):
    import rehearsal
    from rehearsal_streams import Case, mlp, shifted

    stored = json.loads((EXPERIMENTS / "results" / "rehearsal.json").read_text())
    data = {"train": (None, np.zeros(stored["images"], np.int32))}
    case = Case(data, lambda names: mlp(), shifted, tuple("0123456789"), 5, 200, 13)
    case = case._replace(language=lambda: np.eye(10))
    every = {*rehearsal.methods(case), *rehearsal.LANGUAGE}
    rows = [r for r in stored["rows"] if r["method"] in every]
    assert rows
    for r in rows:
        assert r["setting"] == rehearsal.made(case, r["method"], 0.1)[1]
    assert {*every, *rehearsal.FROZEN, *rehearsal.TEACHERS, "joint", "start"} == set(rehearsal.ROWS)


def test_a_start_from_names_classifies_by_cosine(main):
    from rehearsal_streams import named

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(7, 64))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    model = named(rows).build()
    params = model.init(None)
    small = 1e-2 * rng.normal(size=(20, 64)).astype(np.float32)  # tanh is the identity there
    logits = model.apply(params, small, 0).logits
    np.testing.assert_allclose(logits, 20 / 8 * small @ rows.T, rtol=2e-3, atol=1e-5)


def test_the_page_has_the_tables_of_labels_that_grow_finer(main):
    import rehearsal_page

    of = lambda a: {k: [a, a] for k in ("last model", *rehearsal_page.MERGED)}
    row = {"method": "ER", "accuracy": of(0.5), "A_AUC": [0.4, 0.4], "processor_seconds": 1}
    row["expansion"] = {"groups": of(0.75), "classes": {**of(0.25), "EMA": [0.5, 0.25]}}
    report = {
        "rows": [row],
        "command": "python x.py",
        "seeds": [0, 1],
        "tried": {"0.1": 0.3, "1": 0},
    }
    text = rehearsal_page.table(report)
    assert (
        "| ER | 75.0 ± 0.0 / 25.0 ± 0.0 | 75.0 ± 0.0 / 25.0 ± 0.0 | 75.0 ± 0.0 / 37.5 ± 17.7 |"
        in text
    )
    assert "0.1: 30.0, 1: 0.0." in text
    plain = rehearsal_page.table({**report, "rows": [row], "tried": {}})
    assert "Rate of plain SGD" not in plain


def test_the_page_says_what_was_chosen(main):
    import rehearsal_page

    tried = {"mean": {"0.7": 0.1, "1.0": 0.2}, "EMA": {"0.1": 0, "0.2": 1, "0.5": 0}}
    row = {"method": "ER", "merges": {"mean": 1.0, "EMA": 0.2, "OPCM": 1.0}}
    row["validation"] = tried | {"MagMax": {"1.0": 0}, "OPCM": {"1.0": 0.5}}
    text = rehearsal_page.settings([row])
    assert "| Method | mean | EMA |" in text
    assert "| ER | **1** | 0.2 |" in text


def test_the_page_says_where_merging_helps(main):
    import rehearsal_page

    def of(last, **merges):
        return {"last model": [last, last]} | {k: [last + x for x in d] for k, d in merges.items()}

    up, mixed, none = (0.25, 0.125), (0.25, -0.125), (np.nan, np.nan)
    streams = {
        "mnist": {"ER": of(0.5, EMA=up, MagMax=mixed, mean=(-0.1, -0.2)), "joint": of(0.75)},
        "gtsrb": {"SLCA": of(0.25, EMA=mixed, MagMax=none)},
    }
    text = rehearsal_page.merging(streams)
    assert "| ER | **+18.8** / +6.2 | – / – |" in text
    assert "| SLCA | – / – | +6.2 / – |" in text
    assert "joint" not in text
    assert "in the 1 cells" in text  # SLCA replays no example
    assert "| EMA | 1 | 0 | 0 |" in text
    assert "| MagMax | 0 | 0 | 1 |" in text
    assert "| mean | 0 | 1 | 0 |" in text


def test_a_finished_file_of_the_same_settings_is_left_as_it_is(main, tmp_path):
    names = [f"{tmp_path}/digits_{part}.npz" for part in ("train", "test")]
    for name in names:
        np.savez(name, images=np.zeros((4, 28, 28), np.uint8), labels=np.arange(4))
    path = tmp_path / "rows.json"
    text = json.dumps({"rows": [{"method": "ER"}], "images": 4, "seeds": [0]})
    path.write_text(text)
    main("images=4", "seeds=1", "methods=ER", f"out={path}")
    assert path.read_text() == text


@pytest.mark.parametrize(
    "method, message", [("ER", "images=4: No .*4, 5"), ("LwF", "mnist has no rows of LwF")]
)
def test_rows_that_cannot_be(method, message, main, tmp_path):
    for part in ("train", "test"):
        images = np.zeros((4, 28, 28), np.uint8)
        np.savez(tmp_path / f"digits_{part}.npz", images=images, labels=np.arange(4))
    out = tmp_path / "rows.json"
    with pytest.raises(SystemExit, match=message):
        main("images=4", "seeds=1", f"methods={method}", f"out={out}")
    assert not out.exists()


def test_classes_that_tasks_do_not_divide(main):
    import rehearsal
    from rehearsal_streams import Case

    case = Case({}, None, None, tuple("abcdefghijk"), 3, 1, 1)
    dealt = rehearsal.tasks_of(case, np.arange(11)[::-1])
    assert dealt == [[10, 9, 8, 7], [6, 5, 4, 3], [2, 1, 0]]
