"""A few damaged inputs of every format: none is accepted wrongly, each refusal is one clear line.

`experiments/fuzz.py` does this by the thousand; here a bounded number of inputs of each format.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
fuzz = pytest.importorskip("fuzz")
QUICK = [n for n, f in fuzz.FORMATS.items() if not f.slow]
SLOW = [n for n, f in fuzz.FORMATS.items() if f.slow]


def check(name, inputs):
    rows = []
    fuzz.run_inputs(name, range(1000, 1000 + inputs), report=rows.append)
    outcomes = Counter(row["outcome"] for row in rows)
    assert [row for row in rows if row["outcome"] in fuzz.DEFECTS] == []
    assert sum(outcomes.values()) == inputs
    assert outcomes["refused"]


@pytest.mark.parametrize("name", QUICK)
def test_damaged_inputs(name):
    for package, needs in (("pyarrow", "Parquet"), ("gguf", "GGUF")):
        if name == needs:
            pytest.importorskip(package)
    check(name, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_damaged_inputs_that_take_longer(name):
    check(name, 60)
