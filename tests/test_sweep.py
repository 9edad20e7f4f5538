"""Sweeps, the result store and reports made of them, on clouds of points."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_experiments import TOY

from jaxmerge.cli import app, report, runs
from jaxmerge.cli import run as run_command
from jaxmerge.cli import sweep as command
from jaxmerge.errors import UserError
from jaxmerge.report import swept
from jaxmerge.studies import kept_models, resident, result_store, sweep
from jaxmerge.studies.claims import Claims
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.settings import changed

pytest.importorskip("pyarrow", reason="the result store needs pyarrow")

GRID = ["seed=3,4", "method=magmax,opcm", "factor=0.25:0.75:0.25"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """An experiment with one merge on one stream, and one stream without merges."""
    text = (
        TOY.format(tests=str(Path(__file__).parent))
        .replace(
            "    def scenario",
            """    baselines: list = setting(["joint"])
    streams: dict = setting({
        "sequential": {"deploys": ["last model", "average"]},
        "L2": {"methods": [{"method": "l2", "strength": 0.1}]},
    })

    def scenario""",
        )
        .replace("import Experiment", "import Experiment, setting")
    )
    path = tmp_path_factory.mktemp("experiments") / "toy.py"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """A sweep that nobody disturbed: (folder, rows)."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    return folder, command.run(toy, grid=GRID, out=folder, quiet=True)


def figures(rows):
    """What must be the same: all but times."""
    keep = lambda row: {k: v for k, v in row.items() if k not in ("made", "seconds")}
    return sorted((keep(row) for row in rows), key=lambda row: row["key"])


def test_a_sweep_has_every_cell_once(whole, toy):
    _, rows = whole
    names = {(r["seed"], r["stream"], r["merge"], r["fixed"]) for r in rows}
    cells_of_seed = {
        ("sequential", "last model", None), ("sequential", "opcm", None), ("joint", "joint", None),
        ("L2", "last model", None), *(("sequential", "magmax", f) for f in (0.25, 0.5, 0.75)),
    }  # fmt: skip
    assert names == {(s, *cell) for s in (3, 4) for cell in cells_of_seed}
    assert len({r["key"] for r in rows}) == len(rows) == 14
    assert all(r["seconds"] > 0 for r in rows)
    config = sweep.units(run_command.load(toy), sweep.parse(GRID))[0].experiment
    assert set(sweep.expected(config).values()) == {r["key"] for r in rows if r["seed"] == 3}


def test_a_cell_is_what_a_run_gives(whole, toy, tmp_path):
    settings = ["seed=3", "seeds=1", "merges.M.method=magmax", "merges.M.factor=0.5"]
    settings.append("streams.sequential.deploys=[M]")
    results = run_command.run(
        toy, set=settings, out=tmp_path / "run", store=tmp_path / "store", quiet=True
    )
    (row,) = (
        r for r in whole[1] if r["seed"] == 3 and r["merge"] == "magmax" and r["fixed"] == 0.5
    )
    assert row["matrix"][-1] == results.entry("M", "sequential").matrix[-1]
    assert row["accuracy"] == pytest.approx(np.mean(row["matrix"][-1]))
    (own_row,) = (
        r for r in result_store.read(tmp_path / "run" / "cells.parquet") if r["label"] == "M"
    )
    assert own_row["matrix"] == results.entry("M", "sequential").matrix
    assert figures(result_store.read(tmp_path / "store")) == figures(
        result_store.read(tmp_path / "run")
    )


def test_finished_cells_are_skipped_and_a_larger_grid_adds_to_them(toy, whole, tmp_path, capsys):
    first = command.run(toy, grid=["seed=3", *GRID[1:]], out=tmp_path / "s", quiet=True)
    with pytest.raises(UserError, match="add --resume"):
        command.run(toy, grid=GRID, out=tmp_path / "s")
    capsys.readouterr()
    again = command.run(toy, grid=GRID, out=tmp_path / "s", resume=True)
    assert "14 cells, 7 of them done; 1 run to train" in capsys.readouterr().err
    assert figures(again) == figures(whole[1])
    assert {r["key"] for r in first} < {r["key"] for r in again}
    more = [*GRID[:1], "factor=0.5,1.0 method=magmax"]
    axes = sweep.parse(more)
    left = sweep.units(run_command.load(toy), axes, {r["key"] for r in again})
    assert [list(u.experiment.streams) for u in left] == [["sequential"]] * 2
    assert [len(u.cells) for u in left] == [1, 1]  # factor 1.0 is new
    assert not any(u.experiment.baselines for u in left)


