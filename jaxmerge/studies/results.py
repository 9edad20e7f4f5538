"""What a continual-learning run leaves behind: `Results`, written as ``results.json``.

::

    Results                    one experiment
      recipe, versions, machine, seconds
      seeds: [SeedRun]         one class order and one seed each
        tasks:   [Task]        what the stream was
        entries: [Entry]       one row of the table each: a method on one set of fine-tunes
        vectors: [Vectors]     what the task vectors look like, for each set of fine-tunes
      summary: [Summary]       the entries again, mean and standard deviation over seeds

Units: accuracies and everything derived from them are fractions in [0, 1] (reports show percent),
times are seconds.  What was not measured is None (``null``), never 0; JSON never holds NaN.

The accuracy matrix ``R[t][i]`` is the accuracy on task i's test images after task t was learnt,
rows t and columns i from 0 to T-1, tasks in the order of the stream.  Task-agnostic: the argmax is
taken over all classes of the scenario; task-aware: over the classes of task i only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError, writing
from jaxmerge.io.untrusted import parse_json, read_json
from jaxmerge.studies.conversion import checked, from_plain, to_plain

SCHEMA = "jaxmerge.results/1"
Matrix = list[list[float | None]]  # [T][T]; a row that was not measured holds None


@checked
@dataclasses.dataclass
class Task:
    """One task of the stream: its class names in the order of its labels, and image counts."""

    name: str
    classes: list[str]
    train: int
    val: int
    test: int


@checked
@dataclasses.dataclass
class Sweep:
    """How a merge factor was chosen: accuracy on the validation split for every factor tried."""

    factors: list[float]
    accuracy: list[float]
    chosen: float


@checked
@dataclasses.dataclass
class Entry:
    """One method on one set of fine-tuned models, in one seed.

    Attributes:
        label: what a table shows: "MagMax", "TIES", "last model", "zero-shot", "joint".
        finetunes: which models it was made of: "sequential", "independent", "joint" or "none".
        method: the recipe as jaxmerge prints it, "magmax(factor=0.45)"; "" when nothing is merged.
        matrix: R[t][i], task-agnostic.  Constant methods (zero-shot, joint) repeat one row;
            methods evaluated at the end only have None in all rows but the last.
        aware: the same, task-aware.
        over_time: [T], after each task the mean of R[t][0..t]: accuracy on the tasks seen so far.
        metrics: "accuracy" (mean of the last row), "aware" (the same, task-aware), "over_time"
            (mean of `over_time`), "bwt", "fwt", "forgetting", "per_class", "normalised" and the
            others of `jaxmerge.evaluation.definitions`; None where it was not measured.
        sweep: how the factor was chosen at the end of the stream, or None.
        factors: [T], the factor in use after each task, or None.
        fixed: the factor, where each of several factors is a row of its own.
    """

    label: str
    finetunes: str
    method: str
    matrix: Matrix
    aware: Matrix
    over_time: list[float | None]
    metrics: dict[str, float | None]
    sweep: Sweep | None = None
    factors: list[float | None] | None = None
    fixed: float | None = None


@checked
@dataclasses.dataclass
class Vectors:
    """What the T task vectors (model minus base) of one set of fine-tunes look like.

    Attributes:
        finetunes: "sequential" or "independent".
        norm: [T], Euclidean norm of each task vector.
        relative: [T], the norm divided by that of the base weights.
        cosine: [T][T], cosine similarity between task vectors.
        sign_agreement: [T][T], share of entries, non-zero in both, that have the same sign.
        magnitude_edges: [B+1], bin edges of log10 |tau|.
        magnitude_counts: [T][B], how many entries of each task vector fall into a bin (zeros and
            what lies outside the edges are in none).
        magmax_share: [T], share of entries that MagMax takes from each task vector.
    """

    finetunes: str
    norm: list[float]
    relative: list[float]
    cosine: Matrix
    sign_agreement: Matrix
    magnitude_edges: list[float]
    magnitude_counts: list[list[int]]
    magmax_share: list[float]


@checked
@dataclasses.dataclass
class SeedRun:
    """One seed: `order` is the class order, `seconds` the time of each phase over all streams, and
    `streams` the same for each of them: the budget of a method is its "training"."""

    seed: int
    order: list[int]
    tasks: list[Task]
    entries: list[Entry]
    vectors: list[Vectors]
    seconds: dict[str, float]
    streams: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


@checked
@dataclasses.dataclass
class Stat:
    """Mean and sample standard deviation over the `n` seeds that have the figure (std 0 at n=1)."""

    mean: float
    std: float
    n: int


@checked
@dataclasses.dataclass
class Summary:
    """One row of the final table: metric name -> `Stat` over seeds, None where nobody has it."""

    label: str
    finetunes: str
    metrics: dict[str, Stat | None]


@checked
@dataclasses.dataclass
class Results:
    """A whole experiment; see the module's picture.

    Attributes:
        experiment: "quickstart" or the name of the experiment file.
        scenario: one line: "class-incremental, 5 tasks of 2 classes, scikit-learn digits".
        classes: all class names; `SeedRun.order` indexes them.
        recipe: every option that decides the figures, as plain JSON.
        seeds: the runs.
        summary: the table, in the order in which it is shown.
        versions: package -> version.
        machine: "platform", "cpus", "backend", "device" ...
        seconds: phase -> seconds summed over seeds, "total" the wall time of the whole run.
        peak_memory: peak resident memory in bytes, of the largest process if the run was resumed;
            None: unknown.

    >>> results = Results("toy", "one task", ["cat"], {}, [], [], {}, {}, {})
    >>> Results.from_json(results.to_json()) == results
    True
    >>> results.check("here")  # nothing is wrong
    """

    experiment: str
    scenario: str
    classes: list[str]
    recipe: dict[str, Any]
    seeds: list[SeedRun]
    summary: list[Summary]
    versions: dict[str, str]
    machine: dict[str, Any]
    seconds: dict[str, float]
    peak_memory: int | None = None
    schema: str = SCHEMA

    def to_json(self, path: str | Path | None = None) -> str:
        """The results as JSON text; also written to `path` (atomically) if one is given.

        Args:
            path: of the file, or None.
        """
        text = json.dumps(to_plain(self), indent=1, allow_nan=False) + "\n"
        text = re.sub(r"\[\s+[^][{}]*?\s+\]", lambda m: re.sub(r"\n\s*", " ", m[0]), text)
        if path is not None:
            path = Path(path)
            new = path.with_name(path.name + ".new")
            with writing(path):
                new.write_text(text)
            new.replace(path)
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> Results:
        """Read results from a file, or from JSON text.

        Args:
            source: a path, or text that begins with "{".

        Raises:
            ValueError: another schema, or fields that are missing or unknown.
        """
        text = str(source)
        if text.lstrip().startswith("{"):
            data, where = parse_json(text, "results"), "results"
        else:
            data, where = read_json(source), str(source)
        if data.get("schema") != SCHEMA:
            raise UserError(
                f"{where}: results of the schema {data.get('schema')!r}, expected {SCHEMA!r}; read "
                "them with the version of jaxmerge that wrote them."
            )
        results = from_plain(cls, data, where)
        results.check(where)
        return results

    def check(self, where: str) -> None:
        """Raise UserError where matrices are not square, or entries do not fit their tasks.

        Args:
            where: what messages call the results.
        """
        for key in ("streams", "merges"):
            table = self.recipe.get(key, {})
            if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
                raise UserError(f"{where}: recipe.{key} must map names to settings.")
        for i, run in enumerate(self.seeds):
            for e in run.entries:
                at, tasks = f"{where}: seeds[{i}], {e.label!r}", len(e.over_time)
                for name, matrix in (("matrix", e.matrix), ("aware", e.aware)):
                    if len(matrix) != tasks or any(len(row) != tasks for row in matrix):
                        raise UserError(f"{at}: {name} is not {tasks} by {tasks}.")

    def entry(self, label: str, finetunes: str, seed: int = 0) -> Entry:
        """The entry of one method in the run number `seed` (position, not the seed's value).

        Args:
            label: of the method.
            finetunes: of the stream.
            seed: position of the run in `seeds`.
        """
        for e in self.seeds[seed].entries:
            if (e.label, e.finetunes) == (label, finetunes):
                return e
        have = [(e.label, e.finetunes) for e in self.seeds[seed].entries]
        raise KeyError(f"No entry {(label, finetunes)}; there are {have}.")


def summarize(seeds: list[SeedRun]) -> list[Summary]:
    """Mean and standard deviation over seeds of every metric of every entry.

    Args:
        seeds: the runs.

    >>> from jaxmerge.studies.results import Entry, SeedRun, summarize
    >>> entry = lambda a: Entry("MagMax", "sequential", "", [[a]], [[a]], [a], {"accuracy": a})
    >>> runs = [SeedRun(s, [0], [], [entry(a)], [], {}) for s, a in enumerate([0.5, 1.0])]
    >>> summarize(runs)[0].metrics["accuracy"]
    Stat(mean=0.75, std=0.3535533905932738, n=2)
    """
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in seeds:
        for e in run.entries:
            by_metric = rows.setdefault((e.label, e.finetunes), {})
            for name, value in e.metrics.items():
                by_metric.setdefault(name, []).extend([] if value is None else [value])
    return [
        Summary(label, finetunes, {name: _stat(values) for name, values in metrics.items()})
        for (label, finetunes), metrics in rows.items()
    ]


def _stat(values: list[float]) -> Stat | None:
    n = len(values)
    if n == 0:
        return None
    mean = sum(values) / n
    spread = sum((v - mean) ** 2 for v in values)
    return Stat(mean, math.sqrt(spread / (n - 1)) if n > 1 else 0.0, n)
