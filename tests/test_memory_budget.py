"""What --check says of one large leaf: bounded by the budget where the leaf can be cut."""

from __future__ import annotations

import pytest
import yaml

from jaxmerge.cli.cost import PROCESS, cost, too_large
from jaxmerge.drivers.files.memory_budget import ROOM, facts_like, needs
from jaxmerge.io.header import build
from jaxmerge.io.safetensors import Like
from jaxmerge.recipes.native import load
from jaxmerge.recipes.plan import Models

SHAPE = (93_750, 4096)  # 1.5 GB in float32; nothing but headers is read
LEAF = 4 * SHAPE[0] * SHAPE[1]


def job(tmp_path, method, models=3, shape=SHAPE):
    for i in range(models + 1):
        (tmp_path / f"m{i}").mkdir()
        head, entries = build({"w": ("F32", shape)})
        with open(tmp_path / f"m{i}" / "model.safetensors", "wb") as file:
            file.write(head)
            file.truncate(entries["w"].stop)
    names = [f"m{i + 1}" for i in range(models)]
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"base": "m0", "models": names, "method": method})
    )
    return load(tmp_path / "r.yaml")[0].plan(Models([tmp_path]))


@pytest.mark.parametrize(
    "method, models",
    [
        ("magmax", 3),
        ("slerp", 2),
        ("breadcrumbs", 3),
        pytest.param("ties", 3, marks=pytest.mark.slow),
        pytest.param("dare_ties", 3, marks=pytest.mark.slow),
        pytest.param("karcher", 3, marks=pytest.mark.slow),
        pytest.param("model_stock", 3, marks=pytest.mark.slow),
        pytest.param("multislerp", 3, marks=pytest.mark.slow),
    ],
)
def test_a_leaf_that_can_be_cut_is_bounded_by_the_budget(tmp_path, method, models):
    actual = cost(job(tmp_path, method, models), None)["memory"]
    assert actual < PROCESS + ROOM < LEAF


def test_a_matrix_method_says_what_its_programs_take(tmp_path):
    plan = job(tmp_path, "iso_c", shape=(4096, 4096))
    (only,) = plan.jobs
    like = Like((4096, 4096), only.like["w"].dtype)
    measured, closing = facts_like(only, "w")
    together, apart = needs(only, "w", like, measured, closing)
    assert 5 * like.nbytes < together < 20 * like.nbytes  # five leaves go in and out alone
    assert 3 * like.nbytes < apart <= together


def test_a_merge_that_takes_more_than_is_free_says_so_before_it_starts(tmp_path, monkeypatch):
    plan = job(tmp_path, "iso_c", shape=(4096, 4096))
    monkeypatch.setattr("jaxmerge.cli.cost.memory_free", lambda: 500_000_000)
    (line,) = too_large(plan)
    assert "500.00 MB are free" in line
    for free in (None, 64 << 30):
        monkeypatch.setattr("jaxmerge.cli.cost.memory_free", lambda free=free: free)
        assert too_large(plan) == []


def test_what_is_merged_in_pieces_is_never_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxmerge.cli.cost.memory_free", lambda: 1 << 30)
    assert too_large(job(tmp_path, "magmax")) == []


def test_facts_have_the_form_of_real_ones(tmp_path):
    (only,) = job(tmp_path, "ties", shape=(64, 64)).jobs
    measured, closing = facts_like(only, "w")
    assert len(measured) == 3
    assert measured[0][0]["rank"] is None
    assert closing is not None
