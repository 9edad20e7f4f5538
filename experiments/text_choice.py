"""The learning rate of the text streams, and strengths under it: chosen on validation sentences.

Class orders 10 and 11 are in no table.  One learning rate for all methods: that of the best joint
training, which forgets nothing and favours no method, over both orders.  Then one strength of LwF,
of EWC and of L2 under that rate, by their last model, on order 10 alone: three values, and further
ones while the best stands at an end.  What was tried is written beside what was chosen.

Joint training picks 1e-4, by 0.07 points before 2e-4, which is within noise.  The rule was made
after the rates had been tried: the mean of last model, MagMax and joint training, meant at first,
has 5e-5 in front of 1e-4 by 0.2 points.  The file has all three at every rate: at 5e-5 the last
model is 2.1 points better and MagMax 1.4 worse than at 1e-4, at 2e-4 they are 4.6 and 0.1 worse, so
the rate decides how far apart they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import text_runs
from text_runs import Job, Run, chosen, work

from jaxmerge.studies.results import Results

ON_VALIDATION = ["validation=true", "merges.MagMax.factor=0.5"]
TWO_ROWS = {"sequential": ["streams.sequential.deploys=[last model, MagMax]"]}


@dataclass
class Choice:
    """A setting, the values to choose from, and by what.

    Attributes:
        key: its name for ``--set``.
        values: in order of size.
        ways: the ways of learning that are run with each.
        orders: the class orders that they learn.
        row: the row whose mean accuracy decides.
        first: where in `values` the search begins, from and to; it follows the best past an end.
        tried: value -> row -> accuracy.
    """

    key: str
    values: tuple[float, ...]
    ways: tuple[str, ...]
    orders: tuple[int, ...] = (10,)
    row: str = "last model"
    first: tuple[int, int] = (2, 5)
    tried: dict[float, dict[str, float]] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Of those tried."""
        return max(self.tried, key=lambda value: self.tried[value][self.row])

    def next(self) -> Sequence[float]:
        """The values to try now: the first ones, or the one past the end where the best stands."""
        if not self.tried:
            return self.values[slice(*self.first)]
        low, high = min(self.tried), max(self.tried)
        beyond = {
            low: [v for v in self.values if v < low][-1:],
            high: [v for v in self.values if v > high][:1],
        }
        return beyond.get(self.best, ())

    def jobs(self, value: float, folder: Path, more: Sequence[str]) -> list[Job]:
        """The runs with one value.

        Args:
            value: of the setting.
            folder: for the runs' folders.
            more: for ``--set``.
        """
        return [
            Job(
                run,
                folder / "choice" / f"{run.name}_{self.key}={value:g}",
                [*ON_VALIDATION, *TWO_ROWS.get(run.way, []), f"{self.key}={value}", *more],
            )
            for order in self.orders
            for run in (Run("clinc150", 10, order, way) for way in self.ways)
        ]


def rates() -> list[Choice]:
    """The learning rate, by joint training; what MagMax does at each is noted too."""
    values = (5e-5, 1e-4, 2e-4, 4e-4)
    return [Choice("lr", values, ("sequential", "joint"), (10, 11), "joint", (0, 4))]


def strengths() -> list[Choice]:
    """Those of LwF, EWC and L2."""
    return [
        Choice(
            "streams.LwF.methods.lwf.strength", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), ("LwF",)
        ),
        Choice(
            "streams.EWC.methods.ewc_magmax.strength", (1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8), ("EWC",)
        ),
        Choice(
            "streams.L2.methods.l2.strength", (1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0), ("L2",)
        ),
    ]


WHAT = {"lr": rates, "strengths": strengths}


def choose(what: str, data: Path, folder: Path, more: Sequence[str], at_once: int) -> None:
    """Choose the learning rate, or the strengths under it, and write them down.

    Args:
        what: "lr" or "strengths".
        data: the folder with clinc150/.
        folder: with the runs' folders.
        more: for ``--set`` of every run.
        at_once: runs at once.
    """
    file = text_runs.SETTINGS
    noted: dict[str, Any] = {"chosen": {}, "tried": {}, "orders": {}}
    if what != "lr":  # strengths that were chosen under another rate go
        noted |= json.loads(file.read_text()) if file.exists() else {}
        more = [*chosen("lr"), *more]
    choices = WHAT[what]()
    while asked := [(choice, value) for choice in choices for value in choice.next()]:
        runs = [choice.jobs(value, folder, more) for choice, value in asked]
        work([job for jobs in runs for job in jobs], data, at_once, lambda: None)
        for (choice, value), jobs in zip(asked, runs, strict=True):
            choice.tried[value] = scores(jobs)
    for choice in choices:
        noted["chosen"][choice.key] = choice.best
        noted["tried"][choice.key] = {f"{v:g}": choice.tried[v] for v in sorted(choice.tried)}
        noted["orders"][choice.key] = choice.orders
    file.write_text(json.dumps(noted, indent=1) + "\n")


def scores(jobs: Sequence[Job]) -> dict[str, float]:
    """Row -> its mean accuracy over the runs that have it; the zero-shot model is left out.

    Args:
        jobs: finished ones.
    """
    ended = [Results.from_json(job.place / "results.json").seeds[0].entries for job in jobs]
    rows: dict[str, list[float]] = {}
    for entry in (e for entries in ended for e in entries if e.label != "zero-shot"):
        score = entry.metrics["accuracy"]
        assert score is not None  # every run ends with one
        rows.setdefault(entry.label, []).append(score)
    return {label: sum(scores) / len(scores) for label, scores in rows.items()}
