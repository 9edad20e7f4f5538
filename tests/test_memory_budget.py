"""What --check says of one large leaf: bounded by the budget where the leaf can be cut."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from jaxmerge.cli import merge as command
from jaxmerge.cli.cost import PROCESS, cost, too_large
from jaxmerge.drivers.files import memory_budget
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


@pytest.mark.parametrize("method", ["opcm", "dop", "iso_c"])
def test_programs_are_asked_before_a_matrix_is_merged(tmp_path, method, monkeypatch):
    """What a large matrix goes through, on a small one: the same bytes."""
    leaves = {f"m{i}": {"a.weight": np.random.default_rng(i).random((12, 8), np.float32)}
              for i in range(3)}  # fmt: skip
    for name, content in leaves.items():
        (tmp_path / name).mkdir()
        save_file(content, tmp_path / name / "model.safetensors")
    options = {"steps": 2} if method == "dop" else {}
    recipe = {"base": "m0", "models": ["m1", "m2"], "method": {method: options}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    command.run(tmp_path / "r.yaml", tmp_path / "small", quiet=True)
    monkeypatch.setattr(memory_budget, "ROUGH", 0)
    command.run(tmp_path / "r.yaml", tmp_path / "large", quiet=True)
    small, large = (load_file(tmp_path / n / "model.safetensors") for n in ("small", "large"))
    assert small["a.weight"].tobytes() == large["a.weight"].tobytes()


def test_what_lapack_takes_for_itself_is_counted():
    with jax.enable_x64(True):
        program = jax.jit(jnp.linalg.eigh).lower(jax.ShapeDtypeStruct((300, 300), jnp.float64))
    matrix = 8 * 300 * 300
    assert memory_budget._workspace(program) == 2 * matrix
    assert memory_budget._bytes(program) >= 4 * matrix  # with what goes in and out
