"""The tables' runs of the text streams: their settings, and how finished ones are put together."""

import dataclasses
import json
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import report_results

from jaxmerge.cli import run as command
from jaxmerge.cli import runs as commands
from jaxmerge.studies.settings import changed

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import text_choice  # noqa: E402
import text_results  # noqa: E402
import text_runs  # noqa: E402


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


ROWS = {
    "sequential": ("none", "sequential"), "independent": ("independent",), "joint": ("joint",),
}  # fmt: skip


@pytest.fixture
def results_at(script, tmp_path, monkeypatch):
    """No results and no settings yet; both are written there."""
    monkeypatch.setitem(script["stored"].__globals__, "RESULTS", tmp_path)
    monkeypatch.setattr(text_runs, "SETTINGS", tmp_path / "settings.json")
    return tmp_path


def part(script, order, way, accuracy=None, more=(), experiment="clinc150", tasks=10, peak=5):
    """The rows of one way of learning, as its run leaves them."""
    results = report_results.results(seeds=1)
    (seed,) = results.seeds
    rows = [e for e in seed.entries if e.finetunes in ROWS[way]]
    if accuracy is not None:
        rows = [dataclasses.replace(e, metrics={"accuracy": accuracy}) for e in rows]
    streams = {way: {"training": 3.0, "merging": 1.0}}
    seed = dataclasses.replace(
        seed, seed=order, entries=rows, streams=streams, seconds=dict(streams[way])
    )
    recipe = script["Run"](experiment, tasks, order, way).recipe(more)
    return dataclasses.replace(
        results, seeds=[seed], recipe=recipe, seconds={**streams[way], "total": 7.0},
        peak_memory=peak,
    )  # fmt: skip


def test_finished_runs_are_put_together_by_order(script, tmp_path, results_at):
    run, folder = script["Run"], tmp_path / "runs"
    of = ((0, "sequential"), (0, "joint"), (0, "independent"), (1, "independent"))
    for order, way in (*of, (2, "sequential")):
        place = script["place_of"](run("clinc150", 10, order, way), folder)
        place.mkdir(parents=True)
        part(script, order, way).to_json(place / "results.json")
    finished = script["done"]("clinc150", 10, folder)
    assert {order: set(ways) for order, ways in finished.items()} == {
        0: {"sequential", "independent", "joint"}, 1: {"independent"}, 2: {"sequential"},
    }  # fmt: skip
    assert script["done"]("clinc150", 10, folder, ["epochs=7"]) == {}  # of other settings
    whole = script["together"](None, finished)
    whole.check("whole")
    assert [s.seed for s in whole.seeds] == [0, 2]
    rows = [(e.label, e.finetunes) for e in whole.seeds[0].entries]
    assert rows[0] == ("zero-shot", "none")
    assert rows[-1] == ("joint", "joint")
    assert len(rows) == len(report_results.results(seeds=1).seeds[0].entries)
    assert set(whole.recipe["streams"]) == {"sequential", "independent"}
    stat = next(s for s in whole.summary if s.label == "last model").metrics["accuracy"]
    assert stat.n == 2
    assert whole.seconds["total"] == pytest.approx(4 * 7)
    assert script["together"](None, {1: finished[1]}) is None  # no order with its sequential stream


def test_the_table_goes_on_where_the_folders_are_gone(script, results_at):
    run = script["Run"]
    parts = {way: part(script, 0, way) for way in ROWS}
    at_once = script["together"](None, {0: parts})
    before = script["together"](None, {0: {"sequential": parts["sequential"]}})
    before.to_json(results_at / "clinc150_10_full.json")
    assert script["in_table"](run("clinc150", 10, 0, "sequential"))
    assert not script["in_table"](run("clinc150", 10, 0, "joint"))
    assert not script["in_table"](run("clinc150", 10, 1, "sequential"))
    assert not script["in_table"](run("banking77", 7, 0, "sequential"))
    kept = script["stored"]("clinc150", 10)
    assert script["together"](kept, {}) == kept
    assert script["together"](kept, {0: parts}) == at_once
    lr = command.load(EXPERIMENTS / "clinc150.py").lr
    settings = results_at / "settings.json"
    settings.write_text(json.dumps({"chosen": {"lr": lr / 2}}))  # chosen anew since
    assert not script["in_table"](run("clinc150", 10, 0, "sequential"))
    chosen = {"lr": lr, "streams.L2.methods.l2.strength": 9}
    settings.write_text(json.dumps({"chosen": chosen}))
    assert script["in_table"](run("clinc150", 10, 0, "sequential"))


