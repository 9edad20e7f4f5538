"""Every Python block of the README runs, in order, in one namespace."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import jaxmerge as jm

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_blocks_run(page, tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("base", "code", "maths")):
        (tmp_path / name).mkdir()
        weights = np.random.default_rng(i).normal(size=(8, 8)).astype(np.float32)
        save_file({"w": weights}, tmp_path / name / "model.safetensors")
    found = blocks(page)
    assert found
    known = set(jm.REGISTRY)
    scope: dict = {}
    try:
        for block in found:
            exec(compile(block, page, "exec"), scope)
    finally:
        for name in set(jm.REGISTRY) - known:
            del jm.REGISTRY[name]
    if page == "README.md":
        assert (tmp_path / "merged.safetensors").exists()
        assert scope["many"]["w"].shape == (20, 4, 3)
        np.testing.assert_allclose(scope["many"]["w"][-1] / 2, scope["deployed"]["w"], atol=1e-6)


def test_tables_are_those_of_the_result_files():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "experiments" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "README.md").read_text()
    assert module.fill(page) == page, "run python experiments/readme.py"
