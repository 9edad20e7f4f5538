"""Merges of a small float64 CLIP vision model, against what the official codes make of them."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmerge as jm

CASES = {
    "magmax_lambda0.5": lambda: jm.magmax(factor=0.5),
    "average": lambda: jm.average(),
    "task_arithmetic_lambda0.3": lambda: jm.task_arithmetic(factor=0.3),
} | {
    f"ties_global_k{k}_{merge}_lambda0.55": lambda k=k, merge=merge: jm.ties(
        density=k / 100, factor=0.55, scope="global", merge=merge
    )
    for k in (20, 50)
    for merge in ("mean", "sum", "max")
}
TIED = "encoder.layers.0.mlp.fc1.weight"


@pytest.fixture(scope="module")
def golden():
    folder = Path(__file__).parent / "golden" / "clip_vision"
    base = load_file(folder / "base.safetensors")
    models = [load_file(folder / f"ft{t}.safetensors") for t in range(4)]
    return base, models, lambda name: load_file(folder / "expected" / f"{name}.safetensors")


def largest_difference(out, expected):
    assert set(out) == set(expected)
    return max(np.abs(np.asarray(out[n], np.float64) - expected[n]).max() for n in expected)


@pytest.mark.parametrize("name", CASES)
def test_float64(golden, x64, name):
    base, models, expected = golden
    out = jm.merge(CASES[name](), base, models)
    assert all(out[n].dtype == np.float64 for n in out)
    assert largest_difference(out, expected(name)) <= 1e-12


@pytest.mark.parametrize("name", CASES)
def test_float32(golden, name):
    """But for rows 0 and 1 of TIED: their exact ties do not survive the rounding to float32."""
    base, models, expected = golden
    single = lambda model: {n: x.astype(np.float32) for n, x in model.items()}
    out = jm.merge(CASES[name](), single(base), [single(m) for m in models])
    assert all(out[n].dtype == np.float32 for n in out)
    want = expected(name)
    out[TIED], want[TIED] = out[TIED][2:], want[TIED][2:]
    assert largest_difference(out, want) <= 1e-6


def test_streaming_gives_the_batch_result(golden, x64):
    base, models, expected = golden
    method = jm.ties(density=0.2, factor=0.55)
    state = jm.init(method, base)
    for model in models:
        state = jm.update(method, state, base, model)
    out = jm.merged(method, state, base)
    assert largest_difference(out, expected("ties_global_k20_mean_lambda0.55")) <= 1e-12
