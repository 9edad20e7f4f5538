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
    page_blocks = blocks(page)
    assert page_blocks
    known = set(jm.REGISTRY)
    scope: dict = {}
    try:
        for block in page_blocks:
            exec(compile(block, page, "exec"), scope)
    finally:
        for name in set(jm.REGISTRY) - known:
            del jm.REGISTRY[name]
    if page == "README.md":
        assert (tmp_path / "merged.safetensors").exists()
        assert scope["many"]["w"].shape == (20, 4, 3)
        np.testing.assert_allclose(scope["many"]["w"][-1] / 2, scope["deployed"]["w"], atol=1e-6)


def test_commands_run(tmp_path, monkeypatch, capsys):
    """The merges of the shell blocks; .ci/run runs the quickstart, other tests experiments."""
    from safetensors.numpy import load_file, save_file

    from jaxmerge.cli import app

    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("base", "code", "maths")):
        (tmp_path / name).mkdir()
        save_file({"w": np.full((4, 4), i, np.float32)}, tmp_path / name / "model.safetensors")
    recipe = "base: base\nmodels: [code, maths]\nmethod: {ties: {density: 0.5}}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    shell = "".join(text for language, text in fenced if not language)
    commands = re.findall(r"^jaxmerge (merge [^#\n]+)", shell, re.M)
    assert len(commands) >= 2
    for command in commands:
        app(command.split(), standalone_mode=False)
        assert capsys.readouterr().out
    assert "w" in load_file(tmp_path / "out" / "model.safetensors")


def test_tables_are_those_of_the_result_files(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    spec = importlib.util.spec_from_file_location("readme", ROOT / "experiments" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in module.PAGES:
        text = (ROOT / page).read_text()
        assert module.fill(text) == text, f"{page}: run python experiments/readme.py"
