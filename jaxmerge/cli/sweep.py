"""`jaxmerge sweep EXPERIMENT --grid ...`: many runs into one result store, here or on Ray.

The sweep folder is a store (`jaxmerge.studies.result_store`): one Parquet file for each finished
unit, ``models/`` with the models of every task, and ``state/`` with the checkpoints of what is
under way.  A sweep that was killed goes on with ``--resume``; a larger grid on the same folder runs
only the cells that are new, and trains only what nobody has trained.
"""

from __future__ import annotations

import functools
import json as jsonlib
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxmerge.cli import report, runs
from jaxmerge.cli.progress import Bars
from jaxmerge.cli.run import load
from jaxmerge.cli.terminal import typed
from jaxmerge.errors import UserError, message
from jaxmerge.io.buckets import into_bucket, place_of
from jaxmerge.report import swept
from jaxmerge.studies import cells, kept_models, resident, result_store, sweep
from jaxmerge.studies.claims import Claims
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.gather import gather
from jaxmerge.studies.seed import run_seed, steps_of
from jaxmerge.studies.settings import changed, restored


@into_bucket(always=True)
def run(
    experiment: str | Path,
    *,
    grid: Sequence[str],
    set: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    ray: bool = False,
    keep_models: bool = True,
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
        keep_models: keep the models of every task in the store (T x the model, a stream and a
            seed), so that a method or a setting of a merge that is added later trains nothing.

    Several of these commands may fill one store, on machines that share a disk: each claims the
    units that it trains, and all end with the whole table.

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
        runs_left = f"{len(left)} run{'s' if len(left) != 1 else ''} to train"
        print(
            f"{whole} cells, {whole - todo} of them done; {runs_left}.  {folder}", file=sys.stderr
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Claims(folder) as claims:
            failed = (on_ray if ray else here)(file, left, claims, quiet or json, keep_models)
            if not failed:
                claims.tidy()
    except KeyboardInterrupt:
        again = typed(
            "jaxmerge sweep", experiment, grid=list(grid), set=list(set), out=place_of(folder),
            resume=True, ray=ray, no_keep_models=not keep_models, quiet=quiet, json=json,
        )  # fmt: skip
        print(f"Stopped. To go on:  {again}", file=sys.stderr)
        raise
    if failed:
        kept = "the others are" if len(failed) < len(left) else "what was done is"
        raise UserError(
            f"{len(failed)} of {len(left)} runs failed, {kept} kept in {folder}: "
            + "; ".join(f"{describe(u)}: {message(e)}" for u, e in failed)
        )
    rows = result_store.read(folder)
    drawn = swept.write_png(rows, folder / "plots")
    if json:
        print(jsonlib.dumps(rows))
    else:
        report.show(gather(rows))
        if bytes_kept := kept_models.size(folder):
            print(
                f"{bytes_kept / 1e6:,.0f} MB of models are kept for methods that are added later: "
                f"{folder / kept_models.FOLDER}",
                file=sys.stderr,
            )
        if drawn:
            print(f"{drawn} pictures over what was swept: {folder / 'plots'}", file=sys.stderr)
    return rows


def describe(unit: sweep.Unit) -> str:
    """A unit in words: "seed 0 (magmax, ties)"."""
    return f"seed {unit.experiment.seed} ({', '.join(unit.experiment.streams) or 'baselines'})"


def here(
    file: Path, units: Sequence[sweep.Unit], claims: Claims, quiet: bool, keep: bool
) -> list[tuple[sweep.Unit, Exception]]:
    """Run units one after the other in this process; those that another one has are waited for."""
    failed: list[tuple[sweep.Unit, Exception]] = []
    pending, count, said = list(units), 0, False
    with Bars(quiet) as bars:
        while pending:
            mine = claimed(pending, claims)
            if not mine:
                if not said:
                    print(f"The rest is not free, waiting. {claims.reason}", file=sys.stderr)
                said = True
                time.sleep(PAUSE)
                continue
            pending = [u for u in pending if u not in mine]
            done = claims.done()
            rest = [(u, left) for u in mine if (left := sweep.left(u.experiment, done))]
            trained = None
            for unit, now in rest:
                count += 1
                bars.prefix = f"run {len(units) - len(pending) - len(rest) + count}/{len(units)}"
                bars.reach(0)
                try:
                    if trained is None:
                        alike = [n for _, n in rest]
                        trained = together(file, alike, claims.store, quiet)
                    models = trained.pop(now.name, {})
                    settings = to_plain(now.experiment)
                    work(file, settings, claims.store, now.name, bars, models, keep)
                except (ValueError, OSError, FloatingPointError) as error:
                    failed.append((unit, error))
                finally:
                    claims.release([unit])
            claims.release(mine)
    return failed


PAUSE = 1.0  # seconds between two looks at what another process has


def claimed(pending: Sequence[sweep.Unit], claims: Claims) -> list[sweep.Unit]:
    """The first unit that is free, and those behind it that differ in their seed only."""
    first = next((u for u in pending if claims.take(u)), None)
    if first is None:
        return []
    alike = [u for u in pending[pending.index(first) :] if unseeded(u) == unseeded(first)]
    return [u for u in alike if claims.take(u)]


def unseeded(unit: sweep.Unit) -> Any:
    """What units that may be one program have in common."""
    return {**to_plain(unit.experiment), "seed": 0}


def together(
    file: Path, units: Sequence[sweep.Unit], store: Path, quiet: bool
) -> dict[str, dict[str, Any]]:
    """Unit -> stream -> its models, for units that differ in their seed only.

    What fits on the device is trained as one program, and said so; the rest is left to `work`.
    """
    state = store / "state"
    units = [u for u in units if unseeded(u) == unseeded(units[0])]
    units = [u for u in units if not (state / u.name).exists()]  # those that go on where they were
    models: dict[str, dict[str, Any]] = {u.name: {} for u in units}
    if len(units) < 2:
        return models
    scenarios = [u.experiment.tasks_of(u.experiment.seed) for u in units]
    shared = _parts(file, units[0].experiment, scenarios[0])
    seeds = [u.experiment.seed for u in units]
    for plan in shared["plans"]:
        places = [
            kept_models.kept(store, u.experiment, plan, s)
            for u, s in zip(units, scenarios, strict=True)
        ]
        if all(p is not None and p.complete for p in places):
            continue
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
    file: Path, units: Sequence[sweep.Unit], claims: Claims, quiet: bool, keep: bool
) -> list[tuple[sweep.Unit, Exception]]:
    """Run each unit as a Ray task, on one GPU each where the cluster has any; this process claims
    them, and what another one has is left to it."""
    units, folder = [u for u in units if claims.take(u)], claims.store
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise UserError('--ray needs Ray: pip install "jaxmerge[ray]".') from None
    started = not ray.is_initialized()
    if started:
        with warnings.catch_warnings():  # Ray forks to start programs; none goes on in JAX's place
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(work)
    waiting = {
        task.remote(file, to_plain(unit.experiment), folder, unit.name, None, {}, keep): unit
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
    models: dict[str, Any] | None = None, keep: bool = True,
) -> None:  # fmt: skip
    """One unit: learn, merge, evaluate, and leave its cells in the store.

    Args:
        settings: of the experiment, with one seed.
        name: of the unit's files.
        bars: progress, or None.
        models: stream -> models that are trained already, or why they are not.
        keep: the models for methods that are added later.
    """
    experiment, models = restored(load(file), settings), models or {}
    diverged = [m for m in models.values() if isinstance(m, Exception)]
    if diverged:
        raise diverged[0]
    scenario = experiment.tasks_of(experiment.seed)
    shared = _parts(file, experiment, scenario)
    places = {p.name: kept_models.kept(folder, experiment, p, scenario) for p in shared["plans"]}
    keep = keep and kept_models.room(folder, shared["learner"].params, scenario, len(places))
    places = {n: p for n, p in places.items() if p is not None and (keep or p.complete)}
    for stream, trained in models.items():
        if stream in places:
            kept_models.keep_all(places[stream], trained.models)
    at_hand = {**places, **models}
    plans = [p._replace(models=at_hand.get(p.name, p.models)) for p in shared["plans"]]
    if bars is not None:
        bars.batch = experiment.how().batch
        bars.total(steps_of(scenario, plans, experiment.how, experiment.baselines))
    state = folder / "state" / name
    run, _ = run_seed(
        scenario, shared["learner"], plans, seed=experiment.seed, how=experiment.how,
        problem=experiment.problem_spec(), baselines=experiment.baselines, store=state,
        batch=experiment.evaluation_batch,
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
        shared["plans"] = experiment.plans()
        shared["learner"] = runs.learner_of(experiment, scenario)
    return shared


@functools.lru_cache(maxsize=1)
def _shared(file: Path, settings: str) -> dict[str, Any]:
    """A place for plans and learner, which are the same objects for all seeds of one setting, so
    that compiled code is found again."""
    return {}
