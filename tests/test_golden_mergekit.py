"""Merges of small Qwen2-shaped checkpoints, against mergekit's outputs for the same recipes."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmerge as jm

WEIGHTS = [0.3, 0.5, 0.7, 0.2]
DENSITIES = [0.2, 0.3, 0.5, 0.4]
PER_TENSOR = {"scope": "leaf", "tie": "positive"}

CASES = {
    "task_arithmetic": lambda: jm.chain(jm.linear(WEIGHTS), jm.scale(0.8)),
    "ties": lambda: jm.ties(DENSITIES, factor=0.8, weights=WEIGHTS, **PER_TENSOR),
    "ties_raw": lambda: jm.ties(DENSITIES, factor=0.8, weights=WEIGHTS, merge="sum", **PER_TENSOR),
}
NO_BASE = {
    "linear": lambda: jm.linear(WEIGHTS, normalize=True),
    "linear_raw": lambda: jm.linear(WEIGHTS),
}
FEWER = {}


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "mergekit"
    if not folder.is_dir():
        pytest.skip(f"no golden files at {folder}")
    names = ("base", "ft0", "ft1", "ft2", "ft3")
    base, *models = (load_file(folder / "models" / n / "model.safetensors") for n in names)
    return base, models, lambda name: load_file(folder / "expected" / f"{name}.safetensors")


@pytest.mark.parametrize("name", [*CASES, *NO_BASE])
def test_recipe(golden, name):
    base, models, expected = golden
    method = (CASES | NO_BASE)[name]()
    models = models[: FEWER.get(name)]
    out = jm.merge(method, None if name in NO_BASE else base, models)
    want = expected(name)
    assert set(out) == set(want)
    assert max(np.abs(out[n] - want[n]).max() for n in want) <= 1e-6
