"""`jaxmerge run EXPERIMENT`: one file of experiments/, with other settings, or a run resumed."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jaxmerge.cli import run_folder, runs
from jaxmerge.cli.terminal import typed
from jaxmerge.errors import UserError
from jaxmerge.io.buckets import into_bucket, place_of
from jaxmerge.io.untrusted import check_regular
from jaxmerge.studies.config import Experiment
from jaxmerge.studies.result_store import installed
from jaxmerge.studies.results import Results
from jaxmerge.studies.settings import changed
from jaxmerge.training.mid_task import EVERY
from jaxmerge.training.tracking import package


def beside(path: Path) -> None:
    """Puts the folder of a file in front of the path, as Python does for a script."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)


@into_bucket(last="results.json", always=True)
def run(
    experiment: str | Path,
    *,
    set: Sequence[str] = (),
    out: str | Path | None = None,
    resume: str | Path | None = None,
    log: str | None = None,
    save_every: float = EVERY,
    store: str | Path | None = None,
    quiet: bool = False,
    json: bool = False,
) -> Results:
    """Run an experiment file, or go on with a run of it, and print its table.

    Args:
        experiment: a Python file with ``get_config() -> Experiment``.
        set: ``key=value`` settings that replace the file's.
        out: run folder to make; by default runs/<date>-<name>.
        resume: run folder to go on with; refused where the settings, of `set` or of the file, are
            not those of the run.
        log: "tensorboard" or "wandb".
        save_every: seconds between checkpoints within a task.
        store: result store to add the cells to, for ``jaxmerge report``.

    Raises:
        UserError: no such file, no experiment in it, unknown settings, a folder that is in use.
    """
    if resume is not None and out is not None:
        raise UserError("Give --out for a new run or --resume for an old one, not both.")
    if log is not None:
        package(log)
    if store is not None and not installed():
        raise UserError('--store writes Parquet: pip install "jaxmerge[store]".')
    config = load(experiment)
    old = None if resume is None else run_folder.read_run(resume, config)
    noted = [] if resume is None else run_folder.given(resume)
    if noted is None:  # a run that did not note its --set: only what is asked now can differ
        config, noted = old or config, []
    given = [*noted, *set]
    try:
        asked = changed(config, runs.settings_of(given))
        asked.check()
    except ValueError as error:
        raise UserError(str(error)) from None
    if resume is None or old is None:
        folder = run_folder.new_run(asked, out, given)
    else:
        folder = Path(resume)
        # of a finished run the file may have changed since; what is asked for may not differ
        done = run_folder.finished(folder)
        now = changed(old, runs.settings_of(set)) if done else asked
        moved = (
            old if done else dataclasses.replace(old, **{k: getattr(now, k) for k in old.movable})
        )
        run_folder.refuse_changes(folder, moved, now)
        if moved != old:
            run_folder.move(folder, moved, given)
        asked = moved
    options = runs.RunOptions(quiet, log, save_every, None if store is None else Path(store))
    line = partial(
        typed, "jaxmerge run", experiment, log=log, store=store, quiet=quiet, json=json,
        save_every=None if save_every == EVERY else save_every,
    )  # fmt: skip
    return runs.finish(
        asked, folder, json=json, options=options, new=resume is None,
        again=line(resume=place_of(folder)), anew=line(set=list(set), out=out and place_of(out)),
    )  # fmt: skip


def load(path: str | Path) -> Experiment:
    """The experiment that a Python file defines; its folder is on the path, as of any script."""
    path = Path(path)
    if not path.is_file():
        if path.exists():
            check_regular(path, "an experiment is a Python file")
        raise UserError(f"{path}: no such experiment file.")
    beside(path)
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file with get_config().")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    experiment = module.get_config() if hasattr(module, "get_config") else None
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"{path} defines no get_config() that gives an Experiment; see jaxmerge.studies.config."
        )
    return experiment
