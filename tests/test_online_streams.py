"""experiments/online_streams.py: plans, figures and tables of seven streams of one data set."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import online_streams

    return online_streams


def test_every_plan_keeps_its_promise(script):
    labels = np.repeat(np.arange(43), 12)
    for name, (make, levels) in script.PLANS.items():
        plan = make(labels, 0)
        plan.check(labels)
        deep = 0 if plan.level is None else len(np.unique(plan.level))
        assert deep == len(levels), name


@pytest.mark.parametrize("name", ["recurring", "HLE multi"])
def test_a_row(script, name):
    from rehearsal_streams import Case, levelled, mlp

    rng = np.random.default_rng(0)
    means = rng.uniform(0, 255, (43, 16, 16, 3))

    def images(each):
        y = np.repeat(np.arange(43), each).astype(np.int32)
        noise = rng.normal(0, 20, (len(y), 16, 16, 3))
        return np.clip(means[y] + noise, 0, 255).astype(np.uint8), y

    data = {"train": images(12), "validation": images(1), "test": images(2)}
    network = lambda names: mlp(768, (30,), len(names))
    new = script.row(name, "ER", Case(data, network, levelled, script.SIGNS, 5, 60, 2), 0.1, [0])
    assert list(new["levels"]) == list(script.PLANS[name][1] or [""])
    for figures in new["levels"].values():
        assert set(figures["accuracy"]) == {"last model", "EMA", "MagMax"}
        assert all(0 <= a[0] <= 1 for a in figures["accuracy"].values())
        curve = np.array(figures["curve"], float)
        late = curve[np.isfinite(curve)]
        assert np.isclose(late[-1], figures["accuracy"]["last model"][0], atol=1e-4)
        assert late.min() <= figures["A_AUC"][0] <= late.max()
    if name == "HLE multi":  # the signs come in the last of three tasks
        began = {
            k: np.isfinite(np.array(f["curve"], float)).argmax() for k, f in new["levels"].items()
        }
        assert began["colours"] < began["groups"] < began["signs"]
        assert new["levels"]["colours"]["accuracy"]["last model"][0] > 0.6


def test_the_page_and_the_picture_have_every_row_of_the_result_file(script):
    report = json.loads(script.OUT.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "rehearsal.md").read_text(encoding="utf-8")
    assert script.table(report) in page
    assert len(report["rows"]) == len(script.PLANS) * len(script.METHODS)
    assert all(
        set(r["merges"]) == set(r["validation"]) == set(script.MERGED) for r in report["rows"]
    )
    draw = runpy.run_path(str(ROOT / "experiments" / "draw_online_streams.py"))
    figure = draw["picture"](report)
    lines = sum(max(1, len(levels)) for _, levels in script.PLANS.values())
    assert len(figure.axes) == lines
    assert all(len(ax.lines) == len(draw["SHOWN"]) for ax in figure.axes)


def test_other_seeds_need_a_file_of_their_own(script, monkeypatch, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": [], "seeds": [0]}))
    monkeypatch.setattr(sys, "argv", ["online_streams.py", f"data={tmp_path}", f"out={path}"])
    with pytest.raises(SystemExit, match=r"has seeds=\[0\], asked for \[0, 1, 2\]: give out="):
        script.main()
