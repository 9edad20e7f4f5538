"""Run folders: made, resumed and filled by every command that runs an experiment.

A run folder holds ``config.json`` (the experiment's settings), ``results.json``, ``report.html``,
``plots/*.png`` and ``merged.safetensors`` (MagMax on sequential fine-tunes, first seed).  While it
works, ``state/`` holds checkpoints; a run goes on after its last finished task.  A run that has
``results.json`` is finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json as jsonlib
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxmerge.commands.progress import Bars
from jaxmerge.continual import checkpoint, results
from jaxmerge.continual.experiment import Experiment, changed
from jaxmerge.continual.learner import Learner
from jaxmerge.continual.machine import machine, peak_memory, versions
from jaxmerge.continual.results import Results, SeedRun, summarize
from jaxmerge.continual.scenario import Scenario
from jaxmerge.continual.study import run_seed, steps_of
from jaxmerge.errors import UserError

NAME = "experiment"  # the key of the experiment's name in config.json


# ------------------------------------------------------------ the folder


def new_run(experiment: Experiment, out: str | Path | None) -> Path:
    """Make the folder and its config.json; by default runs/<date>-<name>."""
    if out is None:
        stem = Path("runs") / f"{datetime.now():%Y-%m-%d}-{experiment.name}"
        tries = (stem if i == 1 else stem.with_name(f"{stem.name}-{i}") for i in range(1, 10_000))
        folder = next(f for f in tries if not f.exists())
    else:
        folder = Path(out)
        if (folder / "config.json").exists():
            raise UserError(
                f"{folder} holds a run already: go on with --resume, or give another --out."
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} is in use: give an empty or new folder as --out.")
    folder.mkdir(parents=True, exist_ok=True)
    settings = {NAME: experiment.name, **results.to_plain(experiment)}
    checkpoint.replace(folder / "config.json", jsonlib.dumps(settings, indent=1) + "\n")
    return folder


def read_run(folder: str | Path, experiment: Experiment) -> Experiment:
    """The experiment with the settings that a run folder holds.

    Raises:
        UserError: not a run, or a run of something else.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is not a run: it has no config.json. Start one with --out {folder}."
        )
    try:
        settings = jsonlib.loads((folder / "config.json").read_text())
        if settings.pop(NAME) != experiment.name:
            raise KeyError(NAME)
        return changed(experiment, settings)
    except (jsonlib.JSONDecodeError, TypeError, KeyError, AttributeError, ValueError) as error:
        what = f"it is not of {experiment.name!r}" if isinstance(error, KeyError) else error
        raise UserError(f"{folder}/config.json cannot be used: {what}.") from None


def refuse_changes(folder: str | Path, old: Experiment, now: Experiment) -> None:
    """Raise UserError that shows every setting that differs from the run's."""
    differ = [
        f"{f.name}: {getattr(old, f.name)!r} in the run, {getattr(now, f.name)!r} now"
        for f in dataclasses.fields(old)
        if getattr(old, f.name) != getattr(now, f.name)
    ]
    if differ:
        raise UserError(
            f"{folder} cannot go on with another configuration ({'; '.join(differ)}). "
            "Leave these options out, or start a new run."
        )


def finished(folder: str | Path) -> bool:
    """Whether a run has its results."""
    return (Path(folder) / "results.json").exists()


# ------------------------------------------------------------ the work


def execute(experiment: Experiment, folder: Path, quiet: bool) -> None:
    """Run all seeds that are left, then write everything."""
    began = time.perf_counter()
    spent = folder / "state" / "seconds.json"  # wall time of earlier attempts
    before = jsonlib.loads(spent.read_text()) if spent.exists() else 0.0
    runs: list[SeedRun] = []
    with Bars(quiet) as bars:
        seeds = range(experiment.seed, experiment.seed + experiment.seeds)
        streams = [experiment.scenario(seed) for seed in seeds]
        steps = [steps_of(s, experiment.how()) for s in streams]
        bars.total(sum(steps))
        learner = experiment.learner(streams[0])  # the head does not depend on the seed
        for k, seed in enumerate(seeds):
            bars.seed(k + 1, experiment.seeds)
            runs.append(one_seed(experiment, seed, streams[k], learner, folder, bars))
            bars.reach(sum(steps[: k + 1]))  # also where tasks were done before
            checkpoint.replace(spent, jsonlib.dumps(before + time.perf_counter() - began))
        bars.note("writing the report")
        found = Results(
            experiment=experiment.name,
            scenario=streams[0].name,
            classes=list(streams[0].classes),
            recipe=results.to_plain(experiment),
            seeds=runs,
            summary=summarize(runs),
            versions=versions(),
            machine=machine(),
            seconds={**total_seconds(runs), "total": before + time.perf_counter() - began},
            peak_memory=peak_memory(),
        )
        write(found, folder)
    shutil.rmtree(folder / "state", ignore_errors=True)


