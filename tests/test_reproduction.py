"""The page of reproductions is what its script makes of the stored results."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from jaxmerge import methods as merges
from jaxmerge.continual import methods as continual
from jaxmerge.core.registry import REGISTRY

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))


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


def test_a_missing_cell_is_a_dash(tmp_path, monkeypatch):
    module = script()
    monkeypatch.setattr("published_figures.RESULTS", tmp_path)
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
    assert "| ER | – | 60.0 +- 14.1 |" in text
    assert "| SI | 60.0 +- 14.1 | – |" in text
    assert "6 processor seconds" in text
    assert "deviation of 2 seeds; " in text
    assert "2 of 4 rows have been run" in text
    one = {**row, "method": "L2", "accuracy": [0.5], "seeds": [0], "command": "python y.py"}
    cut = {**row, "method": "MAS", "accuracy": [0.5], "seeds": [0, 1, 2]}
    (tmp_path / "toy.json").write_text(json.dumps(report | {"rows": [row, row, one, cut]}))
    text = "\n".join(module["accuracy_table"]("toy"))
    assert "deviation of 2 seeds where no other number stands" in text
    assert "| L2 | 50.0 (1 seed) |" in text
    assert "| MAS | 50.0 (1 of 3 seeds) |" in text
    assert "`python x.py`, `python y.py`, 12 processor seconds" in text


def test_figures_far_from_the_published_ones_are_listed_by_themselves(tmp_path, monkeypatch):
    module = script()
    monkeypatch.setattr("published_figures.RESULTS", tmp_path)
    row = {"scenario": "a", "method": "M", "accuracy": [0.89, 0.91], "backward transfer": [-0.021]}
    (tmp_path / "toy.json").write_text(json.dumps({"rows": [row]}))
    of = lambda **published: module["far"]({"ours": ["toy", "a", "M"], **published})
    assert of(published="90.29 +- 0.1", backward="-2 +- 0") == []
    accuracy, backward = of(published="89", backward="-2.5")
    assert accuracy.ours == "90.00 +- 1.41"
    assert (accuracy.points, accuracy.deviations) == pytest.approx((1.0, 0.5**0.5))
    assert (backward.ours, backward.deviations) == ("-2.10", None)
    assert backward.points == pytest.approx(0.4)


def test_published_figures_are_read_and_no_reason_stands_without_a_distance():
    module = script()
    for p in module["published"]():
        if p["ours"] and p["published"] and module["row_of"](*p["ours"]):
            assert re.fullmatch(r"-?[\d.]+( \+- [\d.]+)?", p["published"]), p["method"]
            assert "apart" not in p or module["far"](p), (p["method"], p["protocol"])
