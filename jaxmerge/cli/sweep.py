"""`jaxmerge sweep EXPERIMENT --grid ...`: many runs into one result store, here or on Ray.

The sweep folder is a store (`jaxmerge.studies.result_store`): one Parquet file for each finished
unit, and ``state/`` with the checkpoints of what is under way.  A sweep that was killed goes on
with ``--resume``; a larger grid on the same folder runs only the cells that are new.
"""

from __future__ import annotations

import functools
import itertools
import json as jsonlib
import logging
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxmerge.cli import report, runs
from jaxmerge.cli.progress import Bars
from jaxmerge.cli.run import load
from jaxmerge.errors import UserError
from jaxmerge.io.places import working
from jaxmerge.report import swept
from jaxmerge.studies import cells, resident, result_store, sweep
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.gather import gather
from jaxmerge.studies.seed import run_seed, steps_of
from jaxmerge.studies.settings import changed, restored


def run(
    experiment: str | Path,
    *,
    grid: Sequence[str],
    set: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    ray: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> list[cells.Row]:
    """Run what is left of a sweep, print its tables, return all rows of the store.

    Args:
        experiment: a Python file with ``get_config() -> Experiment``.
        grid: ``key=value,value``; see `jaxmerge.studies.sweep`.
        set: settings of all runs.
        out: the store; by default sweeps/<date>-<name>.
        resume: go on in a folder that holds cells already.
        ray: a task on a Ray cluster for each unit; file, data and store must lie where all
            machines see them.

    Raises:
        UserError: a wrong axis or value, a folder in use, units that failed (the others are kept).
    """
    file = Path(experiment).resolve()
    config = load(file)
    folder = Path(out or Path("sweeps") / f"{datetime.now():%Y-%m-%d}-{config.name}").resolve()
    if not result_store.installed():
        raise UserError('A sweep writes Parquet: pip install "jaxmerge[store]".')
    if folder.exists() and any(folder.iterdir()) and not resume:
        raise UserError(
            f"{folder} is in use: add --resume to run the cells that are missing there, or give "
            "another --out."
        )
    have = result_store.read(folder) if folder.exists() and any(folder.glob("*.parquet")) else []
    try:
        asked = changed(config, runs.settings_of(list(set)))
        axes = sweep.parse(grid)
        every = sweep.units(asked, axes)
        left = sweep.units(asked, axes, {row["key"] for row in have})
    except ValueError as error:
        raise UserError(str(error)) from None
    whole, todo = (sum(len(u.cells) for u in units) for units in (every, left))
    if not quiet:
        print(
            f"{whole} cells, {whole - todo} of them done; {len(left)} runs to train.  {folder}",
            file=sys.stderr,
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with working(folder):
            failed = (on_ray if ray else here)(file, left, folder, quiet or json)
    except KeyboardInterrupt:
        print(f"Stopped. To go on, the same with:  --resume --out {folder}", file=sys.stderr)
        raise
    if failed:
        raise UserError(
            f"{len(failed)} of {len(left)} runs failed, the others are kept in {folder}: "
            + "; ".join(f"{describe(u)}: {e}" for u, e in failed)
        )
    shutil.rmtree(folder / "state", ignore_errors=True)
    rows = result_store.read(folder)
    drawn = swept.write_png(rows, folder / "plots")
    if json:
        print(jsonlib.dumps(rows))
    else:
        report.show(gather(rows))
        if drawn:
            print(f"{drawn} pictures over what was swept: {folder / 'plots'}", file=sys.stderr)
    return rows


def describe(unit: sweep.Unit) -> str:
    """A unit in words: "seed 0 (magmax, ties)"."""
    return f"seed {unit.experiment.seed} ({', '.join(unit.experiment.streams) or 'baselines'})"


def here(
    file: Path, units: Sequence[sweep.Unit], folder: Path, quiet: bool
) -> list[tuple[sweep.Unit, Exception]]:
    """Run units one after the other in this process."""
    failed = []
    trained: dict[str, dict[str, Any]] = {}
    with Bars(quiet) as bars:
        for k, unit in enumerate(units):
            bars.prefix = f"run {k + 1}/{len(units)}"
            bars.reach(0)
            try:
                if unit.name not in trained and not (folder / "state" / unit.name).exists():
                    trained |= together(file, units[k:], quiet)
                models = trained.pop(unit.name, {})
                work(file, to_plain(unit.experiment), folder, unit.name, bars, models)
            except (ValueError, OSError, FloatingPointError) as error:
                failed.append((unit, error))
    return failed


def together(file: Path, units: Sequence[sweep.Unit], quiet: bool) -> dict[str, dict[str, Any]]:
    """Unit -> stream -> its models, for the next units that differ in their seed only.

    What fits on the device is trained as one program, and said so; the rest is left to `work`.
    """
    plain = lambda u: {**to_plain(u.experiment), "seed": 0}
    units = list(itertools.takewhile(lambda u: plain(u) == plain(units[0]), units))
    models: dict[str, dict[str, Any]] = {u.name: {} for u in units}
    if len(units) < 2:
        return models
    scenarios = [u.experiment.tasks_of(u.experiment.seed) for u in units]
    shared = _parts(file, units[0].experiment, scenarios[0])
    seeds = [u.experiment.seed for u in units]
    for plan in shared["plans"]:
        why = resident.obstacle(plan, scenarios[0], shared["learner"])
        if not quiet:
            how = f"trained one by one, for {why}" if why else "trained in one program"
            print(f"{len(units)} seeds of {plan.name!r}: {how}.", file=sys.stderr)
        if why:
            continue
        for unit, trained in zip(
            units, resident.train(plan, scenarios, shared["learner"], seeds), strict=True
        ):
            models[unit.name][plan.name] = trained
    return models


def on_ray(
    file: Path, units: Sequence[sweep.Unit], folder: Path, quiet: bool
) -> list[tuple[sweep.Unit, Exception]]:
    """Run each unit as a Ray task, on one GPU each where the cluster has any."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise UserError('--ray needs Ray: pip install "jaxmerge[ray]".') from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(work)
    waiting = {
        task.remote(file, to_plain(unit.experiment), folder, unit.name, None): unit
        for unit in units
    }
    total, failed = len(waiting), []
    try:
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            unit = waiting.pop(done)
            try:
                ray.get(done)
            except RayError as error:
                failed.append((unit, getattr(error, "cause", None) or error))
            if not quiet:
                print(f"{total - len(waiting)}/{total}  {describe(unit)}", file=sys.stderr)
    finally:
        if started:
            ray.shutdown()
    return failed


def work(
    file: Path, settings: dict[str, Any], folder: Path, name: str, bars: Any,
    models: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """One unit: learn, merge, evaluate, and leave its cells in the store.

    Args:
        settings: of the experiment, with one seed.
        name: of the unit's files.
        bars: progress, or None.
        models: stream -> models that are trained already, or why they are not.
    """
    experiment, models = restored(load(file), settings), models or {}
    diverged = [m for m in models.values() if isinstance(m, Exception)]
    if diverged:
        raise diverged[0]
    scenario = experiment.tasks_of(experiment.seed)
    shared = _parts(file, experiment, scenario)
    plans = [p._replace(models=models.get(p.name, p.models)) for p in shared["plans"]]
    if bars is not None:
        bars.batch = experiment.how().batch
        bars.total(steps_of(scenario, plans, experiment.how, experiment.baselines))
    state = folder / "state" / name
    run, _ = run_seed(
        scenario, shared["learner"], plans, seed=experiment.seed, how=experiment.how,
        baselines=experiment.baselines, store=state, batch=experiment.evaluation_batch,
        watch=bars.step if bars is not None else None, keep=(),
    )  # fmt: skip
    for stream, trained in models.items():
        run.streams[stream]["training"] = trained.seconds
        run.seconds["training"] = run.seconds.get("training", 0.0) + trained.seconds
    results = runs.collect(experiment, [run], scenario, seconds=0.0, memory=None)
    result_store.write(folder, cells.cells(results), name)
    shutil.rmtree(state, ignore_errors=True)


def _parts(file: Path, experiment: Any, scenario: Any) -> dict[str, Any]:
    """Plans and learner of an experiment, the same objects for all its seeds."""
    settings = {**to_plain(experiment), "seed": 0}
    shared = _shared(file, jsonlib.dumps(settings, sort_keys=True))
    if not shared:
        shared["plans"], shared["learner"] = experiment.plans(), experiment.learner(scenario)
    return shared


@functools.lru_cache(maxsize=1)
def _shared(file: Path, settings: str) -> dict[str, Any]:
    """A place for plans and learner, which are the same objects for all seeds of one setting, so
    that compiled code is found again."""
    return {}
