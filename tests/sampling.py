"""Which cases of a test function run: as many as fit into a budget of processor seconds.

A test function with many cases (the laws, over every method) costs most of the time, and one case
says most of what all say:

    pytest                         # the sample of a few minutes: 0.2 seconds a function
    pytest --budget 1 --sample X   # as CI does: more of them, another choice for every X
    pytest --budget 0              # all
    pytest tests/test_laws.py      # all of that file
    pytest --budget 0 --shard 2/8  # one part of eight of all, for several machines

With a sample's name the cases are chosen by it, so that CI, which passes the commit, comes past all
of them in time; without, the quickest run.  A budget also leaves out single tests that take more
than `SINGLE` times as long; of these a sample draws some, the longer the fewer.  Processor seconds
are those of a recorded run (``durations.json``; tests that are new there all run):

    JAXMERGE_DURATIONS=tests/durations.json pytest --budget 0
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

FILE = Path(__file__).with_name("durations.json")
FUNCTION = 0.2  # processor seconds of all cases of one function, by default
SINGLE = 4  # budgets that a single test may take
LEAST = 0.03  # shorter tests are not recorded


def left_out(
    names: Sequence[str], seconds: Mapping[str, float], budget: float = FUNCTION, sample: str = ""
) -> set[str]:
    """Node ids that do not run.

    >>> seconds = {"a::t[1]": 2, "a::t[2]": 0.2}
    >>> sorted(left_out(["a::t[1]", "a::t[2]", "a::t[3]", "a::u"], seconds))
    ['a::t[1]']
    """
    if not budget:
        return set()
    functions: dict[str, list[str]] = {}
    for name in names:
        functions.setdefault(name.partition("[")[0], []).append(name)
    order = (
        (lambda n: zlib.crc32(f"{sample} {n}".encode()))
        if sample
        else (lambda n: seconds.get(n, 0.0))
    )
    out: set[str] = set()
    most = SINGLE * budget
    for cases in functions.values():
        spent = 0.0
        for name in sorted(cases, key=order):
            own = seconds.get(name, 0.0)
            drawn = bool(sample) and zlib.crc32(f"{name} {sample}".encode()) * own <= budget * 2**32
            if (own > most and not drawn) or (spent > 0 and spent + own > budget):
                out.add(name)
            else:
                spent += own
    return out


def of_other_shards(names: Sequence[str], shard: str) -> set[str]:
    """Node ids that another of several machines runs; each runs on one of them.

    Args:
        names: node ids.
        shard: "2/8" for the second of eight, "" for one machine that runs all.

    >>> names = [f"a::t[{k}]" for k in range(9)]
    >>> [len(names) - len(of_other_shards(names, f"{k}/2")) for k in (1, 2)]
    [4, 5]
    """
    if not shard:
        return set()
    k, count = map(int, shard.split("/"))
    if not 1 <= k <= count:
        raise ValueError(f"--shard is K/N with K from 1 to N, got {shard}.")
    return {n for n in names if zlib.crc32(n.encode()) % count != k - 1}


def recorded() -> dict[str, float]:
    """Node id -> seconds."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def record(seconds: Mapping[str, float], path: Path) -> None:
    """Write what a run measured."""
    shown = {n: round(s, 2) for n, s in sorted(seconds.items()) if s >= LEAST}
    path.write_text(json.dumps(shown, indent=0) + "\n")
