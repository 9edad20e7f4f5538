"""What runs where: samples for every commit, shards that together run all once a week."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import sampling
import yaml

ROOT = Path(__file__).parents[1]
WEEKLY = ROOT / ".github" / "workflows" / "weekly.yml"


def names(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [f"tests/{draw.choice('abc')}.py::test_{draw.randrange(40)}[{k}]" for k in range(400)]


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_every_test_runs_in_one_shard(count):
    for seed in range(3):
        every = names(seed)
        parts = [
            set(every) - sampling.of_other_shards(every, f"{k}/{count}")
            for k in range(1, count + 1)
        ]
        assert sorted(n for part in parts for n in part) == sorted(every)
        assert min(map(len, parts)) > len(every) / count / 2
    assert not sampling.of_other_shards(every, "")


@pytest.mark.parametrize("shard", ["0/3", "4/3"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(ValueError, match="K from 1 to N"):
        sampling.of_other_shards(["a"], shard)


def test_every_case_is_drawn_by_some_commit():
    """The dearest too, in as many commits as it costs budgets."""
    seconds = {f"t[{k}]": 2.0 ** (k % 6) for k in range(30)}
    ran = set()
    for commit in range(300):
        ran |= set(seconds) - sampling.left_out(list(seconds), seconds, 8, str(commit))
    assert ran == set(seconds)


def test_the_weekly_workflow_runs_everything():
    jobs = yaml.safe_load(WEEKLY.read_text())["jobs"]
    marks = []
    for job in jobs.values():
        shards = job["strategy"]["matrix"]["shard"]
        assert shards == [f"{k}/{len(shards)}" for k in range(1, len(shards) + 1)]
        assert job["timeout-minutes"] <= 60
        (command,) = [s["run"] for s in job["steps"] if s.get("run", "").startswith("pytest")]
        assert "--budget 0" in command
        assert "--shard ${{ matrix.shard }}" in command
        marks.append(command.split('-m "')[1].split('"')[0])
    assert sorted(marks) == ["not parity and not bench", "parity and not bench"]


def test_recorded_seconds_are_those_of_tests_that_exist():
    files = {n.partition("::")[0] for n in json.loads(sampling.FILE.read_text())}
    assert [f for f in sorted(files) if not (ROOT / f).exists()] == []