GRID = "merges.TIES.factor=[0.2, 0.4]"  # of both streams


@pytest.mark.parametrize(
    "more, anew",
    [
        ("merges.continual TIES.factor=[0.1, 0.2]", {"independent"}),
        ("merges.OPCM.alpha=0.4", {"independent"}),
        (GRID, {"sequential", "independent"}),
        ("epochs=9", set(ROWS)),
        ("streams.LwF.methods.lwf.strength=7", set()),
        ("data=elsewhere", set()),
    ],
)
def test_what_other_settings_made_is_run_again_and_nothing_else(script, results_at, more, anew):
    whole = script["together"](None, {0: {way: part(script, 0, way) for way in ROWS}})
    whole.to_json(results_at / "clinc150_10_full.json")
    run, set_ = script["Run"], [more]
    if "LwF" in more:  # which the runs of other ways do not have
        name, _, value = more.partition("=")
        (results_at / "settings.json").write_text(json.dumps({"chosen": {name: int(value)}}))
        set_ = []
    missing = {w for w in ROWS if not script["in_table"](run("clinc150", 10, 0, w), set_)}
    assert missing == anew


def test_rows_stay_until_they_are_made_again(script, results_at):
    """And say what they were made under; nothing else of their order is touched."""
    orders = {
        order: {way: part(script, order, way, 0.25, peak=9) for way in ROWS} for order in (0, 1)
    }
    old = script["together"](None, orders)
    assert "older" not in old.recipe
    new = part(script, 0, "independent", 0.75, [GRID])
    mixed = script["together"](old, {0: {"independent": new}})
    accuracy = lambda results, i: {
        e.finetunes: e.metrics["accuracy"] for e in results.seeds[i].entries
    }
    assert accuracy(mixed, 0) == {**accuracy(old, 0), "independent": 0.75}
    assert mixed.seeds[1] == old.seeds[1]
    rows = lambda results: [(e.label, e.finetunes) for e in results.seeds[0].entries]
    assert rows(mixed) == rows(old)
    assert mixed.recipe["merges"]["TIES"]["factor"] == [0.2, 0.4]
    assert set(mixed.recipe["older"]) == {
        "order 0, sequential", "order 1, sequential", "order 1, independent",
    }  # fmt: skip
    under = script["made_under"](mixed)
    assert under == {**script["made_under"](old), (0, "independent"): under[0, "independent"]}
    assert mixed.seconds["total"] == old.seconds["total"] + 7 - 4  # what the old rows took is out
    assert mixed.seconds["training"] == old.seconds["training"]
    again = {
        order: {way: part(script, order, way, 0.75, [GRID]) for way in ROWS} for order in (0, 1)
    }
    last = script["together"](mixed, again)
    assert "older" not in last.recipe
    assert accuracy(last, 0) == {**accuracy(last, 1), "joint": 0.25}
    assert accuracy(last, 1)["joint"] == 0.25  # as good under either
    assert last.peak_memory == 9  # the largest of all, also of those that were made again
    last.check("last")
    assert script["together"](last, again) == last


