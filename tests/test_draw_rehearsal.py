"""The picture of the rehearsal page: every method and deployment that was run, the best first."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "experiments" / "draw_rehearsal.py"))


def test_rows_are_sorted_and_say_what_ran(script):
    rows = [
        {"method": "low", "accuracy": {"last model": [0.1, 0.3], "mean": [0.6, 0.8]}},
        {"method": "high", "accuracy": {"last model": [0.5, 0.7], "mean": [float("nan"), 0.1]}},
    ]
    report = {"images": 1000, "seeds": [0, 1], "rows": rows}
    (first, figures), (second, more) = script["points"](report)
    assert (first, second) == ("high", "low")
    assert list(figures) == ["last model"]  # a merge that diverged has no mark
    np.testing.assert_allclose(more["mean"], [60, 80])
    figure = script["picture"](report)
    words = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert words == ["high", "low"]
    drawn = [c.get_offsets()[:, 0].tolist() for c in figure.axes[0].collections[1::2]]
    np.testing.assert_allclose(np.concatenate(drawn), [60, 20, 70])  # marks are means


def test_every_result_file_has_a_picture_of_all_its_rows_on_the_page(script):
    page = (ROOT / "docs" / "rehearsal.md").read_text(encoding="utf-8")
    for name, *_ in script["STREAMS"].values():
        file = ROOT / "experiments" / "results" / f"{name}.json"
        if file.exists():
            stored = json.loads(file.read_text(encoding="utf-8"))
            every = {row["method"] for row in stored["rows"]}
            assert {label for label, _ in script["points"](stored)} == every
            assert f"(images/{name}.png)" in page
            image = ROOT / "docs" / "images" / f"{name}.png"
            assert image.read_bytes().startswith(b"\x89PNG")
