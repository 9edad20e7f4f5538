"""Our decoders against transformers, family by family: blocks, logits, bfloat16, texts, folders.

    python experiments/language_parity.py                    # writes results/language_parity.json
    python experiments/language_parity.py qwen3 "gemma 2 9B" # some of them, printed

Random weights, tiny ones for every family and full widths for three, go through transformers
(eager attention, float32) and through ours; tests/test_decoder_parity.py holds the differences to
their bounds. `experiments/language_page.py` makes the table of docs/language-models.md of them.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

OUT = Path(__file__).parent / "results" / "language_parity.json"
SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "factor": 8.0,
    "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0],
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
CASES = {  # name -> what the config has besides; the first word is the model_type
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
FULL = {  # the widths of published models; few layers, and but for one a small vocabulary
    "llama 3 8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_hidden_layers": 1, "vocab_size": 2048,
        "max_position_embeddings": 131072, "rope_parameters": LLAMA3, "initializer_range": 0.02,
    },
    "gemma2 9B": {
        "hidden_size": 3584, "intermediate_size": 14336, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 256, "query_pre_attn_scalar": 256,
        "num_hidden_layers": 2, "vocab_size": 2048, "sliding_window": 16,
        "max_position_embeddings": 8192, "initializer_range": 0.02,
    },
    "qwen2 0.5B": {
        "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rope_theta": 1e6, "initializer_range": 0.02,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
NEW = 8  # tokens written greedily


def theirs(name: str, folder: Path, entries: dict, tokens: int) -> dict[str, np.ndarray]:
    """What transformers computes with random weights, which it writes into the folder."""
    import torch
    import transformers as auto

    torch.manual_seed(0)
    hf = auto.AutoConfig.for_model(**{**SIZES, **entries}, model_type=name.split()[0])
    model = auto.AutoModelForCausalLM.from_config(hf, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases are ones and zeros at first
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    ids = np.random.default_rng(0).integers(3, hf.vocab_size, (2, tokens))
    with torch.no_grad():
        out = model(torch.tensor(ids), output_hidden_states=True)
        written = model.generate(
            torch.tensor(ids), attention_mask=torch.ones(ids.shape), do_sample=False,
            max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=hf.vocab_size + 1,
        )  # fmt: skip
        half = model.to(torch.bfloat16)(torch.tensor(ids)).logits.float()
    return {
        "ids": ids,
        "states": np.stack([states.numpy() for states in out.hidden_states]),
        "logits": out.logits.numpy(),
        "bfloat16": half.numpy(),
        "written": written[:, tokens:].numpy(),
    }


def measure(name: str, folder: Path) -> dict[str, float | bool | int]:
    """The differences of one model, whose folders `theirs` and `ours` are written.

    Returns:
      block: largest difference of a state behind a layer, over the largest state; logits: largest
      difference; bfloat16, bfloat16_torch: mean differences of either side's bfloat16 from float32;
      written: equal greedy continuations; folder: ours has theirs' tensors bit for bit;
      again: transformers reads ours and gives the same logits, bit for bit.
    """
    from jaxmerge.models import decoder

    entries = CASES[name] if name in CASES else FULL[name]
    expected = theirs(name, folder / "theirs", entries, tokens=12 if name in CASES else 24)
    gc.collect()  # their model is not kept beside ours
    ours, ids = decoder.load(folder / "theirs"), expected["ids"]
    inner = np.asarray(decoder.states(ours.config, ours.params, ids, inner=True))
    logits = np.asarray(decoder.logits(ours.config, ours.params, ids))
    half = decoder.Compute("bfloat16")
    rounded = np.asarray(decoder.logits(ours.config, ours.params, ids, compute=half))
    written = decoder.generate(ours, ids.tolist(), most=NEW)
    far = lambda computed: float(np.abs(computed - expected["logits"]).mean())
    gaps = {
        "parameters": sum(int(leaf.size) for leaf in ours.params.values()),
        "block": float(np.abs(inner - expected["states"]).max() / np.abs(expected["states"]).max()),
        "logits": float(np.abs(logits - expected["logits"]).max()),
        "bfloat16": far(rounded),
        "bfloat16_torch": far(expected["bfloat16"]),
        "written": [one.tokens for one in written] == expected["written"].tolist(),
    }
    decoder.save(ours, folder / "ours", shard_size=None if name in FULL else 20_000)
    del ours
    gc.collect()
    return {**gaps, "folder": same_folder(folder), "again": read_again(folder, expected)}


def same_folder(folder: Path) -> bool:
    """Whether `ours` has the tensors of `theirs`, bit for bit."""
    from safetensors import safe_open

    files = sorted((folder / "ours").glob("*.safetensors"))
    opened = [safe_open(file, "np") for file in files]
    where = {key: file for file in opened for key in file.keys()}  # noqa: SIM118
    with safe_open(folder / "theirs" / "model.safetensors", "np") as stored:
        return set(stored.keys()) == set(where) and all(
            stored.get_tensor(key).tobytes() == file.get_tensor(key).tobytes()
            for key, file in where.items()
        )


def read_again(folder: Path, expected: dict[str, np.ndarray]) -> bool:
    """Whether transformers reads `ours` and computes what it computed."""
    import torch
    import transformers as auto

    model = auto.AutoModelForCausalLM.from_pretrained(
        folder / "ours", attn_implementation="eager", dtype="float32"
    )
    with torch.no_grad():
        outputs = model(torch.tensor(expected["ids"])).logits.numpy()
    return bool(np.array_equal(outputs, expected["logits"]))


def main() -> None:
    families = {}
    for name in sys.argv[1:] or [*CASES, *FULL]:
        with tempfile.TemporaryDirectory() as folder:
            families[name] = measure(name, Path(folder))
        print(name, json.dumps(families[name]), flush=True)
    if len(sys.argv) == 1:
        import jax
        import torch
        import transformers

        versions = {"jax": jax, "torch": torch, "transformers": transformers}
        about = {package: module.__version__ for package, module in versions.items()}
        OUT.write_text(json.dumps({"versions": about, "families": families}, indent=1) + "\n")


if __name__ == "__main__":
    main()
