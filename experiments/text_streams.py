"""CLINC150 and Banking77 with all their sentences: the tables' runs, the most telling first.

    python experiments/text_streams.py --data DATA --work runs/text            # all, resumable
    python experiments/text_streams.py --data DATA --work runs/text --choose   # rates and strengths
    python experiments/text_streams.py --work runs/text --only-results         # what is done so far

A run is one way of learning of one class order, in a folder of its own under `--work`; stopped at
any moment (Ctrl-C, a kill) it goes on from its last checkpoint with the same figures.  After every
run the finished ones are put together in ``experiments/results/``: ``clinc150_10_full.json`` and so
on, an order as soon as its sequential stream is done.

All training and test sentences are used; of the validation split five of each intent, since every
factor passes over them after every task.  `runs` is the order of work: ten tasks of CLINC150 in the
first class order, the two streams that every merge is compared on and joint training, then LwF and
EWC; Banking77; the other orders; five and thirty tasks.

**How the settings were chosen.**  ``--choose`` trains on class orders 10 and 11, which are in no
table, scores on validation sentences, and writes ``experiments/results/text_settings.json``, where
the runs read them; without that file they are those of the experiments.  One learning rate for all
methods, the best mean of last model, MagMax and joint training; then one strength of LwF and of
EWC under it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxmerge.cli import run as command
from jaxmerge.cli import run_folder
from jaxmerge.studies.results import Results, SeedRun, summarize

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SETTINGS = RESULTS / "text_settings.json"
ORDERS = (0, 1, 2)
OTHER_ORDERS = (10, 11)
VALIDATION = "few={val: 5}"  # sentences of an intent that factors are chosen on, after every task
WAYS = ("sequential", "independent", "joint", "LwF", "EWC")


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
        given.append(f"baselines=[{baselines}]")
        if self.tasks > 10:  # the factor of the OPCM paper: 0.3 for 8 tasks, 0.1 for 14 and 20
            given.append("merges.continual TIES.factor=0.1")
        return given + chosen(self.way)


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
        yield from (Run("clinc150", 10, order, way) for way in WAYS[3:])
    for order in ORDERS:
        yield from (Run("clinc150", tasks, order, way) for tasks in (5, 30) for way in WAYS[:3])


def work(run: Run, data: Path, folder: Path, more: list[str]) -> None:
    """One run, or what is left of it."""
    place = folder / run.name
    if run_folder.finished(place):
        return
    print(run.name, flush=True)
    where = {"resume": place} if (place / "config.json").exists() else {"out": place}
    given = [] if "resume" in where else [*run.settings(data), *more]
    command.run(HERE / f"{run.experiment}.py", set=given, **where)


def done(experiment: str, tasks: int, folder: Path) -> dict[int, dict[str, Results]]:
    """Order -> way -> results of the runs of a stream that are finished."""
    finished: dict[int, dict[str, Results]] = {}
    for order in ORDERS:
        for way in WAYS:
            place = folder / Run(experiment, tasks, order, way).name
            if run_folder.finished(place):
                finished.setdefault(order, {})[way] = Results.from_json(place / "results.json")
    return {order: ways for order, ways in finished.items() if "sequential" in ways}


def together(finished: dict[int, dict[str, Results]]) -> Results:
    """The runs of a stream as one: a seed for every order, with the rows of all its ways."""
    seeds = [_one_order(ways) for ways in finished.values()]
    every = [r for ways in finished.values() for r in ways.values()]
    first = every[0]
    streams = {k: v for r in every for k, v in r.recipe["streams"].items()}
    baselines = list(dict.fromkeys(b for r in every for b in r.recipe["baselines"]))
    recipe = {**first.recipe, "streams": streams, "baselines": baselines, "seeds": len(seeds)}
    return dataclasses.replace(
        first,
        recipe={**recipe, "data": "data"},
        seeds=seeds,
        summary=summarize(seeds),
        seconds=_added(r.seconds for r in every),
        peak_memory=max(r.peak_memory or 0 for r in every) or None,
    )


def _one_order(ways: dict[str, Results]) -> SeedRun:
    runs = [r.seeds[0] for r in ways.values()]
    rows = [e for run in runs for e in run.entries]
    return dataclasses.replace(
        runs[0],
        entries=sorted(rows, key=lambda e: e.finetunes == "joint"),  # joint training is the end
        seconds=_added(run.seconds for run in runs),
        streams={k: v for run in runs for k, v in run.streams.items()},
    )


def _added(parts: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for seconds in parts:
        for phase, spent in seconds.items():
            total[phase] = total.get(phase, 0.0) + spent
    return total


def write_results(folder: Path) -> None:
    """``experiments/results/`` from the runs that are finished."""
    for experiment, tasks in dict.fromkeys((r.experiment, r.tasks) for r in runs()):
        finished = done(experiment, tasks, folder)
        if finished:
            together(finished).to_json(RESULTS / f"{experiment}_{tasks}_full.json")


RATES = (1e-4, 2e-4, 4e-4)
STRENGTHS = {
    ("LwF", "streams.LwF.methods.lwf.strength"): (0.1, 0.3, 1.0),
    ("EWC", "streams.EWC.methods.ewc_magmax.strength"): (1e4, 1e5, 1e6, 1e7),
}


def choose(data: Path, folder: Path, more: list[str]) -> None:
    """Learning rate and strengths on validation sentences of other class orders."""
    tried: dict[str, dict[str, float]] = {}
    best: dict[str, float] = {}
    scored = ["validation=true", "merges.MagMax.factor=0.5", VALIDATION]
    scored.append("streams.sequential.deploys=[last model, MagMax]")
    for rate in RATES:
        tried.setdefault("lr", {})[f"{rate:g}"] = _score(
            ("sequential", "joint"), data, folder, [*scored, f"lr={rate}", *more], f"lr{rate:g}"
        )
    best["lr"] = float(max(tried["lr"], key=tried["lr"].__getitem__))
    for (way, key), values in STRENGTHS.items():
        for value in values:
            given = [*scored, f"lr={best['lr']}", f"{key}={value}", *more]
            score = _score((way,), data, folder, given, f"{way}{value:g}")
            tried.setdefault(key, {})[f"{value:g}"] = score
        best[key] = float(max(tried[key], key=tried[key].__getitem__))
    SETTINGS.write_text(json.dumps({"chosen": best, "tried": tried, "orders": OTHER_ORDERS}))


def _score(ways: tuple[str, ...], data: Path, folder: Path, given: list[str], label: str) -> float:
    """Mean validation accuracy of all rows but zero-shot, over the other class orders."""
    scores = []
    for order in OTHER_ORDERS:
        for way in ways:
            run = Run("clinc150", 10, order, way)
            own = run._replace(way=f"{way}_{label}")
            place = folder / "choice" / own.name
            if not run_folder.finished(place):
                print(own.name, flush=True)
                where = {"resume": place} if (place / "config.json").exists() else {"out": place}
                settings = [] if "resume" in where else [*run.settings(data), *given]
                command.run(HERE / "clinc150.py", set=settings, **where)
            results = Results.from_json(place / "results.json")
            rows = [e for e in results.seeds[0].entries if e.label != "zero-shot"]
            scores += [e.metrics["accuracy"] for e in rows]
    return sum(scores) / len(scores)


def main() -> None:
    """Choose, run, or put together what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("runs/text"))
    parser.add_argument("--choose", action="store_true", help="learning rate and strengths")
    parser.add_argument("--only-results", action="store_true", help="put together what is done")
    parser.add_argument("--set", action="append", default=[], help="key=value for every run")
    options = parser.parse_args()
    if options.choose:
        choose(options.data, options.work, options.set)
    elif not options.only_results:
        for run in runs():
            work(run, options.data, options.work, options.set)
            write_results(options.work)
    write_results(options.work)


if __name__ == "__main__":
    main()
