"""A family of checkpoints of random weights, for merge_files.py where no real one lies.

    python experiments/bench/family.py FOLDER              # base, ft0 .. ft3: 86M parameters each
    python experiments/bench/family.py FOLDER --blocks 1   # 8M, to try it out
    python experiments/bench/family.py FOLDER --decoder 0.4b    # for mergekit too: 387M each
    python experiments/bench/family.py FOLDER --decoder 3b      # 3.1 billion each, 31 GB in all

The leaves of a ViT-B/16 in bfloat16, or those of decoders of Qwen2's form with tied embeddings;
every fine-tune is the base and a task vector of 1 % of it.  Checkpoints of more than 1 GB lie in
shards, as published ones do, and no more than a shard of each is in memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from merge_memory import BLOCKS, shapes
from safetensors.numpy import save_file

SHARD = 1 << 30  # bytes


class Decoder(NamedTuple):
    """Sizes of a decoder of Qwen2's form; `kv` is the width of keys and of values."""

    width: int
    inner: int
    layers: int
    heads: int
    kv: int
    words: int

    def config(self) -> dict:
        """As transformers has it."""
        return {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
            "hidden_size": self.width, "intermediate_size": self.inner,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv * self.heads // self.width, "vocab_size": self.words,
            "tie_word_embeddings": True, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
            "torch_dtype": "bfloat16",
        }  # fmt: skip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Its leaves."""
        width, inner, kv = self.width, self.inner, self.kv
        layer = {
            "input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,),
            "mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner), "self_attn.o_proj.weight": (width, width),
        }  # fmt: skip
        for part, out in (("q", width), ("k", kv), ("v", kv)):
            layer[f"self_attn.{part}_proj.weight"] = (out, width)
            layer[f"self_attn.{part}_proj.bias"] = (out,)
        outside = {"model.embed_tokens.weight": (self.words, width), "model.norm.weight": (width,)}
        layers = {f"model.layers.{i}.{n}": s for i in range(self.layers) for n, s in layer.items()}
        return outside | layers


DECODERS = {
    "0.4b": Decoder(1024, 2816, 24, 16, 1024, 76_800),
    "3b": Decoder(2048, 11_008, 36, 16, 256, 151_936),
}


def shards(like: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """The leaves, in order, in groups of at most `SHARD` bytes in bfloat16, or of one leaf."""
    group: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in like.items():
        more = 2 * int(np.prod(shape))
        if group and size + more > SHARD:
            yield group
            group, size = {}, 0
        group[name] = shape
        size += more
    yield group


def draw(
    like: Mapping[str, tuple[int, ...]], generators: list[np.random.Generator]
) -> list[dict[str, np.ndarray]]:
    """The base and its fine-tunes, one a generator, in bfloat16."""
    weights: list[dict[str, np.ndarray]] = [{} for _ in generators]
    for name, shape in like.items():
        base = np.zeros((), np.float32)
        for t, (one, random) in enumerate(zip(weights, generators, strict=True)):
            x = random.standard_normal(shape, np.float32)
            x *= np.float32(0.02 * (0.01 if t else 1))
            x += base
            base = base if t else x
            one[name] = x.astype(ml_dtypes.bfloat16)
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--blocks", type=int, default=BLOCKS, choices=range(1, BLOCKS + 1))
    parser.add_argument("--models", type=int, default=4)
    form.add_argument("--decoder", choices=sorted(DECODERS))
    given = parser.parse_args()
    decoder = DECODERS.get(given.decoder)
    like, config = (decoder.shapes(), decoder.config()) if decoder else (shapes(given.blocks), {})
    folders = [given.folder / name for name in ("base", *(f"ft{t}" for t in range(given.models)))]
    generators = [np.random.default_rng(t) for t in range(len(folders))]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config) + "\n")
    groups = list(shards(like))
    of = {}
    for i, group in enumerate(groups, 1):
        file = f"model-{i:05}-of-{len(groups):05}.safetensors"
        file = file if len(groups) > 1 else "model.safetensors"
        of |= dict.fromkeys(group, file)
        for folder, weights in zip(folders, draw(group, generators), strict=True):
            save_file(weights, folder / file)
    if len(groups) > 1:
        total = 2 * sum(int(np.prod(shape)) for shape in like.values())
        index = {"metadata": {"total_size": total}, "weight_map": of}
        for folder in folders:
            (folder / "model.safetensors.index.json").write_text(json.dumps(index) + "\n")


if __name__ == "__main__":
    main()
