"""Which tests run by default: a sample that takes a few minutes; CI and `-m` run them all.

A test function with many cases (the laws, over every method) costs most of the time, and one case
says most of what all say.  By default a function runs as many of its cases as fit into `FUNCTION`
seconds, at least the quickest one, and a single test that takes longer than `SINGLE` does not run.
The others carry the marker ``more``, which the default expression leaves out:

    pytest                                              # the sample
    pytest -m "not slow and not parity and not bench"   # all of them, as CI does

Processor seconds are those of a recorded run (``durations.json``; tests that are new there
all run):

    JAXMERGE_DURATIONS=tests/durations.json pytest -m "not slow and not parity and not bench"
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

FILE = Path(__file__).with_name("durations.json")
FUNCTION = 0.3  # processor seconds of all cases of one function
SINGLE = 2.0
LEAST = 0.1  # shorter tests are not recorded


def left_out(names: Sequence[str], seconds: Mapping[str, float]) -> set[str]:
    """Node ids that do not run by default.

    >>> sorted(left_out(["a::t[1]", "a::t[2]", "a::t[3]", "a::u"], {"a::t[1]": 2, "a::t[2]": 0.2}))
    ['a::t[1]']
    """
    functions: dict[str, list[str]] = {}
    for name in names:
        functions.setdefault(name.partition("[")[0], []).append(name)
    out: set[str] = set()
    for cases in functions.values():
        spent = 0.0
        for k, name in enumerate(sorted(cases, key=lambda n: seconds.get(n, 0.0))):
            spent += seconds.get(name, 0.0)
            if seconds.get(name, 0.0) > SINGLE or (k > 0 and spent > FUNCTION):
                out.add(name)
    return out


def recorded() -> dict[str, float]:
    """Node id -> seconds."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def record(seconds: Mapping[str, float], path: Path) -> None:
    """Write what a run measured."""
    shown = {n: round(s, 2) for n, s in sorted(seconds.items()) if s >= LEAST}
    path.write_text(json.dumps(shown, indent=0) + "\n")
