"""Runs of experiments: every seed trained, merged and evaluated, the run folder filled.

`jaxmerge.cli.run_folder` says what a run folder holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json as jsonlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxmerge.cli.progress import Bars
from jaxmerge.cli.run_folder import alone, discard, finished
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.errors import UserError
from jaxmerge.io.buckets import place_of
from jaxmerge.io.untrusted import read_json
from jaxmerge.models.tokens import cut_by
from jaxmerge.studies import cells, result_store
from jaxmerge.studies.config import Experiment
from jaxmerge.studies.conversion import from_plain, to_plain
from jaxmerge.studies.provenance import Cost, machine, versions
from jaxmerge.studies.results import Results, SeedRun, summarize
from jaxmerge.studies.seed import Plan, Watch, merges_of, run_seed, steps_of
from jaxmerge.studies.settings import parsed
from jaxmerge.training import checkpoint, data_parallel
from jaxmerge.training.mid_task import EVERY
from jaxmerge.training.model_learner import AnyLearner
from jaxmerge.training.tracking import Curves


class RunOptions(NamedTuple):
    """How a run is run: nothing here changes a figure.

    Attributes:
        quiet: no progress.
        log: "tensorboard" or "wandb" for curves beside the terminal, or None.
        every: seconds between checkpoints within a task.
        store: a result store (`jaxmerge.studies.result_store`) to add the cells to, or None.
    """

    quiet: bool = False
    log: str | None = None
    every: float = EVERY
    store: Path | None = None


def execute(experiment: Experiment, folder: Path, options: RunOptions) -> None:
    """Run all seeds that are left, then write everything."""
    runs: list[SeedRun] = []
    quiet, log = (options.quiet, options.log) if data_parallel.first() else (True, None)
    with (
        Bars(quiet) as bars,
        Curves(log, folder, to_plain(experiment)) as curves,
        Cost(folder / "state") as cost,
    ):
        seeds = range(experiment.seed, experiment.seed + experiment.seeds)
        streams = [experiment.tasks_of(seed) for seed in seeds]
        plans = experiment.plans()  # once: compiled code is found again by the terms of the loss
        steps = [steps_of(s, plans, experiment.how, experiment.baselines) for s in streams]
        bars.total(sum(steps))
        bars.batch = curves.batch = experiment.how().batch
        learner = learner_of(experiment, streams[0])  # the head does not depend on the seed
        for k, seed in enumerate(seeds):
            bars.seed(k + 1, experiment.seeds)
            curves.seed(seed, sum(steps[:k]))
            watch = together(bars.step, curves.step)
            runs.append(
                one_seed(experiment, plans, seed, streams[k], learner, folder, watch, options.every)
            )
            bars.reach(sum(steps[: k + 1]))  # also where tasks were done before
            cost.keep()
        bars.note("writing the report")
        results = collect(experiment, runs, streams[0], cost.seconds(), cost.memory())
        if options.store is not None:
            result_store.write(
                options.store, cells.cells(results), f"{experiment.name}-{_digest(results)}"
            )
        if data_parallel.first():
            write(results, folder)
            shutil.rmtree(folder / "state", ignore_errors=True)
        data_parallel.wait("results")


def learner_of(experiment: Experiment, scenario: Scenario) -> AnyLearner:
    """The learner of an experiment; where names of classes are too long, the setting that cuts
    them is said, if it has one."""
    has = any(field.name == "truncate" for field in dataclasses.fields(experiment))
    with cut_by("add --set truncate=true") if has else contextlib.nullcontext():
        return experiment.learner(scenario)


def together(*watches: Watch) -> Watch:
    """Several watchers as one."""

    def watch(*what: Any) -> None:
        for one in watches:
            one(*what)

    return watch


def _digest(results: Results) -> str:
    """Names a run by its settings: the same run again takes its own place in a store."""
    return hashlib.sha256(jsonlib.dumps(results.recipe, sort_keys=True).encode()).hexdigest()[:12]


def collect(
    experiment: Experiment, runs: list[SeedRun], scenario: Scenario,
    seconds: float, memory: int | None,
) -> Results:  # fmt: skip
    """The results of an experiment from those of its seeds, with wall time and peak memory."""
    return Results(
        experiment=experiment.name,
        scenario=scenario.name,
        classes=list(scenario.classes),
        recipe=to_plain(experiment),
        seeds=runs,
        summary=summarize(runs),
        versions=versions(),
        machine=machine(),
        seconds={**total_seconds(runs), "total": seconds},
        peak_memory=memory,
    )


def one_seed(
    experiment: Experiment, plans: tuple[Plan, ...], seed: int, scenario: Scenario,
    learner: AnyLearner, folder: Path, watch: Watch, every: float,
) -> SeedRun:  # fmt: skip
    """One seed, or its figures if it is finished already."""
    done = folder / "state" / f"seed_{seed}.json"
    if done.exists():
        return from_plain(SeedRun, read_json(done), str(done))
    state = folder / "state" / f"seed_{seed}"
    keep = experiment.to_save(merges_of(plans)) if seed == experiment.seed else []
    run, merged = run_seed(
        scenario, learner, plans, seed=seed, how=experiment.how, problem=experiment.problem_spec(),
        baselines=experiment.baselines,
        store=state, every=every, batch=experiment.evaluation_batch, watch=watch, keep=keep,
    )  # fmt: skip
    if seed == experiment.seed:
        experiment.save(merged, folder, learner)
    checkpoint.replace(done, jsonlib.dumps(to_plain(run)))
    if data_parallel.first():
        shutil.rmtree(state, ignore_errors=True)
    return run


def total_seconds(runs: list[SeedRun]) -> dict[str, float]:
    """Seconds of every phase over all seeds."""
    names = dict.fromkeys(n for r in runs for n in r.seconds)
    return {n: sum(r.seconds.get(n, 0.0) for r in runs) for n in names}


def write(results: Results, folder: Path) -> None:
    """Plots, report and, last of all, results.json: a run with results is finished."""
    from jaxmerge.report import html, plots

    if result_store.installed():
        result_store.write(folder, cells.cells(results), "cells")
    plots.write_png(results, folder / "plots")
    html.write(results, folder / "report.html")
    results.to_json(folder / "results.json")


def finish(
    experiment: Experiment, folder: Path, *, json: bool, again: str, anew: str,
    options: RunOptions = RunOptions(), new: bool = True,
) -> Results:  # fmt: skip
    """Run what is left, print the table (or JSON), return the results.

    Args:
        again, anew: the commands that go on with the run, and that start one as this, shown when
            it is interrupted.
        new: the folder is of this call; if nothing is kept it is taken back.
    """
    if not finished(folder):
        try:
            with alone(folder):
                execute(experiment, folder, options._replace(quiet=options.quiet or json))
        except BaseException as error:  # Ctrl-C, a full disk, a corrupt image
            if new and not (folder / "state").exists():
                discard(folder)
                if isinstance(error, KeyboardInterrupt) and data_parallel.first():
                    print(
                        "Stopped before the first checkpoint: nothing was kept, and "
                        f"{place_of(folder)} was removed. To start anew:  {anew}",
                        file=sys.stderr,
                    )
            elif isinstance(error, KeyboardInterrupt | OSError | UserError):
                print(f"Stopped. To go on:  {again}", file=sys.stderr)
            raise
    results = Results.from_json(folder / "results.json")
    if data_parallel.first():
        show(results, folder, json)
    return results


def show(results: Results, folder: Path, json: bool) -> None:
    """The table on standard output, or the results as JSON."""
    if json:
        print(results.to_json(), end="")
        return
    from rich.console import Console

    from jaxmerge.report import tables, words

    console = Console(markup=False)
    console.print(tables.rich_table(results))
    console.print(words.headline(results), highlight=False)
    if lesson := words.lesson(results):
        console.print(lesson, highlight=False)
    memory = f", {results.peak_memory / 1e9:.2f} GB" if results.peak_memory else ""
    seconds = f"{results.seconds['total']:.0f} s"
    console.print(f"{seconds}{memory}.  Report: {folder / 'report.html'}", highlight=False)


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """``["epochs=3", "merges.MagMax.factor=0.5"]`` as settings; values are YAML.

    >>> settings_of(["epochs=3", "merges.MagMax.factor=[0.5, 1.0]"])
    {'epochs': 3, 'merges': {'MagMax': {'factor': [0.5, 1.0]}}}
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UserError(f"--set takes key=value, got {pair!r}.")
        *outer, inner = name.split(".")
        place = settings
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {name}: {part} was set to {place!r} before.")
        place[inner] = parsed(f"--set {name}", value)
    return settings
