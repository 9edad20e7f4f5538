"""Decoders live against transformers: every family, every block, and folders both ways.

pip install 'jaxmerge[parity]'
pytest tests/test_decoder_parity.py -m parity
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
from language_parity import CASES, FULL, measure

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", CASES)
def test_every_block_the_logits_and_the_round_trip(name, tmp_path):
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_widths(name, tmp_path):
    check(name, tmp_path)


def check(name, folder):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    actual = measure(name, folder)
    assert actual["block"] < 1e-5
    assert actual["logits"] < 1e-4
    assert actual["bfloat16"] <= actual["bfloat16_torch"]
    assert actual["written"]
    assert actual["folder"]
    assert actual["again"]
