"""Small random checkpoints: a base and fine-tunes of every family, chat models, raw files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from outputs import leaves_of
from safetensors.numpy import save_file


def families() -> dict[str, Any]:
    """Family -> its config, small."""
    import transformers as t

    wide = dict(hidden_size=16, intermediate_size=40, vocab_size=64, num_hidden_layers=4)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    return {
        "llama": t.LlamaConfig(**wide, **heads, tie_word_embeddings=False),
        "mistral": t.MistralConfig(**wide, **heads, tie_word_embeddings=False),
        "qwen2": t.Qwen2Config(**wide, **heads, tie_word_embeddings=True),
        "gpt2": t.GPT2Config(n_embd=16, n_layer=4, n_head=4, vocab_size=64, n_positions=64),
        "pythia": t.GPTNeoXConfig(**wide, num_attention_heads=4, max_position_embeddings=64),
        "t5": t.T5Config(
            d_model=16,
            d_kv=4,
            d_ff=32,
            num_layers=4,
            num_heads=4,
            vocab_size=64,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        ),
    }


def further_families() -> dict[str, Any]:
    """More families that mergekit has a definition of, each a model of four layers."""
    import transformers as t

    wide = dict(hidden_size=16, intermediate_size=32, vocab_size=64, num_hidden_layers=4)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    small = wide | heads | dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    experts = dict(num_experts_per_tok=2, num_local_experts=4, num_experts=4)
    window = dict(sliding_window=16, head_dim=4)
    more = {
        "qwen3_moe": experts | dict(moe_intermediate_size=8, head_dim=4),
        "mixtral": experts,
        "gemma3_text": window,
        "gemma2": window,
        "gemma": dict(head_dim=4),
        "qwen3": dict(head_dim=4),
        "glm4": dict(head_dim=4),
        "mamba": dict(state_size=4, conv_kernel=2),
        "cohere": dict(use_qk_norm=True),
        "falcon": dict(new_decoder_architecture=True, tie_word_embeddings=False),
        "distilbert": dict(dim=16, hidden_dim=32, n_layers=4, n_heads=4),
        "gpt_bigcode": dict(n_embd=16, n_layer=4, n_head=4, n_positions=64),
    }
    plain = ("apertus", "arcee", "cohere2", "granite", "olmo2", "phi", "phi3", "roberta",
             "stablelm", "starcoder2")  # fmt: skip
    return {n: t.AutoConfig.for_model(n, **small | more.get(n, {})) for n in (*plain, *more)}


def checkpoints(folder: Path) -> None:
    """A base and three fine-tunes of every family; `chat` models with tokens of their own."""
    import torch
    import transformers as t

    kinds = {"t5": t.AutoModelForSeq2SeqLM}
    kinds |= dict.fromkeys(("distilbert", "roberta"), t.AutoModelForMaskedLM)
    for name, config in (families() | further_families()).items():
        if (folder / name).exists():
            continue
        torch.manual_seed(0)
        model = kinds.get(name, t.AutoModelForCausalLM).from_config(config)
        base = {n: p.detach().clone() for n, p in model.state_dict().items()}
        for i, who in enumerate(("base", "a", "b", "c")):
            if i:
                gen = torch.Generator().manual_seed(i)
                noise = lambda p, gen=gen: 0.02 * torch.randn(p.shape, generator=gen)
                model.load_state_dict({n: p + noise(p) for n, p in base.items()})
                model.tie_weights()
            model.save_pretrained(folder / name / who)
            if name == "pythia":
                _add_buffers(folder / name / who)
            tokenizer(folder / name / who, ["<pad>"])
    _adapter(folder / "llama" / "adapter", folder / "llama" / "base")
    if (folder / "llama" / "chat1").exists():
        return
    for who, extra in (("chat1", ["<|im_start|>", "<|im_end|>"]), ("chat2", ["<|user|>"])):
        grown = t.AutoModelForCausalLM.from_pretrained(folder / "llama" / "a")
        grown.resize_token_embeddings(64 + len(extra), mean_resizing=False)
        with torch.no_grad():
            grown.get_input_embeddings().weight[64:] = 0.1 * torch.randn(len(extra), 16)
        grown.save_pretrained(folder / "llama" / who)
        tokenizer(folder / "llama" / who, ["<pad>", *extra])
    ties = {n: x.astype(np.float32) for n, x in leaves_of(folder / "llama" / "base").items()}
    for i in (1, 2):  # changes as in bfloat16: few magnitudes, each many times
        rng = np.random.default_rng(i)
        steps = {n: rng.integers(-3, 4, x.shape) * np.float32(2**-6) for n, x in ties.items()}
        one = folder / "llama" / f"coarse{i}"
        one.mkdir()
        coarse = {n: np.float32(np.round(x * 64) / 64) + steps[n] for n, x in ties.items()}
        save_file(coarse, one / "model.safetensors", {"format": "pt"})
        _copy_config(folder / "llama" / "base", one)
    one = folder / "llama" / "coarse"
    one.mkdir()
    rounded = {n: np.float32(np.round(x * 64) / 64) for n, x in ties.items()}
    save_file(rounded, one / "model.safetensors", {"format": "pt"})
    _copy_config(folder / "llama" / "base", one)
    freq = {n: x for n, x in leaves_of(folder / "llama" / "a").items()}
    freq |= {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32) for i in range(4)
    }
    one = folder / "llama" / "old"
    one.mkdir()
    save_file(freq, one / "model.safetensors", {"format": "pt"})
    _copy_config(folder / "llama" / "base", one)
    for who, drop in (("raw1", "lm_head.weight"), ("raw2", "model.norm.weight")):
        leaves = leaves_of(folder / "llama" / {"raw1": "a", "raw2": "b"}[who])
        leaves.pop(drop)
        save_file(leaves, folder / "llama" / f"{who}.safetensors", {"format": "pt"})


def _adapter(folder: Path, base: Path) -> None:
    """A LoRA adapter on queries and on one layer of the MLP, of two ranks."""
    rng = np.random.default_rng(3)
    like, factors = leaves_of(base), {}
    for i in range(4):
        for part, rank in (("self_attn.q_proj", 3), ("mlp.down_proj", 2)):
            module = f"model.layers.{i}.{part}"
            out, into = like[f"{module}.weight"].shape
            for end, shape in (("A", (rank, into)), ("B", (out, rank))):
                key = f"base_model.model.{module}.lora_{end}.weight"
                factors[key] = 0.1 * rng.normal(size=shape).astype(np.float32)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base),
        "r": 3, "lora_alpha": 6, "rank_pattern": {"down_proj": 2},
        "target_modules": ["q_proj", "down_proj"], "bias": "none",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def _add_buffers(folder: Path) -> None:
    """What the published Pythia checkpoints hold and transformers does not save any more."""
    leaves = leaves_of(folder)
    for i in range(4):
        at = f"gpt_neox.layers.{i}.attention."
        leaves[f"{at}bias"] = np.tril(np.ones((1, 1, 64, 64), bool))
        leaves[f"{at}masked_bias"] = np.array(-1e9, np.float32)
        leaves[f"{at}rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(leaves, folder / "model.safetensors", {"format": "pt"})


def _copy_config(source: Path, target: Path) -> None:
    for path in source.glob("*.json"):
        if not path.name.endswith("index.json"):
            (target / path.name).write_bytes(path.read_bytes())


def tokenizer(folder: Path, added: list[str]) -> None:
    """A byte-pair tokenizer of 63 words, and the tokens that were added to it."""
    import tokenizers
    import transformers as t

    vocab = {f"t{i}": i for i in range(63)}
    built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="t0"))
    built.add_special_tokens(added)
    t.PreTrainedTokenizerFast(tokenizer_object=built, pad_token="<pad>").save_pretrained(folder)
