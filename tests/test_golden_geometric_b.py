"""mergekit's outputs of its geometric methods, reproduced within 1e-6 in float32."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxmerge as jm


@pytest.fixture(scope="module")
def qwen():
    folder = Path(__file__).parent / "golden" / "mergekit"
    model = lambda name: load_file(folder / "models" / name / "model.safetensors")
    return folder / "expected", model("base"), [model(f"ft{t}") for t in range(4)]


def layer_t(name: str) -> float:
    """The recipe's gradients over three layers; 0.5 where no filter matches."""
    match = re.search(r"layers\.(\d)\.(self_attn|mlp)", name)
    if not match:
        return 0.5
    rising = float(match[1]) / 2
    return rising if match[2] == "self_attn" else 1 - rising


CASES = {
    "slerp": (jm.slerp(t=0.35), None, 2),
    "slerp_gradient": (jm.by_leaf(lambda name, like: jm.slerp(t=layer_t(name))), None, 2),
    "nuslerp": (jm.nuslerp(weights=[0.4, 0.6]), None, 2),
    "nuslerp_base": (jm.nuslerp(weights=[0.4, 0.6]), "base", 2),
    "multislerp": (jm.multislerp(weights=[0.3, 0.5, 0.7, 0.2]), None, 4),
    "karcher": (jm.karcher(), None, 4),
    "model_stock": (jm.model_stock(), "base", 3),
    "model_stock_filterwise": (jm.model_stock(per="row"), "base", 3),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(qwen, case):
    folder, base, models = qwen
    method, start, count = CASES[case]
    actual = jm.merge(method, base if start else None, models[:count])
    expected = load_file(folder / f"{case}.safetensors")
    assert set(expected) == set(actual)
    gaps = {n: np.abs(actual[n] - expected[n]).max() for n in expected}
    worst = max(gaps, key=gaps.get)
    print(f"{case}: largest absolute difference {gaps[worst]:.2e} at {worst}")
    assert gaps[worst] < 1e-6, worst


@pytest.mark.parametrize("case", CASES)
def test_golden_from_files(qwen, case, tmp_path):
    """The same leaf by leaf from checkpoint folders, as a merge too large for memory runs."""
    folder, _, _ = qwen
    method, start, count = CASES[case]
    at = folder.parent / "models"
    models = [at / f"ft{t}" for t in range(count)]
    jm.merge_files(method, base=at / "base" if start else None, models=models, out=tmp_path / "out")
    leaves = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(folder / f"{case}.safetensors")
    assert set(leaves) == set(expected)
    assert max(np.abs(leaves[n] - expected[n]).max() for n in expected) < 1e-6