def one_seed(
    experiment: Experiment, seed: int, scenario: Scenario, learner: Learner, folder: Path,
    bars: Bars,
) -> SeedRun:  # fmt: skip
    """One seed, or its figures if it is finished already."""
    done = folder / "state" / f"seed_{seed}.json"
    if done.exists():
        return results.from_plain(SeedRun, jsonlib.loads(done.read_text()), str(done))
    store = folder / "state" / f"seed_{seed}"
    run, merged = run_seed(
        scenario, learner, experiment.deploys(), seed=seed, training=experiment.how(),
        strategy=experiment.adapt(), store=store, batch=experiment.evaluation_batch,
        watch=bars.step,
    )  # fmt: skip
    if seed == experiment.seed:
        experiment.save(merged, folder)
    checkpoint.replace(done, jsonlib.dumps(results.to_plain(run)))
    shutil.rmtree(store, ignore_errors=True)
    return run


def total_seconds(runs: list[SeedRun]) -> dict[str, float]:
    """Seconds of every phase over all seeds."""
    names = dict.fromkeys(n for r in runs for n in r.seconds)
    return {n: sum(r.seconds.get(n, 0.0) for r in runs) for n in names}


def write(found: Results, folder: Path) -> None:
    """Plots, report and, last of all, results.json: a run with results is finished."""
    from jaxmerge.report import html, plots

    plots.write_png(found, folder / "plots")
    html.write(found, folder / "report.html")
    found.to_json(folder / "results.json")


def finish(experiment: Experiment, folder: Path, *, quiet: bool, json: bool, again: str) -> Results:
    """Run what is left, print the table (or JSON), return the results.

    Args:
        again: the command that goes on with the run, shown when it is interrupted.
    """
    if not finished(folder):
        try:
            execute(experiment, folder, quiet or json)
        except KeyboardInterrupt:
            print(f"Stopped. To go on:  {again} --resume {folder}", file=sys.stderr)
            raise
    found = Results.from_json(folder / "results.json")
    show(found, folder, json)
    return found


def show(found: Results, folder: Path, json: bool) -> None:
    """The table on standard output, or the results as JSON."""
    if json:
        print(found.to_json(), end="")
        return
    from rich.console import Console

    from jaxmerge.report import tables, words

    console = Console()
    console.print(tables.rich_table(found))
    console.print(words.headline(found), highlight=False)
    memory = f", {found.peak_memory / 1e9:.2f} GB" if found.peak_memory else ""
    seconds = f"{found.seconds['total']:.0f} s"
    console.print(f"{seconds}{memory}.  Report: {folder / 'report.html'}", highlight=False)


def settings_of(pairs: list[str]) -> dict[str, Any]:
    """``["epochs=3", "factors.MagMax=[0.5]"]`` as settings; values are YAML.

    >>> settings_of(["epochs=3", "factors.MagMax=[0.5, 1.0]"])
    {'epochs': 3, 'factors': {'MagMax': [0.5, 1.0]}}
    """
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UserError(f"--set takes key=value, got {pair!r}.")
        outer, _, inner = name.partition(".")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {name}: {value!r} is not a value (YAML).") from None
        if isinstance(parsed, str):  # YAML reads 1e-4 as a text
            with contextlib.suppress(ValueError):
                parsed = float(parsed)
        if inner:
            found.setdefault(outer, {})[inner] = parsed
        else:
            found[outer] = parsed
    return found
