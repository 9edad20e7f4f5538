"""The scripts of experiments/bench: they say what they do, and write where they are told to."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
BENCH = EXPERIMENTS / "bench"
SCRIPTS = sorted(p.name for p in BENCH.glob("*.py") if "__main__" in p.read_text())


@pytest.fixture
def call(monkeypatch):
    """Runs a script in this process; returns its exit code."""
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])

    def run(script: str, *words: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(BENCH / script), *words])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(BENCH / script), run_name="__main__")
        return end.value.code or 0

    return run


def written() -> dict[Path, int]:
    """When every file of the experiments was last written."""
    files = (p for p in EXPERIMENTS.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p: p.stat().st_mtime_ns for p in files}


def test_every_script_answers_help_and_writes_nothing(call, capsys):
    before = written()
    wrong = [s for s in SCRIPTS if call(s, "--help") or len(capsys.readouterr().out) < 100]
    assert wrong == []
    assert written() == before


@pytest.mark.parametrize(
    "command, word",
    [
        ("merge_memory.py --blocks 1", "--out"),
        ("merge_memory.py --blocks 0 --out x", "invalid choice: 0"),
        ("matrix_merges.py --blocks 4", "--out"),
        ("matrix_merges.py --blocks 0 --out x", "invalid choice: 0"),
        ("long_streams.py --models 600", "--out"),
        ("long_streams.py --tasks 5 --out x", "70 or more"),
        ("pipeline.py --count 8", "128 or more"),
    ],
)
def test_a_trial_is_no_result_on_file(call, capsys, command, word):
    before = written()
    assert call(*command.split()) == 2
    assert word in capsys.readouterr().err.splitlines()[-1]
    assert written() == before


def test_a_run_replaces_the_rows_of_its_methods(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCH), *sys.path])
    save = runpy.run_path(str(BENCH / "merge_files.py"))["save"]
    path, inputs = tmp_path / "new" / "figures.json", [__file__]
    save(path, inputs, None, {"wall": 1.0}, {"ties": {}, "linear": {"old": 1}})
    path.write_text(path.read_text().replace('"machine"', '"by_hand": {"ties": 1}, "machine"', 1))
    save(path, inputs, None, {"wall": 2.0}, {"linear": {"new": 1}})
    figures = json.loads(path.read_text())
    assert figures["by_hand"] == {"ties": 1}
    assert figures["methods"] == {"ties": {}, "linear": {"new": 1}}
    assert figures["copy"] == {"wall": 1.0, "runs": 2}
    another = [str(BENCH / "merge_files.py")]  # a family of other bytes
    save(path, another, None, {"wall": 3.0}, {"linear": {}})
    figures = json.loads(path.read_text())
    assert (list(figures["methods"]), figures["copy"]) == (["linear"], {"wall": 3.0})


@pytest.mark.parametrize("words", [[], ["OUT", "nonsense"]])
def test_accelerator_says_what_it_knows(words, tmp_path):
    run = [str(BENCH / "accelerator.sh"), *words]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "usage" in done.stdout or "there are steps" in done.stdout
