"""Claims against results whose answer is known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxmerge.report import claims
from jaxmerge.studies.results import Results

QUICKSTART = Path(__file__).parents[1] / "experiments" / "results" / "quickstart.json"
BEATS = claims.Claim("a beats b", "us", ((("MagMax", "sequential"), ("average", "sequential")),))


@pytest.fixture
def results():
    return Results.from_json(QUICKSTART)


def put(results, better, worse):
    for run, x, y in zip(results.seeds, better, worse, strict=True):
        for entry in run.entries:
            if entry.finetunes == "sequential" and entry.label in ("MagMax", "average"):
                value = x if entry.label == "MagMax" else y
                entry.metrics = {**entry.metrics, "accuracy": value, "forgetting": value}


def test_verdicts(results):
    put(results, [0.6, 0.7, 0.8], [0.5, 0.59, 0.71])
    finding = claims.check(BEATS, results)
    np.testing.assert_allclose([finding.mean, finding.error], [10, 1 / 3**0.5], rtol=1e-6)
    assert finding.verdict == "holds"
    assert str(finding) == "+10.0 ± 0.6: holds"
    assert claims.check(BEATS._replace(metric="forgetting", less=True), results).verdict == "fails"
    put(results, [0.6, 0.7, 0.8], [0.5, 0.8, 0.78])
    assert claims.check(BEATS, results).verdict == "open"


def test_one_seed_decides_nothing(results):
    put(results, [0.6, 0.7, 0.8], [0.5, 0.59, 0.71])
    finding = claims.check(BEATS, dataclasses.replace(results, seeds=results.seeds[:1]))
    assert (finding.error, finding.verdict) == (None, "open")


def test_rows_that_are_not_there_are_left_out(results):
    missing = (("SomethingElse", "sequential"), ("average", "sequential"))
    assert claims.check(BEATS._replace(pairs=(missing,)), results) is None
    both = claims.check(BEATS._replace(pairs=(missing, *BEATS.pairs)), results)
    assert both.pairs == 1
    table = claims.markdown({"digits": results})
    assert "| Claim | Source | digits |" in table
    said = [claim.text for claim in claims.CLAIMS if claims.check(claim, results)]
    assert 0 < len(said) < len(claims.CLAIMS)
    rows = table.strip().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == said
