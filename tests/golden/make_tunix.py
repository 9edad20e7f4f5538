"""A tiny Llama saved by Tunix's own checkpoint manager, and its logits.

    python tests/golden/make_tunix.py     # with google-tunix 0.1.7, qwix and jaxtyping

Writes `tests/golden/tunix`: `checkpoint/3/model_params` as the manager leaves it, `logits.npz` with
tokens [2, 7] and what `tunix.models.llama3` makes of them.  Only Tunix's models and its checkpoint
manager are imported: the package as a whole asks for its trainers' dependencies.
"""

from __future__ import annotations

import os
import shutil
import sys
import types
from importlib.util import find_spec
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
OUT = Path(__file__).parent / "tunix"
spec = find_spec("tunix")
ROOT = Path(spec.submodule_search_locations[0])
for name in ("tunix", "tunix.sft", "tunix.models", "tunix.utils", "tunix.rl"):
    module = types.ModuleType(name)
    module.__path__ = [str(ROOT.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = module

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from tunix.models.llama3 import model as llama  # noqa: E402
from tunix.sft import checkpoint_manager  # noqa: E402

CONFIG = llama.ModelConfig(
    num_layers=2, vocab_size=32, embed_dim=16, hidden_dim=24, num_heads=4, head_dim=4,
    num_kv_heads=2, norm_eps=1e-5, rope_theta=1_000_000,  # 0.1.7 computes with no other
)  # fmt: skip

if __name__ == "__main__":
    model = llama.Llama3(CONFIG, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)  # norms too, or a lost one would not be noticed
    draw = lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), jnp.float32)
    nnx.update(model, nnx.map_state(lambda p, v: v.replace(draw(v.value)), nnx.state(model)))
    shutil.rmtree(OUT, ignore_errors=True)
    manager = checkpoint_manager.CheckpointManager(str(OUT / "checkpoint"))
    manager.save(3, model, force=True)
    manager.close()
    tokens = rng.integers(0, 32, (2, 7))
    positions = jnp.broadcast_to(jnp.arange(7)[None], (2, 7))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((7, 7), bool))[None], (2, 7, 7))
    logits, _ = model(jnp.asarray(tokens), positions, None, mask)
    np.savez(OUT / "logits.npz", tokens=tokens, logits=np.asarray(logits))
