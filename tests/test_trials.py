"""Kills, full disks and other mishaps of one command: a sample of what the tools try on all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def tried(tool: str, command: str, out: Path, *options: str) -> dict:
    run = [sys.executable, str(EXPERIMENTS / f"{tool}.py"), "--only", command, "--out", str(out)]
    subprocess.run([*run, *options], check=True)
    return json.loads(out.read_text())["commands"][command]


FULL = """
import resource, signal, sys
from jaxmerge.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv = ["jaxmerge", "convert", "m.safetensors", "out", "--to", "orbax", "--force"]
main()
"""


def test_orbax_on_a_full_disk_says_one_line_and_leaves_nothing(tmp_path):
    leaves = {f"w{i}": np.random.default_rng(i).random((128, 512), np.float32) for i in range(20)}
    save_file(leaves, tmp_path / "m.safetensors")
    (tmp_path / "out").mkdir()  # an older output stays
    end = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True)
    assert end.returncode == 2
    said = f"error: {tmp_path}/out: file too large; free some space, then try again.\n"
    assert end.stderr == said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "out"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["convert", "convert --to orbax"])
def test_kills_and_a_full_disk(tmp_path, command):
    report = tried("kill_trials", command, tmp_path / "k.json", "--kills", "2", "--trials", "1")
    assert report["held"] == report["trials"] == 1
    assert report["kills"] > 0
    assert not report["full"]["traceback"]
    assert (report["full"]["code"], report["full"]["lines"], report["full"]["next"]) == (2, 1, True)


@pytest.mark.slow
def test_mishaps(tmp_path):
    trials = tried("mishaps", "convert", tmp_path / "m.json")
    assert trials["vanished"] is not None
    del trials["command"]
    assert all(trial["held"] for trial in trials.values() if trial is not None), trials
