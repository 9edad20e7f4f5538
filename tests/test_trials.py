"""Kills, full disks and other mishaps of one command: a sample of what the tools try on all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def tried(tool: str, out: Path, *options: str) -> dict:
    run = [sys.executable, str(EXPERIMENTS / f"{tool}.py"), "--only", "convert", "--out", str(out)]
    subprocess.run([*run, *options], check=True)
    return json.loads(out.read_text())["commands"]["convert"]


@pytest.mark.slow
def test_kills_and_a_full_disk(tmp_path):
    report = tried("kill_trials", tmp_path / "k.json", "--kills", "2", "--trials", "1")
    assert report["held"] == report["trials"] == 1
    assert report["kills"] > 0
    assert not report["full"]["traceback"]
    assert (report["full"]["code"], report["full"]["lines"], report["full"]["next"]) == (2, 1, True)


@pytest.mark.slow
def test_mishaps(tmp_path):
    trials = tried("mishaps", tmp_path / "m.json")
    assert trials["vanished"] is not None
    assert all(trial["held"] for trial in trials.values() if trial is not None), trials
