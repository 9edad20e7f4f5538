"""Checkpoints of Tunix under Hugging Face's names and back, on one that Tunix wrote."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.cli import convert
from jaxmerge.errors import UserError
from jaxmerge.io.sources import open_source
from jaxmerge.io.tunix import laid_out
from jaxmerge.models import decoder

GOLDEN = Path(__file__).parent / "golden" / "tunix"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "vocab_size": 32,
    "tie_word_embeddings": False, "max_position_embeddings": 64, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture
def like(tmp_path):
    folder = tmp_path / "like"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_what_tunix_saved_computes_the_same_here(tmp_path, like):
    convert.run(
        str(GOLDEN / "checkpoint"), tmp_path / "hf", names="hf", like=like, quiet=True
    )  # fmt: skip
    model = decoder.load(tmp_path / "hf", dtype="float32")
    with np.load(GOLDEN / "logits.npz") as file:
        tokens, expected = file["tokens"], file["logits"]
    logits = decoder.logits(model.config, model.params, jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_there_and_back(tmp_path, like):
    stored = open_source(GOLDEN / "checkpoint")
    convert.run(str(GOLDEN / "checkpoint"), tmp_path / "hf", names="hf", like=like, quiet=True)
    back = laid_out(open_source(tmp_path / "hf"), "tunix")
    first = {n.removesuffix("/value"): stored[n] for n in stored}
    assert set(back) == set(first)
    for n, x in first.items():
        np.testing.assert_array_equal(back[n], x)
    convert.run(str(tmp_path / "hf"), tmp_path / "orbax", names="tunix", to="orbax", quiet=True)
    again = open_source(tmp_path / "orbax")
    assert {n: again[n].tobytes() for n in again} == {n: x.tobytes() for n, x in first.items()}


def test_names_that_do_not_fit_are_one_line(tmp_path, like):
    convert.run(str(GOLDEN / "checkpoint"), tmp_path / "hf", names="hf", like=like, quiet=True)
    for ref, names, said in (
        (str(tmp_path / "hf"), "hf", "none of Tunix's"),
        (str(GOLDEN / "checkpoint"), "tunix", "none of Hugging Face's"),
        (str(GOLDEN / "checkpoint"), "maxtext", "--names must be one of hf, tunix"),
    ):
        with pytest.raises(UserError, match=said):
            convert.run(ref, tmp_path / "no", names=names, like=like, quiet=True)
    with pytest.raises(UserError, match=r"there is no config\.json"):
        convert.run(ref, tmp_path / "no", names="hf", like=tmp_path, quiet=True)
