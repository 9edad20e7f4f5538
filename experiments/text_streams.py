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

``--choose`` sets learning rate and strengths (`text_choice.py` says how) in
``experiments/results/text_settings.json``, where the runs read them; without that file they are
those of the experiments.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from text_choice import WHAT, choose
from text_results import WAYS, deciding, made_under, together
from text_runs import HERE, Job, Run, chosen, work

from jaxmerge.cli import run_folder
from jaxmerge.errors import not_known
from jaxmerge.studies.results import Results

RESULTS = HERE / "results"
ORDERS = (0, 1, 2)
TASKS = ("10", "7", "5", "30")


def runs() -> Iterator[Run]:
    """All of them, in the order of work."""
    for order in ORDERS:
        yield from (Run("clinc150", 10, order, way) for way in WAYS[:3])
        yield from (Run("banking77", 7, order, way) for way in WAYS[:3])
    for order in ORDERS:
        yield from (Run("clinc150", 10, order, way) for way in WAYS[3:])
    for order in ORDERS:
        yield from (Run("clinc150", tasks, order, way) for tasks in (5, 30) for way in WAYS[:3])


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


def main() -> None:
    """Choose, run, or put together what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("runs/text"))
    parser.add_argument("--choose", action="store_true", help="learning rate, then strengths")
    parser.add_argument("--choose-only", choices=WHAT, help="one of the two")
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
    parts = [what for what in WHAT if options.choose or what == options.choose_only]
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
