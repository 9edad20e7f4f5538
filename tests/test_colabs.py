"""The notebooks: executed from top to bottom, outputs stored, no error in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import jaxmerge as jm

FOLDER = Path(__file__).parents[1] / "colabs"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


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


def test_stream_notebook_runs():
    known, scope = set(jm.REGISTRY), {}
    try:
        for cell in code(FOLDER / "magmax_stream.ipynb")[1:]:  # the first one installs
            exec(compile(source(cell), "magmax_stream", "exec"), scope)
    finally:
        for name in set(jm.REGISTRY) - known:
            del jm.REGISTRY[name]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_in_a_kernel(path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
