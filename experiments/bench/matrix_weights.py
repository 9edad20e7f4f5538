"""The models that matrix_merges.py and its peer both merge: numpy alone, so that both can draw."""

from __future__ import annotations

import numpy as np

WIDTH, HIDDEN = 768, 3072  # of a ViT-B


def kernels(blocks: int) -> dict[str, tuple[int, ...]]:
    """The dense layers of the blocks of a ViT-B, [out, in] as torch has them."""
    out: dict[str, tuple[int, ...]] = {}
    for i in range(blocks):
        for part, shape in (
            ("self_attn.q_proj", (WIDTH, WIDTH)),
            ("self_attn.k_proj", (WIDTH, WIDTH)),
            ("self_attn.v_proj", (WIDTH, WIDTH)),
            ("self_attn.out_proj", (WIDTH, WIDTH)),
            ("mlp.fc1", (HIDDEN, WIDTH)),
            ("mlp.fc2", (WIDTH, HIDDEN)),
        ):
            out[f"encoder.layers.{i}.{part}.weight"] = shape
            out[f"encoder.layers.{i}.{part}.bias"] = shape[:1]
    return out


def draw(seed: int, like: dict[str, tuple[int, ...]], around: dict | None = None) -> dict:
    """Random weights, or the weights `around` plus a random task vector of 1 % of their size."""
    rng, out = np.random.default_rng(seed), {}
    for name, shape in like.items():
        x = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        out[name] = x if around is None else around[name] + np.float32(0.01) * x
    return out
