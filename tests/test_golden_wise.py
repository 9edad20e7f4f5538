"""Merges of one matrix against EasyEdit's code (WISE's side memories), in float64 there."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmerge as jm

RUNS = {"w0.3333_0.3333_0.3333_density0.53": ([1 / 3] * 3, 0.53),
        "w0.5000_0.2000_0.3000_density0.2": ([0.5, 0.2, 0.3], 0.2),
        "w0.2000_0.2000_0.6000_density1.0": ([0.2, 0.2, 0.6], 1.0)}  # fmt: skip
METHODS = {
    "ties": lambda w, d: jm.chain(
        jm.trim(d, scope="leaf"), jm.disjoint_mean(weights=w, tie="positive")
    ),
    "magnitude": lambda w, d: jm.chain(jm.trim(d, scope="leaf"), jm.linear(w)),
    "magnitude_norm": lambda w, d: jm.chain(jm.trim(d, scope="leaf"), jm.linear(w, normalize=True)),
    "sign": lambda w, d: jm.disjoint_mean(weights=w, tie="positive"),
}


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "wise.npz") as file:
        return dict(file)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", METHODS)
def test_a_merge(golden, name, run):
    weights, density = RUNS[run]
    with jax.enable_x64(True):
        models = [{"w": x} for x in golden["tensors"]]
        got = jm.merge(METHODS[name](weights, density), {"w": golden["base"]}, models)["w"]
    want = golden[f"{name}/{run}"]
    assert np.abs(np.asarray(got) - want).max() <= 1e-14


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_between_two(golden, t):
    models = [{"w": golden["base"]}, {"w": golden["tensors"][0]}]
    with jax.enable_x64(True):
        linear = jm.merge(jm.linear([1 - t, t]), None, models)["w"]
        arc = jm.merge(jm.slerp(t), None, models)["w"]
    assert np.abs(np.asarray(linear) - golden[f"linear/t{t}"]).max() <= 1e-14
    assert np.abs(np.asarray(arc) - golden[f"slerp/t{t}"]).max() <= 1e-6  # float32 there
