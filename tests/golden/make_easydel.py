"""Tiny models saved by EasyDeL, and their logits.

    python tests/golden/make_easydel.py       # with easydel 0.3.0, pillow and torch (imported only)

Writes `tests/golden/easydel/KIND`: `checkpoint` as `save_pretrained` leaves it (without the model
card and the pickled structure), and `logits.npz` with tokens [2, 12] and what EasyDeL makes of
them, its attention and its table of rotations in float32 instead of bfloat16.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import easydel as ed
import jax
import jax.numpy as jnp
import numpy as np
from easydel.infra import base_config
from flax import nnx

OUT = Path(__file__).parent / "easydel"
SMALL = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "rms_norm_eps": 1e-5,
    "rope_theta": 1e4, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


class Exact:
    """jax.numpy in which bfloat16 is float32, for the table of rotations."""

    bfloat16 = jnp.float32

    def __getattr__(self, name: str):
        return getattr(jnp, name)


def main() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (2, 12)).astype(np.int32)
    shutil.rmtree(OUT, ignore_errors=True)
    base_config.jnp = Exact()
    for kind, config, model in (
        ("llama", ed.LlamaConfig(**SMALL), ed.LlamaForCausalLM),
        ("qwen3", ed.Qwen3Config(**SMALL), ed.Qwen3ForCausalLM),
    ):
        config.attn_mechanism = ed.AttentionMechanisms.VANILLA
        config.attn_dtype = config.kvdtype = jnp.float32
        own = model(
            config, dtype=jnp.float32, param_dtype=jnp.float32, precision="highest",
            rngs=nnx.Rngs(0),
        )  # fmt: skip
        leaves, tree = jax.tree.flatten(nnx.state(own, nnx.Param))
        draw = lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32)
        nnx.update(own, jax.tree.unflatten(tree, [draw(x) for x in leaves]))
        with config.mesh:
            logits = own(input_ids=jnp.asarray(tokens)).logits
        own.save_pretrained(str(OUT / kind / "checkpoint"))
        for name in ("README.md", "model_structure.json", "checkpoint_metadata.json"):
            (OUT / kind / "checkpoint" / name).unlink()
        np.savez(OUT / kind / "logits.npz", tokens=tokens, logits=np.asarray(logits))


if __name__ == "__main__":
    main()
