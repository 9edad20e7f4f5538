"""The tables' runs of the text streams: their settings, and how finished ones are put together."""

import dataclasses
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import report_results

from jaxmerge.cli import run as command
from jaxmerge.cli import runs as commands
from jaxmerge.studies.settings import changed

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(EXPERIMENTS / "text_streams.py"))


def test_every_run_builds_and_no_two_share_a_folder(script):
    every = list(script["runs"]())
    assert len({run.name for run in every}) == len(every)
    assert every[0].name == "clinc150_10_order0_sequential"
    for run in every:
        config = command.load(EXPERIMENTS / f"{run.experiment}.py")
        config = changed(config, commands.settings_of(run.settings(Path("data"))))
        config.check()
        assert [*config.streams, *config.baselines].count(run.way) == 1
        assert (config.seed, config.seeds, config.tasks) == (run.order, 1, run.tasks)


def part(results, ways, order):
    """The rows of some ways of learning, as one run leaves them."""
    (seed,) = results.seeds
    rows = [e for e in seed.entries if e.finetunes in ways]
    seed = dataclasses.replace(seed, seed=order, entries=rows)
    streams = {w: {} for w in ways if w not in ("none", "joint")}
    recipe = {"streams": streams, "baselines": [w for w in ways if w == "joint"]}
    return dataclasses.replace(results, seeds=[seed], recipe=recipe)


def test_finished_runs_are_put_together_by_order(script, tmp_path):
    run = script["Run"]
    made = report_results.results(seeds=1)
    for order, way, rows in (
        (0, "sequential", ("none", "sequential")), (0, "joint", ("joint",)),
        (0, "independent", ("independent",)), (1, "independent", ("independent",)),
        (2, "sequential", ("none", "sequential")),
    ):  # fmt: skip
        folder = tmp_path / run("clinc150", 10, order, way).name
        folder.mkdir()
        part(made, rows, order).to_json(folder / "results.json")
    finished = script["done"]("clinc150", 10, tmp_path)
    assert {order: set(ways) for order, ways in finished.items()} == {
        0: {"sequential", "independent", "joint"}, 1: {"independent"}, 2: {"sequential"},
    }  # fmt: skip
    whole = script["together"](None, finished)
    whole.check("whole")
    assert [s.seed for s in whole.seeds] == [0, 2]
    rows = [(e.label, e.finetunes) for e in whole.seeds[0].entries]
    assert rows[0] == ("zero-shot", "none")
    assert rows[-1] == ("joint", "joint")
    assert len(rows) == len(made.seeds[0].entries)
    assert set(whole.recipe["streams"]) == {"sequential", "independent"}
    stat = next(s for s in whole.summary if s.label == "last model").metrics["accuracy"]
    assert stat.n == 2
    assert whole.seconds["total"] == pytest.approx(4 * made.seconds["total"])
    assert script["together"](None, {1: finished[1]}) is None  # no order with its sequential stream


def test_the_table_goes_on_where_the_folders_are_gone(script, tmp_path, monkeypatch):
    run, made = script["Run"], report_results.results(seeds=1)
    rate = {"lr": 2e-4}
    parts = {
        way: part(made, rows, 0)
        for way, rows in (
            ("sequential", ("none", "sequential")),
            ("independent", ("independent",)),
            ("joint", ("joint",)),
        )
    }
    for results in parts.values():
        results.recipe.update(rate)
    inside = script["stored"].__globals__
    monkeypatch.setitem(inside, "RESULTS", tmp_path)
    monkeypatch.setitem(inside, "SETTINGS", tmp_path / "settings.json")
    at_once = script["together"](None, {0: parts})
    before = script["together"](None, {0: {"sequential": parts["sequential"]}})
    before.to_json(tmp_path / "clinc150_10_full.json")
    assert script["in_table"](run("clinc150", 10, 0, "sequential"))
    assert not script["in_table"](run("clinc150", 10, 0, "joint"))
    assert not script["in_table"](run("clinc150", 10, 1, "sequential"))
    assert not script["in_table"](run("banking77", 7, 0, "sequential"))
    kept = script["stored"]("clinc150", 10)
    assert script["together"](kept, {}) == kept
    assert script["together"](kept, {0: parts}) == at_once
    (tmp_path / "settings.json").write_text('{"chosen": {"lr": 0.0001}}')  # chosen anew since
    assert script["stored"]("clinc150", 10) is None
    (tmp_path / "settings.json").write_text('{"chosen": {"lr": 0.0002, "streams.L2.x": 1}}')
    assert script["stored"]("clinc150", 10) == kept


def test_what_runs_say_of_themselves_where_they_differ(script):
    said = script["_every"]([{"device": "H100", "cpus": 16}, {"device": "CPU", "cpus": 16}])
    assert said == {"device": "H100 and CPU", "cpus": 16}


def test_a_run_that_fails_does_not_stop_the_others(script, tmp_path, capsys):
    job, run, after = script["Job"], script["Run"], []
    place = tmp_path / "fails"
    place.mkdir()
    (place / "config.json").write_text("{}")  # of no experiment: the run cannot go on
    missing = job(run("clinc150", 10, 0, "joint"), tmp_path / "no data", [])
    with pytest.raises(SystemExit, match=r"(?s)Failed, see.*(fails|no data)\.log.*\.log$"):
        script["work"](
            [job(run("clinc150", 10, 0, "sequential"), place, []), missing],
            *(tmp_path, 2, lambda: after.append(1)),
        )
    assert len(after) == 2
    assert "is not of 'clinc150'" in (tmp_path / "fails.log").read_text()
    assert "data_full.json" in (tmp_path / "no data.log").read_text()
    assert capsys.readouterr().out.count("exit code 2") == 2


def test_stopping_stops_the_runs_and_begins_no_other(script, tmp_path, monkeypatch):
    begun, slow, told = [], threading.Event(), threading.Event()

    def process(job, data, running, stopped):
        begun.append(job.place.name)
        if job.place.name == "long":
            running.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
            slow.set()
            return job, running[0].wait()
        slow.wait()
        if job.place.name != "short":  # begun when the short one ended: works until it is stopped
            told.wait()
            stopped.wait()
            time.sleep(0.2)
        return job, 0

    monkeypatch.setitem(script["work"].__globals__, "_process", process)

    def stop():
        told.set()
        raise KeyboardInterrupt

    names = ("long", "short", "a", "b", "c")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        script["work"]([script["Job"](None, tmp_path / n, []) for n in names], tmp_path, 2, stop)
    assert time.monotonic() - began < 30  # the long one was ended
    assert set(begun) <= {"long", "short", "a"}


def test_a_run_that_begins_while_all_is_stopped_ends_too(script, tmp_path, monkeypatch):
    stopped, running = threading.Event(), []
    stopped.set()
    place = tmp_path / "run"
    place.mkdir()
    (place / "config.json").write_text("{}")
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda call, **options: real(sleep, **options))
    job = script["Job"](script["Run"]("clinc150", 10, 0, "joint"), place, [])
    _, code = script["_process"](job, tmp_path, running, stopped)
    assert code < 0


@pytest.mark.parametrize(
    "options, says",
    [
        (["--only", "lwf"], "--only has no 'lwf'"),
        (["--tasks", "10,8"], "--tasks has no '8'"),
        (["--jobs", "0"], "1 or more; got 0"),
        (["--data", "nowhere"], "--data nowhere has no folder clinc150 and no banking77"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(script, monkeypatch, capsys, options, says):
    monkeypatch.setattr(sys, "argv", ["text_streams.py", *options])
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
