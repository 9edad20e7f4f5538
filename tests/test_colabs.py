"""The notebooks: executed from top to bottom, outputs stored, no error in them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "colabs"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
CHEAPEST = "magmax_stream"  # the others are slow: run with -m slow


def code(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c for c in cells if c["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stored_in_order_and_without_errors(path):
    cells = code(path)
    assert "pip install" in source(cells[0])
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c["outputs"]]
    assert outputs
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert not [o for o in outputs if o.get("name") == "stderr"]


@pytest.mark.parametrize(
    "path",
    [p if p.stem == CHEAPEST else pytest.param(p, marks=pytest.mark.slow) for p in NOTEBOOKS],
    ids=lambda p: p.stem,
)
def test_notebook_runs(path):
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason="the colabs extra is not installed")
    execute = runpy.run_path(str(FOLDER / "execute.py"))["execute"]
    cells = [c for c in execute(path).cells if c.cell_type == "code"]  # an error in a cell raises
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
