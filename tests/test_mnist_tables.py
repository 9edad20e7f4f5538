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
import permuted_mnist
import projection
import projection_page
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
    assert stored["seeds"] == [0, 1]  # as the rows before, which say nothing of their own
    assert [r.get("seeds") for r in stored["rows"] if r["method"] != fewer[0].method] == [None]
    cut = next(r for r in continual_table.rows_of(stored) if r["method"] == fewer[0].method)
    assert cut["seeds"] == [0, 1, 2, 3]
    assert continual_table.noted(cut, 2) == " (3 of 4 seeds)"
    assert rows[fewer[0].method] == [0.0, 0.1, 0.2]  # what was run before the kill
    assert len(stored["rows"]) == 2
    assert stored["methods"]["task"] == [c.method for c in every]  # the page has a dash for each
    assert stored["reasons"] == {"task": {"replay": "a reason"}}
    assert not list(tmp_path.glob("*.partial"))


def refused(monkeypatch, main, *words):
    """What a script says before it ends, in one line."""
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    with pytest.raises(SystemExit) as end:
        main()
    message = str(end.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("script", [split_mnist, permuted_mnist, published_mnist])
def test_values_that_are_no_settings(script, monkeypatch):
    message = refused(monkeypatch, script.main, "seeds=abc", "methds=GPM", "data=/nowhere")
    assert message.startswith("seeds=abc: expected a whole number, at least 1. No setting 'methds'")
    assert message.endswith("data=/nowhere: no such folder; the data set's files lie in it.")
    for value in ("0", "-1", "1.5", ""):
        message = refused(monkeypatch, script.main, f"seeds={value}")
        assert message == f"seeds={value}: expected a whole number, at least 1."
    message = refused(monkeypatch, script.main)
    assert message == "data= is missing: give the folder of NAME_train.npz and NAME_test.npz."


def test_whole_numbers_may_be_zero_where_that_is_the_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "images=0", "tasks=7"])
    assert continual_table.options(images=0, tasks=3) == {"images": 0, "tasks": 7}
    words = "tasks=0", "images=-1"
    message = refused(monkeypatch, lambda: continual_table.options(images=0, tasks=3), *words)
    assert "tasks=0: expected a whole number, at least 1." in message
    assert "images=-1: expected a whole number, at least 0." in message


def test_a_result_needs_a_folder_before_anything_runs(monkeypatch, tmp_path):
    there, none = tmp_path / "new.json", tmp_path / "none" / "new.json"
    monkeypatch.setattr(sys, "argv", ["x.py", f"out={there}"])
    assert continual_table.options(out="") == {"out": str(there)}
    message = refused(monkeypatch, lambda: continual_table.options(out=""), f"out={none}")
    assert message == f"out={none}: no folder {none.parent}; make it first."


@pytest.mark.parametrize(
    ("script", "words", "there"),
    [(split_mnist, "scenarios=foo,class,bar", "class, domain, task, mammoth"),
     (published_mnist, "protocols=foo,task,bar", "supsup, fot, fot_short, gpm"),
     (permuted_mnist, "stream=foo", "permuted, rotated"),
     (projection, "stream=foo", "digits, banking77")],
)  # fmt: skip
def test_names_that_there_are_not(script, words, there, monkeypatch):
    what, _, names = words.partition("=")
    strange = names.replace(",class", "").replace(",task", "").replace(",", ", ")
    message = refused(monkeypatch, script.main, words)
    assert message.startswith(f"No {what.rstrip('s')} {strange}; there are: {there}")


def test_a_row_of_one_seed_leaves_a_page_as_it_is():
    row = {"method": "GPM", "accuracy": [0.6, 0.7], "tried": {}, "setting": "sgd() + gpm()",
           "processor_seconds": 4.0, "memory": 1.0, "protocol": "words"}  # fmt: skip
    report = {"command": "python x.py data=DATA", "seeds": [0, 1], "rows": [row, row]}
    text = projection_page.lines(report)
    assert "`python x.py`: words; mean and standard deviation of 2 seeds; costs" in text
    assert text.count("| GPM | 65.0 ± 7.1 | – | 2 | 1.00 | `gpm()` |") == 2
    one = {**row, "method": "OSFT", "accuracy": [0.6], "seeds": [0]}
    text = projection_page.lines(report | {"rows": [row, row, one]})
    assert text.count("| GPM | 65.0 ± 7.1 | – |") == 2
    assert "deviation of 2 seeds where no other number stands" in text
    assert "| OSFT | 60.0 ± 0.0 (1 seed) |" in text


def test_seeds_at_once_are_those_in_turn(data, monkeypatch):
    monkeypatch.setattr(published_mnist, "FIRST", slice(None, 50))
    monkeypatch.setattr(published_mnist, "LATER", slice(50, None))
    [cell] = [c for c in published_mnist.projected(data) if c.scenario == "gpm"]
    cell = cell._replace(stream=lambda s, v, make=cell.stream: shortened(make(s, v)))
    [_, row] = continual_table.run(cell, [0, 1], None)
    at_once = continual_table.together(cell, cell.setups[0], [0, 1])
    in_turn = zip(row["accuracy"], row["backward transfer"], strict=True)
    np.testing.assert_allclose(at_once, list(in_turn), atol=1e-6)


def shortened(stream):
    """The first steps of two tasks."""
    cut = {k: getattr(stream, k)[:2, :40] for k in ("rows", "origin", "weight")}
    info = {k: v[:2] for k, v in stream.info.items()}
    groups = stream.groups
    own = {k: getattr(groups, k)[:2] for k in ("rows", "weight", "task")}
    own["info"] = {k: v[:2] for k, v in groups.info.items()}
    return stream._replace(
        **cut, info=info, sample=stream.sample[:2], groups=groups._replace(**own)
    )
