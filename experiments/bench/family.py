"""A family of checkpoints of random weights, for merge_files.py where no real one lies.

    python experiments/bench/family.py FOLDER              # base, ft0 .. ft3: 86M parameters each
    python experiments/bench/family.py FOLDER --blocks 1   # 8M, to try it out
    python experiments/bench/family.py FOLDER --decoder    # 387M each, for mergekit too

The leaves of a ViT-B/16 in bfloat16, or those of a decoder of Qwen2's form (24 layers of width
1,024, tied embeddings); every fine-tune is the base and a task vector of 1 % of it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from merge_memory import BLOCKS, draw, shapes
from safetensors.numpy import save_file

WIDTH, INNER, LAYERS, HEADS, WORDS = 1024, 2816, 24, 16, 76_800
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": WIDTH,
    "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "vocab_size": WORDS, "tie_word_embeddings": True,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16",
}  # fmt: skip


def decoder() -> dict[str, tuple[int, ...]]:
    """The leaves of the decoder."""
    layer = {
        "input_layernorm.weight": (WIDTH,), "post_attention_layernorm.weight": (WIDTH,),
        "mlp.gate_proj.weight": (INNER, WIDTH), "mlp.up_proj.weight": (INNER, WIDTH),
        "mlp.down_proj.weight": (WIDTH, INNER), "self_attn.o_proj.weight": (WIDTH, WIDTH),
    }  # fmt: skip
    for part in ("q", "k", "v"):
        layer |= {f"self_attn.{part}_proj.weight": (WIDTH, WIDTH)}
        layer |= {f"self_attn.{part}_proj.bias": (WIDTH,)}
    out = {"model.embed_tokens.weight": (WORDS, WIDTH), "model.norm.weight": (WIDTH,)}
    out |= {f"model.layers.{i}.{n}": s for i in range(LAYERS) for n, s in layer.items()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--blocks", type=int, default=BLOCKS, choices=range(1, BLOCKS + 1))
    parser.add_argument("--models", type=int, default=4)
    form.add_argument("--decoder", action="store_true")
    given = parser.parse_args()
    like, config = (decoder(), CONFIG) if given.decoder else (shapes(given.blocks), {})
    base = draw(0, like)
    for t in range(given.models + 1):
        name, weights = (f"ft{t - 1}", draw(t, like, base)) if t else ("base", base)
        folder = given.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        stored = {n: np.asarray(x.astype(jnp.bfloat16)) for n, x in weights.items()}
        save_file(stored, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config) + "\n")


if __name__ == "__main__":
    main()
