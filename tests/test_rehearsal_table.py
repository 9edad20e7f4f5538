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


def test_a_finished_file_of_the_same_settings_is_left_as_it_is(main, tmp_path):
    names = [f"{tmp_path}/digits_{part}.npz" for part in ("train", "test")]
    for name in names:
        np.savez(name, images=np.zeros((4, 28, 28), np.uint8), labels=np.arange(4))
    path = tmp_path / "rows.json"
    text = json.dumps({"rows": [{"method": "ER"}], "images": 4, "seeds": [0]})
    path.write_text(text)
    main("images=4", "seeds=1", "methods=ER", f"out={path}")
    assert path.read_text() == text