def test_any_setting_of_a_merge_is_an_axis_of_one_training(toy, whole, tmp_path, monkeypatch):
    trained = []
    real = command.run_seed
    monkeypatch.setattr(
        command, "run_seed", lambda *a, **k: trained.append(k["seed"]) or real(*a, **k)
    )
    grid = ["seed=3 stream=sequential method=ties,magmax density=0.2,0.6 scope=leaf,global"]
    rows = command.run(toy, grid=grid, out=tmp_path / "s", quiet=True)
    assert trained == [3]
    at = {r["merge"]: r for r in rows if r["merge"] != "last model"}
    densities = {f"ties, density {d}, scope {s}" for d in (0.2, 0.6) for s in ("leaf", "global")}
    assert set(at) == densities | {"magmax"}
    assert "density=0.6" in at["ties, density 0.6, scope leaf"]["method"]
    assert swept.axes(rows) == ["density"]
    alone = ["merges.T.method=ties", "merges.T.density=0.6", "merges.T.scope=leaf"]
    alone += ["seeds=1", "seed=3", "baselines=[]", "streams.sequential.deploys=[T]"]
    results = run_command.run(toy, set=alone, out=tmp_path / "run", quiet=True)
    expected = results.entry("T", "sequential").matrix[-1]
    assert at["ties, density 0.6, scope leaf"]["matrix"][-1] == expected
    own = sweep.parse(["merges.average.factor=0.2,0.4 stream=sequential seed=3"])
    assert len(sweep.units(run_command.load(toy), own)) == 1


def test_a_method_that_is_added_later_trains_nothing(toy, tmp_path, monkeypatch, capsys):
    """Whether its models were trained alone or together with those of other seeds."""
    from jaxmerge.studies import loop

    for k, seeds in enumerate(["seed=3", "seed=3,4"]):
        folder = tmp_path / f"s{k}"
        command.run(toy, grid=[f"{seeds} method=magmax"], out=folder, quiet=True)
        more = [f"{seeds} method=magmax,ties stream=sequential"]
        with monkeypatch.context() as patch:
            patch.setattr(loop, "fit_task", None)
            patch.setattr(resident, "train", None)
            capsys.readouterr()
            rows = command.run(toy, grid=more, out=folder, resume=True)
        assert "MB of models are kept for methods that are added later" in capsys.readouterr().err
        fresh = command.run(
            toy, grid=["seed=3 method=ties stream=sequential"], out=tmp_path / f"fresh{k}",
            quiet=True, keep_models=False,
        )  # fmt: skip
        assert not (tmp_path / f"fresh{k}" / "models").exists()
        (one,) = (r for r in rows if r["merge"] == "ties" and r["seed"] == 3)
        (other,) = (r for r in fresh if r["merge"] == "ties")
        np.testing.assert_allclose(one["matrix"][-1], other["matrix"][-1], atol=1e-6)


def test_models_that_would_fill_the_disk_are_not_kept(toy, tmp_path, monkeypatch, capsys):
    usage = kept_models.shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(kept_models.shutil, "disk_usage", lambda path: usage)
    grid = ["seed=3 method=magmax stream=sequential"]
    rows = command.run(toy, grid=grid, out=tmp_path / "s", quiet=True)
    assert len(rows) == 2
    assert "they are not kept, and a method that is added later" in capsys.readouterr().err
    assert not (tmp_path / "s" / "models").exists()


def test_what_another_process_trains_is_waited_for_and_not_done_twice(
    toy, tmp_path, monkeypatch, capsys
):
    grid, folder = ["epochs=1,2", "seed=3", "stream=sequential"], tmp_path / "s"
    units = sweep.units(run_command.load(toy), sweep.parse(grid))
    folder.mkdir()
    trained, waited = [], []
    real, other = command.work, Claims(folder)

    def work(file, settings, *rest):
        trained.append(settings["epochs"])
        real(file, settings, *rest)

    def pause(seconds):
        """The other process comes to an end: it has done the first unit, the second it gives up."""
        waited.append(seconds)
        real(toy, to_plain(units[0].experiment), folder, units[0].name, None)
        other.release(units)

    monkeypatch.setattr(command, "work", work)
    monkeypatch.setattr(command.time, "sleep", pause)
    assert other.take(units[0])
    assert other.take(units[1])
    rows = command.run(toy, grid=grid, out=folder, resume=True, quiet=True)
    assert len(waited) == 1
    assert "is working on" in capsys.readouterr().err
    assert trained == [2]
    assert len(rows) == len({r["key"] for r in rows}) == 4
    assert not list(folder.rglob("*.lock"))


