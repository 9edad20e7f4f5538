"""The cells of the tables on MNIST: every setup fits its stream, settings are chosen and stored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmerge.continual.checks import check

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import continual_table
import published_mnist
import split_mnist


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    part = lambda n: (
        rng.integers(0, 255, (n, 28, 28), np.uint8),
        np.arange(n, dtype=np.int32) % 10,
    )
    return {"train": part(100), "validation": part(20), "test": part(30)}


def accepted(cells):
    for cell in cells:
        check(cell.setups[0], cell.stream(0, False), traced=True)


def test_protocols_of_papers(data, monkeypatch):
    monkeypatch.setattr(published_mnist, "FIRST", slice(None, 50))
    monkeypatch.setattr(published_mnist, "LATER", slice(50, None))
    accepted(published_mnist.notebook(data))
    accepted(published_mnist.projected(data))
    accepted(published_mnist.benchmark(data, "domain")[:1])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_all_cells(data, scenario):
    accepted(published_mnist.benchmark(data, scenario))
    accepted(split_mnist.cells(data, scenario, "protocol"))


def test_a_table_goes_on_and_runs_anew_what_has_changed(data, tmp_path, monkeypatch, capsys):
    calls, killed = [], [None]

    def run(cell, seeds, row):
        calls.append(cell.method)
        tried = {continual_table.described(s): 0.5 for s in cell.setups}
        row = row or {
            "scenario": cell.scenario, "method": cell.method, "protocol": cell.protocol,
            "setting": continual_table.described(cell.setups[0]),
            "tried": tried if len(tried) > 1 else {}, "accuracy": [],
            "seconds": 1.0, "processor_seconds": 1.0,
        }  # fmt: skip
        for seed in seeds[len(row["accuracy"]) :]:
            if killed[0] == seed:
                raise KeyboardInterrupt
            row["accuracy"].append(seed / 10)
            yield row

    monkeypatch.setattr(continual_table, "run", run)
    out = str(tmp_path / "table.json")
    every = split_mnist.cells(data, "task", "protocol")
    cells = [c for c in every if c.method in ("joint", "SI")]
    fill = lambda cells, seeds=(0, 1), methods=(): continual_table.table(
        "split_mnist", cells, list(seeds), out, "", {"task": {"replay": "a reason"}}, methods
    )
    with pytest.raises(SystemExit, match="No method Joint; there are: fine-tuning, "):
        fill(every, methods=["Joint"])
    fill(every, methods=["joint", "SI"])
    fill(cells)
    assert sorted(calls) == ["SI", "joint"]
    fewer = [c._replace(setups=c.setups[:2]) if c.method == "SI" else c for c in cells]
    fill(fewer)
    fill([c._replace(protocol="another") for c in fewer if c.method == "joint"])
    killed[0] = 3
    with pytest.raises(KeyboardInterrupt):
        fill(fewer[:1], seeds=(0, 1, 2, 3))
    assert calls[2:] == ["SI", "joint", fewer[0].method]
    stored = json.loads(Path(out).read_text())
    rows = {r["method"]: r["accuracy"] for r in stored["rows"]}
    assert rows[fewer[0].method] == [0.0, 0.1, 0.2]  # what was run before the kill
    assert len(stored["rows"]) == 2
    assert stored["methods"]["task"] == [c.method for c in every]  # the page has a dash for each
    assert stored["reasons"] == {"task": {"replay": "a reason"}}
    assert not list(tmp_path.glob("*.partial"))
