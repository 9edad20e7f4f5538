"""Decoders live against transformers: every family, every block, and folders both ways.

pip install 'jaxmerge[parity]'
pytest tests/test_decoder_parity.py -m parity
"""

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxmerge.models import decoder

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "factor": 8.0,
    "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0],
}  # fmt: skip
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
CASES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 4},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 24},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4},
    "phi3": {},
    "phi3 long": {"original_max_position_embeddings": 8, "rope_parameters": LONG},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        **MOE, "num_experts": 4, "shared_expert_intermediate_size": 24, "mlp_only_layers": [1]
    },
    "qwen3_moe": {**MOE, "num_experts": 5, "norm_topk_prob": True, "head_dim": 16},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_block_the_logits_and_the_round_trip(name, tmp_path):
    torch = pytest.importorskip("torch")
    auto = pytest.importorskip("transformers")
    torch.manual_seed(0)
    hf = auto.AutoConfig.for_model(**SIZES, model_type=name.split()[0], **CASES[name])
    model = auto.AutoModelForCausalLM.from_config(hf, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases are ones and zeros at first
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "theirs")
    ours = decoder.load(tmp_path / "theirs")
    ids = np.random.default_rng(0).integers(3, 60, (2, 12))
    with torch.no_grad():
        theirs = model(torch.tensor(ids), output_hidden_states=True)
    inner = np.asarray(decoder.states(ours.config, ours.params, ids, inner=True))
    hidden = np.stack([states.numpy() for states in theirs.hidden_states])
    assert np.abs(inner - hidden).max() < 1e-5 * np.abs(hidden).max()
    found = decoder.logits(ours.config, ours.params, ids)
    np.testing.assert_allclose(found, theirs.logits.numpy(), atol=1e-4, rtol=0)

    half = decoder.Compute("bfloat16")
    found = np.asarray(decoder.logits(ours.config, ours.params, ids, compute=half))
    with torch.no_grad():
        rounded = model.to(torch.bfloat16)(torch.tensor(ids)).logits.float().numpy()
    error = np.abs(found - theirs.logits.numpy()).mean()
    assert error < 1.5 * np.abs(rounded - theirs.logits.numpy()).mean()

    decoder.save(ours, tmp_path / "ours", shard_size=20_000)
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    found = {}
    for file in (tmp_path / "ours").glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == stored.keys()
    assert all(found[key].tobytes() == stored[key].tobytes() for key in stored)
    again = auto.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", dtype="float32"
    )
    with torch.no_grad():
        assert torch.equal(again(torch.tensor(ids)).logits, theirs.logits)
