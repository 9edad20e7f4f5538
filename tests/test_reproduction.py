"""The page of reproductions is what its script makes of the stored results."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from jaxmerge import methods as merges
from jaxmerge.continual import methods as continual
from jaxmerge.core.registry import REGISTRY

ROOT = Path(__file__).parents[1]


def script():
    return runpy.run_path(str(ROOT / "experiments" / "reproduction.py"))


def test_the_page_is_up_to_date():
    assert script()["page"]() == (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("half", ["continual", "merges"])
def test_every_registered_method_has_ours_or_a_reason(half):
    registered = [n for n in merges.__all__ if n in REGISTRY]
    names = continual.__all__ if half == "continual" else registered
    split = lambda line: [cell.strip() for cell in line.split("|")[1:-1]]
    lines = [split(line) for line in script()[half]()[2:-1]]
    first = {cells[0] for cells in lines if cells[0]}
    assert first == {f"`{n}`" for n in names}
    for cells in lines:
        message = " ".join(cells)
        assert "+-" in message or "not reproduced, because" in message


def test_a_missing_cell_is_a_dash(tmp_path):
    module = script()
    module["accuracy_table"].__globals__["RESULTS"] = tmp_path
    row = {
        "scenario": "task", "method": "ER", "protocol": "one pass", "setting": "er()", "tried": {},
        "accuracy": [0.5, 0.7], "processor_seconds": 3.0,
    }  # fmt: skip
    report = {
        "rows": [row, {**row, "scenario": "class", "method": "SI"}], "seeds": [0, 1],
        "tuning_seed": 100, "command": "python x.py", "machine": {"cpus": 2},
    }  # fmt: skip
    (tmp_path / "toy.json").write_text(json.dumps(report))
    text = "\n".join(module["accuracy_table"]("toy"))
    assert "| ER | – | 60.0 +- 10.0 |" in text
    assert "| SI | 60.0 +- 10.0 | – |" in text
    assert "6 processor seconds" in text
