"""One run of a text stream: a way of learning, a class order, a process and a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from text_results import WAYS

from jaxmerge.cli import run as command
from jaxmerge.cli import run_folder
from jaxmerge.cli import runs as runs_of
from jaxmerge.errors import screen
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.settings import changed

HERE = Path(__file__).parent
SETTINGS = HERE / "results" / "text_settings.json"
VALIDATION = "few={val: 5}"  # sentences of an intent that factors are chosen on, after every task


class Run(NamedTuple):
    """One way of learning of one class order."""

    experiment: str
    tasks: int
    order: int
    way: str

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.experiment}_{self.tasks}_order{self.order}_{self.way}"

    def settings(self, data: Path) -> list[str]:
        """For ``--set``."""
        others = [way for way in WAYS if way not in (self.way, "joint")]
        known = command.load(HERE / f"{self.experiment}.py").streams
        given = [f"data={data}", f"tasks={self.tasks}", f"seed={self.order}", "seeds=1", VALIDATION]
        given += [f"streams.{way}=null" for way in others if way in known]
        baselines = {"sequential": "zero-shot", "joint": "joint"}.get(self.way, "")
        return [*given, f"baselines=[{baselines}]"]

    def recipe(self, more: Sequence[str] = ()) -> dict[str, Any]:
        """Its settings as its results will have them.

        Args:
            more: for ``--set`` too.
        """
        given = [*self.settings(Path("data")), *chosen(self.way), *more]
        experiment = command.load(HERE / f"{self.experiment}.py")
        return to_plain(changed(experiment, runs_of.settings_of(given)))


class Job(NamedTuple):
    """A run, its folder, and what is set beside its settings."""

    run: Run
    place: Path
    more: list[str]


def chosen(way: str) -> list[str]:
    """The settings that `choose` wrote, for one way of learning."""
    if not SETTINGS.exists():
        return []
    best = json.loads(SETTINGS.read_text())["chosen"]
    return [f"{key}={value}" for key, value in best.items() if key == "lr" or f".{way}." in key]


def work(jobs: Iterable[Job], data: Path, at_once: int, after: Callable[[], None]) -> None:
    """The runs, or what is left of them; ``after()`` when one is finished.

    Raises:
        SystemExit: a run failed; the others are finished first.
    """
    failed: list[str] = []
    running, stopped = [], threading.Event()
    left = [job for job in jobs if not run_folder.finished(job.place)]
    with ThreadPoolExecutor(at_once) as pool:
        try:
            given = data, running, stopped
            for future in as_completed([pool.submit(_process, job, *given) for job in left]):
                job, code = future.result()
                ended = f"exit code {code}" if code else "finished"
                print(f"{job.place.name}: {ended}", flush=True)
                if code:
                    failed.append(f"{job.place}.log")
                after()
        except BaseException:  # stopped: none of those that wait begins, none goes on unseen
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    if failed:
        raise SystemExit("Failed, see\n  " + "\n  ".join(screen(failed)))


def _process(
    job: Job, data: Path, running: list[subprocess.Popen], stopped: threading.Event
) -> tuple[Job, int]:
    file, place = str(HERE / f"{job.run.experiment}.py"), str(job.place)
    if (job.place / "config.json").exists():
        where = ["--resume", place]
    else:
        given = [*job.run.settings(data), *job.more]
        where = ["--out", place, *(part for one in given for part in ("--set", one))]
    job.place.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{place}.log", "a") as log:
        call = [sys.executable, "-m", "jaxmerge", "run", file, *where]
        path = os.pathsep.join(p for p in (str(HERE.parent), os.environ.get("PYTHONPATH")) if p)
        env = {**os.environ, "PYTHONPATH": path}
        process = subprocess.Popen(call, stdout=log, stderr=subprocess.STDOUT, env=env)
        running.append(process)
        if stopped.is_set():  # while it began
            process.terminate()
        return job, process.wait()
