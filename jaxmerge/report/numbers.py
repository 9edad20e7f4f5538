"""What captions and pictures read from `Results`: names, figures of the table, means over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from jaxmerge.studies.conversion import from_plain, to_plain
from jaxmerge.studies.results import Entry, Results, Stat

Name = tuple[str, str]  # label, finetunes
JOINT, ZERO, LAST = ("joint", "joint"), ("zero-shot", "none"), ("last model", "sequential")
CONSTANT = ("none", "joint")  # these never learn task after task


# What XML and terminals cannot hold: control characters, halves of surrogate pairs, non-characters.
UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def clean(results: Results) -> Results:
    """The same results, fit to be shown: unfit characters become "\ufffd", NaN becomes None."""

    def walk(x: Any) -> Any:
        if isinstance(x, dict):
            return {walk(k): walk(v) for k, v in x.items()}
        if isinstance(x, list):
            return [walk(v) for v in x]
        return UNFIT.sub("\ufffd", x) if isinstance(x, str) else x

    return from_plain(Results, walk(to_plain(results)), "results")


def names(results: Results) -> list[Name]:
    """All rows of the table, in its order."""
    return [(s.label, s.finetunes) for s in results.summary]


def stat(results: Results, name: Name, metric: str = "accuracy") -> Stat | None:
    """One figure of the table."""
    for s in results.summary:
        if (s.label, s.finetunes) == name:
            return s.metrics.get(metric)
    return None


def merges(results: Results) -> list[Name]:
    """The rows that are merges."""
    return [n for n in names(results) if n[1] not in CONSTANT and n[0] != LAST[0]]


def other_ways(results: Results) -> list[Name]:
    """The last models of other ways of learning than plain fine-tuning: LwF, EWC and their like."""
    plain = ("sequential", "independent", *CONSTANT)
    return [n for n in names(results) if n[0] == LAST[0] and n[1] not in plain]


def hero(results: Results) -> Name | None:
    """The method the report is about: MagMax on sequential fine-tunes, else the best merge."""
    have = merges(results)
    for wanted in (("MagMax", "sequential"), ("MagMax", "independent")):
        if wanted in have:
            return wanted
    return best(results)


def best(results: Results, metric: str = "accuracy") -> Name | None:
    """The merge with the highest mean."""
    means = [(s.mean, n) for n in merges(results) if (s := stat(results, n, metric)) is not None]
    return max(means, key=lambda pair: pair[0])[1] if means else None


def entries(results: Results, name: Name) -> list[Entry]:
    """The entries of one method, one for each seed that has it."""
    return [e for run in results.seeds for e in run.entries if (e.label, e.finetunes) == name]


def differences(results: Results, a: Name, b: Name, metric: str = "accuracy") -> list[float]:
    """a minus b, seed by seed (same stream, same fine-tunes)."""
    out = []
    for run in results.seeds:
        value = {(e.label, e.finetunes): e.metrics.get(metric) for e in run.entries}
        x, y = value.get(a), value.get(b)
        if x is not None and y is not None:
            out.append(x - y)
    return out


def median(edges: Sequence[float], counts: Sequence[int]) -> float | None:
    """The median of a histogram, as the middle of its bin."""
    half, seen = sum(counts) / 2, 0
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        seen += count
        if half and seen >= half:
            return (low + high) / 2
    return None


def mean_row(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [m for m, _ in mean_std(rows)]


def mean_std(rows: Sequence[Sequence[float | None]]) -> list[tuple[float | None, float | None]]:
    """Place by place over seeds, mean and sample standard deviation; None where one is missing."""
    out: list[tuple[float | None, float | None]] = []
    for column in zip(*rows, strict=False):
        if any(x is None for x in column):
            out.append((None, None))
            continue
        mean = sum(column) / len(column)
        spread = sum((x - mean) ** 2 for x in column)
        out.append((mean, math.sqrt(spread / (len(column) - 1)) if len(column) > 1 else 0.0))
    return out


def mean_matrix(matrices: Sequence[Sequence[Sequence[float | None]]]) -> list[list[float | None]]:
    """Entry by entry over seeds; None where one is missing."""
    return [mean_row(rows) for rows in zip(*matrices, strict=False)]
