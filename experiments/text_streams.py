"""CLINC150 and Banking77 with all their sentences: the tables' runs, the most telling first.

    python experiments/text_streams.py --data DATA --work runs/text            # all, resumable
    python experiments/text_streams.py --data DATA --work runs/text --choose   # rates and strengths
    python experiments/text_streams.py --data DATA --work runs/text --only sequential,joint --jobs 8
    python experiments/text_streams.py --work runs/text --only-results         # what is done so far

A run is one way of learning of one class order: a process of its own with a folder of its own under
`--work`, where its log is too; stopped at any moment (Ctrl-C, a kill) it goes on from its last
checkpoint with the same figures.  `--jobs` run at once, for a GPU (with
``XLA_PYTHON_CLIENT_PREALLOCATE=false`` and a compilation cache in ``JAX_COMPILATION_CACHE_DIR``).
After every run the finished ones are put together in ``experiments/results/``:
``clinc150_10_full.json`` and so on, an order as soon as its sequential stream is done.  What these
files hold under the settings of now (learning rate, strengths, the merges' factors) is not run
again: a machine without the folders goes on.  What they hold under others is run again, way by way,
and stays until it is: ``recipe.older`` in the file says what such rows were made under.

All training and test sentences are used; of the validation split five of each intent, since every
factor passes over them after every task.  `runs` is the order of work: ten tasks of CLINC150, the
two streams that every merge is compared on and joint training; Banking77; LwF, EWC and L2; five and
thirty tasks.

**How the settings were chosen.**  ``--choose`` trains on class orders 10 and 11, which are in no
table, scores on validation sentences, and writes ``experiments/results/text_settings.json``, where
the runs read them; without that file they are those of the experiments.  One learning rate for all
methods: that of the best joint training, which forgets nothing and favours no method.  It is 1e-4,
by 0.07 points before 2e-4, which is within noise.  The rule was made after the rates had been
tried: the mean of last model, MagMax and joint training, meant at first, has 5e-5 in front of 1e-4
by 0.2 points.  The file has all three at every rate: at 5e-5 the last model is 2.1 points better
and MagMax 1.4 worse than at 1e-4, at 2e-4 they are 4.6 and 0.1 worse, so the rate decides how far
apart they are.  Then one strength of LwF, of EWC and of L2 under that rate, by their last model, on
order 10 alone: three values, and further ones while the best stands at an end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from text_results import WAYS, deciding, made_under, together

from jaxmerge.cli import run as command
from jaxmerge.cli import run_folder
from jaxmerge.cli import runs as runs_of
from jaxmerge.errors import not_known, screen
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.results import Results
from jaxmerge.studies.settings import changed

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SETTINGS = RESULTS / "text_settings.json"
ORDERS = (0, 1, 2)
OTHER_ORDERS = (10, 11)  # settings are chosen on; strengths on the first
VALIDATION = "few={val: 5}"  # sentences of an intent that factors are chosen on, after every task
TASKS = ("10", "7", "5", "30")


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


def runs() -> Iterator[Run]:
    """All of them, in the order of work."""
    for order in ORDERS:
        yield from (Run("clinc150", 10, order, way) for way in WAYS[:3])
        yield from (Run("banking77", 7, order, way) for way in WAYS[:3])
    for order in ORDERS:
        yield from (Run("clinc150", 10, order, way) for way in WAYS[3:])
    for order in ORDERS:
        yield from (Run("clinc150", tasks, order, way) for tasks in (5, 30) for way in WAYS[:3])


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


def stored(experiment: str, tasks: int) -> Results | None:
    """What the result file of a stream holds."""
    file = RESULTS / f"{experiment}_{tasks}_full.json"
    return Results.from_json(file) if file.exists() else None


def done(
    experiment: str, tasks: int, folder: Path, more: Sequence[str] = ()
) -> dict[int, dict[str, Results]]:
    """Order -> way -> results of the runs of a stream that are finished, under the settings of now.

    Args:
        experiment, tasks: of the stream.
        folder: with the runs' folders.
        more: for ``--set`` of every run.
    """
    finished: dict[int, dict[str, Results]] = {}
    for run in runs():
        if (run.experiment, run.tasks) != (experiment, tasks):
            continue
        now = deciding(run.recipe(more), run.way)
        for place in sorted(folder.glob(f"{run.name}*")):
            if run_folder.finished(place):
                results = Results.from_json(place / "results.json")
                if deciding(results.recipe, run.way) == now:
                    finished.setdefault(run.order, {})[run.way] = results
    return finished


def in_table(run: Run, more: Sequence[str] = ()) -> bool:
    """Whether the result file of its stream has the rows of a run, made under its settings.

    Args:
        run: one way of learning of one class order.
        more: for ``--set``.
    """
    kept = made_under(stored(run.experiment, run.tasks))
    return kept.get((run.order, run.way)) == deciding(run.recipe(more), run.way)


def place_of(run: Run, folder: Path, more: Sequence[str] = ()) -> Path:
    """The folder of a run: other settings, another folder.

    Args:
        run: one way of learning of one class order.
        folder: with the runs' folders.
        more: for ``--set``.
    """
    text = json.dumps({**run.recipe(more), "data": None}, sort_keys=True)
    return folder / f"{run.name}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def write_results(folder: Path, more: Sequence[str] = ()) -> None:
    """``experiments/results/`` from the runs that are finished.

    Args:
        folder: with the runs' folders.
        more: for ``--set`` of every run.
    """
    for experiment, tasks in dict.fromkeys((r.experiment, r.tasks) for r in runs()):
        whole = together(stored(experiment, tasks), done(experiment, tasks, folder, more))
        if whole:
            whole.to_json(RESULTS / f"{experiment}_{tasks}_full.json")


RATES = (5e-5, 1e-4, 2e-4, 4e-4)
STRENGTHS = {
    ("LwF", "streams.LwF.methods.lwf.strength"): (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    ("EWC", "streams.EWC.methods.ewc_magmax.strength"): (1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8),
    ("L2", "streams.L2.methods.l2.strength"): (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0),
}
FIRST = slice(2, 5)  # of the strengths; one more at an end while the best is there
ON_VALIDATION = ["validation=true", "merges.MagMax.factor=0.5"]
TWO_ROWS = {"sequential": ["streams.sequential.deploys=[last model, MagMax]"]}


def choose(what: str, data: Path, folder: Path, more: list[str], at_once: int) -> None:
    """The learning rate, or the strengths under it, on validation sentences of other orders."""
    noted: dict[str, Any] = {"chosen": {}, "tried": {}}
    if what == "lr":  # strengths that were chosen under another rate go
        orders, first = OTHER_ORDERS, slice(None)
        grid = {"lr": (("sequential", "joint"), RATES)}
    else:
        noted = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else noted
        orders, first = OTHER_ORDERS[:1], FIRST
        grid = {key: ((way,), values) for (way, key), values in STRENGTHS.items()}
        more = [*chosen("lr"), *more]

    def jobs(key: str, value: float) -> list[Job]:
        ways = grid[key][0]
        runs = [Run("clinc150", 10, order, way) for order in orders for way in ways]
        place = lambda run: folder / "choice" / f"{run.name}_{key}={value:g}"
        own = lambda run: [*ON_VALIDATION, *TWO_ROWS.get(run.way, []), f"{key}={value}", *more]
        return [Job(run, place(run), own(run)) for run in runs]

    def best(key: str) -> str:
        row = "joint" if what == "lr" else "last model"
        return max(tried[key], key=lambda value: tried[key][value][row])

    def beyond(key: str, values: Sequence[float]) -> Sequence[float]:
        """The next value past an end of those tried, if the best stands there."""
        known = [i for i, value in enumerate(values) if f"{value:g}" in tried[key]]
        at = known[0] if best(key) == f"{values[known[0]]:g}" else known[-1]
        further = at - 1 if at == known[0] else at + 1
        at_an_end = best(key) == f"{values[at]:g}" and 0 <= further < len(values)
        return values[further : further + 1] if at_an_end else ()

    tried: dict[str, dict[str, dict[str, float]]] = {key: {} for key in grid}
    now = {key: values[first] for key, (_, values) in grid.items()}
    while now:
        asked = [(key, value) for key, values in now.items() for value in values]
        work([job for one in asked for job in jobs(*one)], data, at_once, lambda: None)
        for key, value in asked:
            tried[key][f"{value:g}"] = _scores(jobs(key, value))
        further = {key: beyond(key, values) for key, (_, values) in grid.items()}
        now = {key: values for key, values in further.items() if values}
    noted["chosen"] |= {key: float(best(key)) for key in grid}
    in_order = lambda key: dict(sorted(tried[key].items(), key=lambda x: float(x[0])))
    noted["tried"] |= {key: in_order(key) for key in grid}
    noted["orders"] = {**noted.get("orders", {}), **{key: orders for key in grid}}
    SETTINGS.write_text(json.dumps(noted, indent=1) + "\n")


def _scores(jobs: list[Job]) -> dict[str, float]:
    """Row -> its mean validation accuracy over the class orders."""
    ended = [Results.from_json(job.place / "results.json").seeds[0].entries for job in jobs]
    rows: dict[str, list[float]] = {}
    for entry in (e for entries in ended for e in entries if e.label != "zero-shot"):
        score = entry.metrics["accuracy"]
        assert score is not None  # every run ends with one
        rows.setdefault(entry.label, []).append(score)
    return {label: sum(scores) / len(scores) for label, scores in rows.items()}


def main() -> None:
    """Choose, run, or put together what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("runs/text"))
    parser.add_argument("--choose", action="store_true", help="learning rate, then strengths")
    parser.add_argument("--choose-only", choices=("lr", "strengths"), help="one of the two")
    parser.add_argument("--only", help=f"ways of learning, of {','.join(WAYS)}")
    parser.add_argument("--tasks", help="numbers of tasks, of 10, 7 (Banking77), 5, 30")
    parser.add_argument("--only-results", action="store_true", help="put together what is done")
    parser.add_argument("--set", action="append", default=[], help="key=value for every run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    options = parser.parse_args()
    ways = options.only.split(",") if options.only else WAYS
    counts = options.tasks.split(",") if options.tasks else TASKS
    for option, given, known in (("only", ways, WAYS), ("tasks", counts, TASKS)):
        if unknown := [x for x in given if x not in known]:
            parser.error(not_known(unknown, known, f"--{option} has no "))
    if options.jobs < 1:
        parser.error(f"--jobs is how many runs at once, 1 or more; got {options.jobs}")
    data, folder = options.data.resolve(), options.work.resolve()
    if options.only_results:
        return write_results(folder, options.set)
    lacking = [n for n in ("clinc150", "banking77") if not (data / n).is_dir()]
    if lacking:
        parser.error(f"--data {options.data} has no folder {' and no '.join(lacking)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parts = ("lr", "strengths") if options.choose else tuple(filter(None, [options.choose_only]))
    for part in parts:
        choose(part, data, folder, options.set, options.jobs)
    if not parts:
        asked = [r for r in runs() if r.way in ways and str(r.tasks) in counts]
        given = {r: [*chosen(r.way), *options.set] for r in asked}
        streams = {(r.experiment, r.tasks) for r in asked}
        finished = {stream: done(*stream, folder, options.set) for stream in streams}
        at_hand = lambda r: r.way in finished[r.experiment, r.tasks].get(r.order, {})
        write_results(folder, options.set)
        left = [r for r in asked if not in_table(r, options.set) and not at_hand(r)]
        jobs = [Job(r, place_of(r, folder, options.set), given[r]) for r in left]
        work(jobs, data, options.jobs, lambda: write_results(folder, options.set))
        write_results(folder, options.set)


if __name__ == "__main__":
    main()
