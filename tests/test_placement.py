"""Where leaves lie on eight devices: the table of docs/scaling.md, measured again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import pytest

import jaxmerge as jm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
import placement  # noqa: E402

ROWS = json.loads(placement.RESULTS.read_text())["methods"]
FEW = ("magmax", "model_stock", "opcm")  # the others are slow


@pytest.fixture(autouse=True, scope="module")
def counted():
    """Compilations are counted."""
    jax.monitoring.register_event_duration_secs_listener(placement.count)


def test_every_method_has_a_row_and_none_loses_its_sharding():
    ours = {n for n, f in jm.REGISTRY.items() if f.__module__.startswith("jaxmerge.")}
    assert set(ROWS) == ours == set(placement.names()) & ours  # tests register more
    assert all(row["kept"] and not row["again"] for row in ROWS.values())


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in ROWS]
)
def test_the_table_is_what_is_measured(name):
    """Other versions of XLA may gather otherwise, not more; temporaries are theirs to choose."""
    now, then = placement.measured(name), ROWS[name]
    assert now["kept"]
    assert not now["again"]
    for place in ("longer", "shorter"):
        assert now[place]["gathered"] <= then[place]["gathered"] + 0.01
