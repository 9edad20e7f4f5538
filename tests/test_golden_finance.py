"""An instruction vector added to a finance model: the paper's formula on awkward tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracles
import pytest

import jaxmerge as jm

FILE = np.load(Path(__file__).parent / "golden" / "finance_vector" / "vectors.npz")


def leaves(kind: str) -> dict:
    return {k.partition("/")[2]: FILE[k] for k in FILE.files if k.startswith(f"{kind}/")}


@pytest.mark.parametrize(("factor", "kind"), [(1.0, "merged"), (0.3, "merged_lambda0.3"),
                                              (0.5, "merged_lambda0.5")])  # fmt: skip
def test_task_arithmetic(x64, factor, kind):
    base, models = leaves("base"), [leaves("instruct"), leaves("finance")]
    expected = leaves(kind)
    actual = jm.merge(jm.task_arithmetic(factor), base, models)
    assert set(actual) == set(expected)
    apart = lambda actual: max(np.abs(actual[n] - expected[n]).max() for n in expected)
    assert oracles.note("finance_vector", f"task_arithmetic_{kind}", apart(actual)) < 1e-12
    if factor == 1.0:  # the same as an analogy from the base
        again = jm.merge(jm.analogy(), base, [base, *models])
        assert oracles.note("finance_vector", "analogy", apart(again)) < 1e-12
