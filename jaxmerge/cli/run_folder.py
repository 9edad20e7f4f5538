"""Run folders: made, read, and kept from other commands.

A run folder holds ``config.json`` (the experiment's settings), ``results.json``, ``report.html``,
``plots/*.png``, ``cells.parquet`` (where pyarrow is installed, see
`jaxmerge.studies.result_store`) and ``merged.safetensors`` (MagMax on sequential fine-tunes, or the
first merge; first seed).  While it works, ``state/`` holds checkpoints; a run goes on after its
last finished task.  A run that has ``results.json`` is finished.
"""

from __future__ import annotations

import contextlib
import json as jsonlib
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import jax

from jaxmerge.errors import UserError
from jaxmerge.io.places import working
from jaxmerge.io.untrusted import read_json
from jaxmerge.studies.config import AnyExperiment, Experiment
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.settings import restored
from jaxmerge.training import checkpoint, data_parallel

NAME, SET = "experiment", "set"  # keys of config.json beside the settings


def new_run(experiment: Experiment, out: str | Path | None, given: Sequence[str] = ()) -> Path:
    """Make the folder and its config.json; by default runs/<date>-<name>.

    Args:
        given: the ``--set`` of the command line, kept for a resume: the rest comes from the file.
    """
    if not data_parallel.first():
        data_parallel.wait("run folder")
        return Path(str(out))
    if out is None:
        if jax.process_count() > 1:
            raise UserError("A distributed run needs --out: one folder that all processes see.")
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
    _note(folder, experiment, given)
    data_parallel.wait("run folder")
    return folder


def _note(folder: Path, experiment: Experiment, given: Sequence[str]) -> None:
    settings = {NAME: experiment.name, SET: list(given), **to_plain(experiment)}
    checkpoint.replace(folder / "config.json", jsonlib.dumps(settings, indent=1) + "\n")


def move(folder: Path, experiment: Experiment, given: Sequence[str]) -> None:
    """Go on with other `Experiment.movable` settings; a task that is half learnt begins again, so
    that the figures are those of a run that had them from the start."""
    with alone(folder):
        _note(folder, experiment, given)
        if data_parallel.first():
            for half in (folder / "state").rglob("training_*"):
                shutil.rmtree(half, ignore_errors=True)
    data_parallel.wait("run moved")


def alone(folder: Path) -> contextlib.AbstractContextManager:
    """Keeps other commands from working in a run folder at the same time; UserError if one does."""
    return working(folder.resolve()) if data_parallel.first() else contextlib.nullcontext()


def given(folder: str | Path) -> list[str] | None:
    """The ``--set`` that a run was started with; None where its config.json does not tell."""
    return read_json(Path(folder) / "config.json").get(SET)


def read_run(folder: str | Path, experiment: AnyExperiment) -> AnyExperiment:
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
        settings = read_json(folder / "config.json")
        if settings.pop(NAME) != experiment.name:
            raise KeyError(NAME)
        settings.pop(SET, None)
        return restored(experiment, settings)
    except (jsonlib.JSONDecodeError, TypeError, KeyError, AttributeError, ValueError) as error:
        what = f"it is not of {experiment.name!r}" if isinstance(error, KeyError) else error
        raise UserError(f"{folder}/config.json cannot be used: {what}.") from None


def refuse_changes(folder: str | Path, old: Experiment, now: Experiment) -> None:
    """Raise UserError that shows every setting that differs from the run's."""
    differ = differences(to_plain(old), to_plain(now))
    if differ:
        raise UserError(
            f"{folder} cannot go on with another configuration ({'; '.join(differ)}). "
            "Leave these options out, or start a new run."
        )


def differences(old: dict, now: dict, where: str = "") -> list[str]:
    """What differs between two nested settings, one line each.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}})
    ['a.b: 1 in the run, 3 now', 'c: 2 in the run, nothing now']
    """
    lines = []
    for k in {**old, **now}:
        name, a, b = f"{where}{k}", old.get(k), now.get(k)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            shown = [repr(d[k]) if k in d else "nothing" for d in (old, now)]
            lines.append(f"{name}: {shown[0]} in the run, {shown[1]} now")
    return lines


def finished(folder: str | Path) -> bool:
    """Whether a run has its results."""
    return (Path(folder) / "results.json").exists()


def discard(folder: Path) -> None:
    """Take back the folder of a run that kept nothing, so that its --out is free again."""
    if data_parallel.first():
        (folder / "config.json").unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()
