"""The picture of the grid is the one that the script draws, and its figures are the library's."""

from __future__ import annotations

import runpy
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "experiments" / "draw_grid.py"))


def test_merged_row_is_the_furthest_entry(script):
    rows = np.float32(script["TASKS"])
    furthest = rows[np.abs(rows).argmax(0), np.arange(rows.shape[1])]
    np.testing.assert_array_equal(np.float32(script["merged"]()), furthest)


def test_picture_in_the_docs_is_up_to_date(script):
    drawn = script["draw"]()
    ElementTree.fromstring(drawn)
    assert (ROOT / "docs" / "images" / "grid.svg").read_text(encoding="utf-8") == drawn