def test_what_runs_say_of_themselves_where_they_differ():
    said = text_results._every([{"device": "H100", "cpus": 16}, {"device": "CPU", "cpus": 16}])
    assert said == {"device": "H100 and CPU", "cpus": 16}


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, capsys):
    job, run, after = text_runs.Job, text_runs.Run, []
    place = tmp_path / "fails"
    place.mkdir()
    (place / "config.json").write_text("{}")  # of no experiment: the run cannot go on
    missing = job(run("clinc150", 10, 0, "joint"), tmp_path / "no data", [])
    with pytest.raises(SystemExit, match=r"(?s)Failed, see.*(fails|no data)\.log.*\.log$"):
        text_runs.work(
            [job(run("clinc150", 10, 0, "sequential"), place, []), missing],
            *(tmp_path, 2, lambda: after.append(1)),
        )
    assert len(after) == 2
    assert "is not of 'clinc150'" in (tmp_path / "fails.log").read_text()
    assert "data_full.json" in (tmp_path / "no data.log").read_text()
    assert capsys.readouterr().out.count("exit code 2") == 2


def test_stopping_stops_the_runs_and_begins_no_other(tmp_path, monkeypatch):
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

    monkeypatch.setattr(text_runs, "_process", process)

    def stop():
        told.set()
        raise KeyboardInterrupt

    jobs = [text_runs.Job(None, tmp_path / n, []) for n in ("long", "short", "a", "b", "c")]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        text_runs.work(jobs, tmp_path, 2, stop)
    assert time.monotonic() - began < 30  # the long one was ended
    assert set(begun) <= {"long", "short", "a"}


def test_a_run_that_begins_while_all_is_stopped_ends_too(tmp_path, monkeypatch):
    stopped, running = threading.Event(), []
    stopped.set()
    place = tmp_path / "run"
    place.mkdir()
    (place / "config.json").write_text("{}")
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda call, **options: real(sleep, **options))
    job = text_runs.Job(text_runs.Run("clinc150", 10, 0, "joint"), place, [])
    _, code = text_runs._process(job, tmp_path, running, stopped)
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


@pytest.mark.parametrize("best, tried", [(0.3, 3), (3.0, 5), (0.01, 5), (1.0, 4)])
def test_strengths_go_on_while_the_best_stands_at_an_end(monkeypatch, tmp_path, best, tried):
    asked, file = [], tmp_path / "settings.json"

    def score(jobs):
        given = [one.rpartition("=")[::2] for job in jobs for one in job.more if "strength" in one]
        return {"last model": -abs(np.log(float(given[0][1]) / best))}

    monkeypatch.setattr(text_runs, "SETTINGS", file)
    monkeypatch.setattr(text_choice, "work", lambda jobs, *_: asked.extend(jobs))
    monkeypatch.setattr(text_choice, "scores", score)
    text_choice.choose("strengths", tmp_path, tmp_path, [], 1)
    noted = json.loads(file.read_text())
    lwf = "streams.LwF.methods.lwf.strength"
    assert noted["chosen"][lwf] == best
    values = list(map(float, noted["tried"][lwf]))
    assert len(values) == tried
    assert values == sorted(values)
    assert len(asked) == len({job.place for job in asked}) == sum(map(len, noted["tried"].values()))


def test_what_is_chosen_is_what_the_file_of_settings_has(monkeypatch, tmp_path):
    """The accuracies on record, put in for the runs, lead to the strengths on record."""
    record = json.loads(text_runs.SETTINGS.read_text())
    monkeypatch.setattr(text_runs, "SETTINGS", tmp_path / "settings.json")
    monkeypatch.setattr(text_choice, "work", lambda jobs, *_: None)

    def score(jobs):
        said = jobs[0].place.name.removeprefix(f"{jobs[0].run.name}_")
        key, _, value = said.partition("=")
        return record["tried"][key][value]

    monkeypatch.setattr(text_choice, "scores", score)
    for what in text_choice.WHAT:
        text_choice.choose(what, tmp_path, tmp_path, [], 1)
    assert json.loads((tmp_path / "settings.json").read_text()) == record