def test_who_has_a_unit_is_said_and_what_is_no_lock_is_refused(toy, tmp_path):
    """Also of a machine that may be gone: else nobody would know which file to delete."""
    unit = sweep.units(run_command.load(toy), sweep.parse(["seed=3"]))[0]
    with Claims(tmp_path) as claims:
        assert claims.take(unit)
        (path,) = claims.locks
        claims.release([unit])
        path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "boot": "x"}))
        assert not claims.take(unit)
        assert "Process 7 on elsewhere is working on" in claims.reason
        assert f"delete {path}" in claims.reason
        path.unlink()
        path.mkdir()
        with pytest.raises(UserError, match="is no regular file; delete it"):
            claims.take(unit)


def test_a_failed_run_loses_no_other(toy, tmp_path, monkeypatch):
    real = command.run_seed

    def failing(*args, seed, **options):
        if seed == 3:
            raise FloatingPointError("The loss is nan at step 4")
        return real(*args, seed=seed, **options)

    monkeypatch.setattr(command, "run_seed", failing)
    with pytest.raises(UserError, match=r"1 of 2 runs failed.*seed 3 .*: The loss is nan"):
        command.run(toy, grid=["seed=3,4 method=magmax"], out=tmp_path / "s", quiet=True)
    assert {r["seed"] for r in result_store.read(tmp_path / "s")} == {4}


def test_a_run_that_met_a_full_disk_says_so_in_our_words(toy, tmp_path, monkeypatch):
    full = OSError(28, "No space left on device", "state.safetensors")
    monkeypatch.setattr(command, "here", lambda file, left, *_: [(left[0], full)])
    with pytest.raises(UserError, match=r"state.safetensors: no space left on device; free some"):
        command.run(toy, grid=["seed=3 method=magmax"], out=tmp_path / "s", quiet=True)


def test_seeds_of_a_stream_are_one_program_and_a_member_that_diverged_is_named(
    toy, tmp_path, monkeypatch, capsys
):
    real = resident.train

    def one_diverges(plan, scenarios, learner, seeds):
        wrong = FloatingPointError(f"stream {plan.name!r}: the loss is not finite in task 2.")
        return [wrong, *real(plan, scenarios, learner, seeds)[1:]]

    monkeypatch.setattr(resident, "train", one_diverges)
    with pytest.raises(UserError, match=r"1 of 2 runs failed.*seed 3 .*not finite in task 2"):
        command.run(toy, grid=["seed=3,4 stream=sequential"], out=tmp_path / "s")
    assert "2 seeds of 'sequential': trained in one program." in capsys.readouterr().err
    rows = result_store.read(tmp_path / "s")
    assert {r["seed"] for r in rows} == {4}
    assert all(r["seconds"] > 0 for r in rows)


