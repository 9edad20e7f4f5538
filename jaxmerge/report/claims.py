"""Claims of papers against results: who beats whom, by how much, in how many pairs.

A claim is pairs of rows of a result table, better first, and a metric.  Both rows of a pair were
made on the same tasks in the same order from the same data, so what counts is the difference within
each seed::

    difference_s = metric_s(better) - metric_s(worse)            (turned round where less is better)

A claim *holds* where the mean over its pairs is above zero in every seed, *fails* where it is below
zero in every seed, and is *open* otherwise, as with one seed.  By chance alone three seeds agree on
one side in one case of eight, so a single "holds" is a hint; several streams that agree are more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxmerge.studies.results import Results

Row = tuple[str, str]  # label, fine-tunes
MERGES = ("MagMax", "average", "RandMix", "TIES", "task arithmetic")


class Claim(NamedTuple):
    """What somebody says.

    Attributes:
        text: for the table.
        source: who says it.
        pairs: (better, worse) rows.
        metric: of `Entry.metrics`.
        less: less of the metric is better.
    """

    text: str
    source: str
    pairs: tuple[tuple[Row, Row], ...]
    metric: str = "accuracy"
    less: bool = False


def _one(better: Row, worse: Row) -> tuple[tuple[Row, Row], ...]:
    return ((better, worse),)


SEQUENTIAL, INDEPENDENT = ("MagMax", "sequential"), ("OPCM", "independent")
LAST = ("last model", "sequential")
CLAIMS = (
    Claim(
        "Sequential fine-tunes merge better than independent ones, whatever the merge",
        "MagMax",
        tuple(((m, "sequential"), (m, "independent")) for m in MERGES),
    ),
    *(
        Claim(f"MagMax beats {m} on sequential fine-tunes", "MagMax",
              _one(SEQUENTIAL, (m, "sequential")))
        for m in ("average", "RandMix", "TIES")
    ),
    Claim("MagMax ends above the last model", "MagMax", _one(SEQUENTIAL, LAST)),
    Claim("MagMax forgets less than the last model", "MagMax", _one(SEQUENTIAL, LAST),
          "forgetting", True),
    Claim("MagMax ends above LwF", "MagMax", _one(SEQUENTIAL, ("last model", "LwF"))),
    Claim("MagMax ends above EWC", "MagMax", _one(SEQUENTIAL, ("last model", "EWC"))),
    Claim("MagMax ends above L2", "nobody; asked here", _one(SEQUENTIAL, ("last model", "L2"))),
    Claim("OPCM beats the running average", "OPCM", _one(INDEPENDENT, ("average", "independent"))),
    Claim("OPCM beats continual TIES", "OPCM",
          _one(INDEPENDENT, ("continual TIES", "independent"))),
)  # fmt: skip


class Finding(NamedTuple):
    """What was measured: mean difference in points and its standard error (None with one seed),
    how many of the pairs have a mean above zero, and the verdict."""

    mean: float
    error: float | None
    won: int
    pairs: int
    verdict: str

    def __str__(self) -> str:
        spread = "" if self.error is None else f" ± {self.error:.1f}"
        won = f", {self.won} of {self.pairs} merges" if self.pairs > 1 else ""
        return f"{self.mean:+.1f}{spread}{won}: {self.verdict}"


def check(claim: Claim, results: Results) -> Finding | None:
    """What results say about a claim; None where they lack its rows."""
    differences = []
    for better, worse in claim.pairs:
        try:
            measured = [
                [results.entry(*row, seed=s).metrics[claim.metric] for s in range(_seeds(results))]
                for row in (better, worse)
            ]
        except KeyError:
            continue
        rows = np.array(measured, float)  # what was not measured is NaN
        if np.isnan(rows).any():
            continue
        sign = -100 if claim.less else 100
        differences.append(sign * (rows[0] - rows[1]))
    if not differences:
        return None
    gaps = np.array(differences)  # [pairs, seeds]
    mean, by_seed = float(gaps.mean()), gaps.mean(axis=0)
    error = None
    if len(by_seed) > 1:
        error = float(by_seed.std(ddof=1) / math.sqrt(len(by_seed)))
    verdict = "open"
    if len(by_seed) > 1 and (by_seed > 0).all():
        verdict = "holds"
    if len(by_seed) > 1 and (by_seed < 0).all():
        verdict = "fails"
    won = int(np.sum(gaps.mean(axis=1) > 0))
    return Finding(mean, error, won, len(gaps), verdict)


def _seeds(results: Results) -> int:
    return len(results.seeds)


def markdown(results: Mapping[str, Results]) -> str:
    """A table: one row a claim that a stream has the rows for, one column a stream, points of
    difference."""
    lines = [
        f"| Claim | Source | {' | '.join(results)} |",
        f"| :-- | :-- | {' | '.join(':--' for _ in results)} |",
    ]
    for claim in CLAIMS:
        cells = [check(claim, stream_results) for stream_results in results.values()]
        if not any(cells):
            continue
        shown = " | ".join("–" if c is None else str(c) for c in cells)
        lines.append(f"| {claim.text} | {claim.source} | {shown} |")
    return "\n".join(lines) + "\n"
