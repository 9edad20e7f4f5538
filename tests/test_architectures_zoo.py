"""A sample of transformers' architectures, merged as `experiments/architectures.py` does."""

import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.parity]
SAMPLE = ("llama", "gpt2", "t5", "mixtral", "qwen2_vl", "bert", "whisper", "swin")


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_family(model_type, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    import architectures

    steps = architectures.tried(model_type)
    assert "error" not in steps, steps
    wrong = {s: steps[s] for s in architectures.STEPS if steps[s].startswith(("WRONG", "FAILED"))}
    assert not wrong
    assert steps["plain"] == "holds"
    sys.modules.pop("architectures", None)