@pytest.mark.parametrize(
    "grid, message",
    [
        (["sed=0"], "No setting 'sed': did you mean seed"),
        (["factr=0.5"], "No setting 'factr': did you mean factor"),
        (["method=ties", "densty=0.5"], "No setting 'densty': did you mean density"),
        (["method=magmx"], "no method is named 'magmx': did you mean magmax"),
        (["stream=sequental"], "no stream is named 'sequental': did you mean sequential"),
        (["epochs=a"], "epochs is a whole number, got 'a'"),
        (["epochs"], "takes key=value,value, got 'epochs'"),
        (["seed=0", "seed=1"], "the axis 'seed' twice"),
        (["factor=1:0:0.1"], "range 1:0:0.1 is empty"),
        (["factor=a:b:c"], "--grid factor: 'a:b:c': no number; give numbers like"),
        (["seed=-1"], "seed must not be negative"),
        (["merges.average.faktor=1"], "no setting 'faktor': did you mean factor"),
    ],
)
def test_wrong_grids_are_refused_before_anything_runs(toy, tmp_path, grid, message):
    with pytest.raises(UserError, match=message):
        command.run(toy, grid=grid, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_stream_that_starts_from_its_merge_keeps_it(toy):
    """A grid of methods is deployed beside the merge that training reads, which stays as it is."""
    options = {"start": "running", "deploys": ["last model", "average"]}
    settings = {"streams": {"again": options}, "merges": {"average": {"always": True}}}
    config = changed(run_command.load(toy), settings)
    grid = ["seed=0 stream=again method=magmax,average factor=0.5,1.0"]
    (unit,) = sweep.units(config, sweep.parse(grid))
    (plan,) = unit.experiment.plans()
    assert plan.running == "average"
    assert [d.label for d in plan.deploys] == ["last model", "average", "magmax"]
    assert [d.each for d in plan.deploys] == [False, False, True]
    one = sweep.expected(unit.experiment)["again", "last model", None]
    other = changed(unit.experiment, {"merges": {"average": {"factor": 0.7}}})
    assert sweep.expected(other)["again", "last model", None] != one
    with pytest.raises(ValueError, match="whose factors are rows of their own"):
        changed(config, {"merges": {"average": {"factor": [0.1, 0.2], "each": True}}}).plans()


def test_ranges_and_lists():
    axes = sweep.parse(["factor=0.1:1.0:0.1", "tasks=5:20:5 lr=1e-4,1e-3", "x=[1,2],[3]"])
    assert axes["factor"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert axes["tasks"] == [5, 10, 15, 20]
    assert axes["lr"] == [1e-4, 1e-3]
    assert axes["x"] == [[1, 2], [3]]


# ------------------------------------------------------------ reports


def test_reports_say_the_mean_and_spread_over_seeds(whole, tmp_path, capsys):
    folder, rows = whole
    groups = report.run([folder], format="md")
    text = capsys.readouterr().out
    values = [r["accuracy"] for r in rows if r["merge"] == "opcm"]
    (line,) = (x for x in text.splitlines() if x.startswith("| opcm"))
    assert f"{100 * np.mean(values):.1f}" in line
    assert f"± {100 * np.std(values, ddof=1):.1f}" in line
    (results,) = groups.values()
    assert [s.seed for s in results.seeds] == [3, 4]
    report.run([folder], format="latex", metric="forgetting", out=tmp_path / "t.tex")
    assert "\\begin{tabular}" in (tmp_path / "t.tex").read_text()
    report.run([folder], format="html", plot=True, out=tmp_path / "page")
    assert "magmax, factor 0.5" in (tmp_path / "page" / "table.html").read_text()
    names = {p.name for p in (tmp_path / "page" / "plots").iterdir()}
    assert {"overview.png", "factor_sweep.png"} <= names
    report.run([folder], json=True)
    assert len(json.loads(capsys.readouterr().out)) == 14


def test_settings_that_differ_become_columns(toy, tmp_path, capsys):
    grid = ["epochs=1,2", "order=0,1", "stream=sequential"]
    options = ["seeds=1", "baselines=[]", "streams.sequential.deploys=[average]"]
    command.run(toy, grid=grid, set=options, out=tmp_path / "s", quiet=True)
    capsys.readouterr()
    groups = report.run([tmp_path / "s"], format="md", metric="accuracy")
    assert list(groups) == ["toy, epochs 1", "toy, epochs 2"]
    assert all(len(r.seeds) == 2 for r in groups.values())  # two orders: runs to take means over
    head = capsys.readouterr().out.splitlines()[2]
    assert head == "| Method | Fine-tunes | epochs 1 % | epochs 2 % |"


def test_what_is_no_store_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UserError, match=r"x.parquet: not a Parquet file"):
        report.run([tmp_path])
    with pytest.raises(UserError, match="no such run or store"):
        report.run([tmp_path / "nothing"])
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(UserError, match=r"holds no results\.json and no \.parquet"):
        report.run([tmp_path])
    (tmp_path / "state").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="a run that is not finished; go on with --resume"):
        report.run([tmp_path])
    (tmp_path / "results.json").write_text('{"schema": ')
    with pytest.raises(UserError, match=r"results\.json is not JSON"):
        report.run([tmp_path])
    with pytest.raises(UserError, match="No metric 'acuracy': did you mean accuracy"):
        report.run([tmp_path], metric="acuracy")


def test_a_full_disk_leaves_the_store_as_it_was(whole, tmp_path, monkeypatch):
    path = result_store.write(tmp_path, whole[1][:2], "cells")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        result_store.write(tmp_path, whole[1], "cells")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cells.parquet"]


@pytest.mark.slow
def test_a_sweep_killed_with_sigkill_goes_on(toy, whole, tmp_path):
    code = "from jaxmerge.cli import main; main()"
    options = ["sweep", str(toy), *(x for g in GRID for x in ("--grid", g)), "-q"]
    folder = tmp_path / "s"
    child = subprocess.Popen([sys.executable, "-c", code, *options, "--out", str(folder)])
    for _ in range(3000):
        if any(folder.glob("state/*/sequential/state.safetensors")) or child.poll() is not None:
            break
        time.sleep(0.02)
    assert child.poll() is None, "the sweep ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    child.wait()
    rows = command.run(toy, grid=GRID, out=folder, resume=True, quiet=True)
    assert figures(rows) == figures(whole[1])


@pytest.mark.slow
def test_the_same_cells_on_ray(toy, whole, tmp_path):
    pytest.importorskip("ray")
    rows = command.run(toy, grid=GRID, out=tmp_path / "s", ray=True, quiet=True)
    assert figures(rows) == figures(whole[1])


def test_the_command_line_knows_both():
    assert {"sweep", "report"} <= {c.name or c.callback.__name__ for c in app.registered_commands}
    assert to_plain(runs.settings_of(["a.b.c=1"])) == {"a": {"b": {"c": 1}}}
