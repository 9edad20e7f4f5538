"""Tiny models saved by MaxText's own checkpointing, and their logits.

    python tests/golden/make_maxtext.py       # with maxtext 0.2.5

Writes `tests/golden/maxtext/KIND`: `checkpoint` as MaxText's `save_params_to_path` leaves it, from
the state in the layout in which it trains on, and `logits.npz` with tokens [2, 12] and what MaxText
makes of them.

MaxText 0.2.5 asks for Python 3.12.  On 3.11 its own `type X = ...` statements (in `kernels/mhc`)
were written as assignments, and tokamax, whose kernels plain attention does not call, was replaced
by an empty module, see `NEWER`; attention, layers and checkpointing are MaxText's.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import shutil
import sys
import types
from pathlib import Path

os.environ |= {"JAX_PLATFORMS": "cpu", "DECOUPLE_GCLOUD": "TRUE"}
OUT = Path(__file__).parent / "maxtext"
NEWER = ("tokamax",)


class Empty(types.ModuleType):
    """A module in which every name is a class."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages that this Python cannot read."""

    def find_spec(self, name, path, target=None):
        known = name.partition(".")[0] in NEWER
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec):
        module = Empty(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


if sys.version_info < (3, 12):
    sys.meta_path.insert(0, Finder())
    import jax.experimental.xla_metadata as newer

    newer.must_fuse_call = getattr(newer, "must_fuse_call", None)  # of a newer jax

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import maxtext  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from maxtext.common import checkpointing  # noqa: E402
from maxtext.common.train_state_nnx import TrainStateNNX, to_checkpoint_dict  # noqa: E402
from maxtext.configs import pyconfig  # noqa: E402
from maxtext.utils import maxtext_utils, model_creation_utils  # noqa: E402

SMALL = {
    "base_emb_dim": 16, "base_mlp_dim": 24, "base_num_decoder_layers": 2,
    "base_num_query_heads": 4, "base_num_kv_heads": 2, "head_dim": 4, "vocab_size": 32,
    "max_target_length": 16, "per_device_batch_size": 1, "dtype": "float32",
    "weight_dtype": "float32", "matmul_precision": "highest", "attention": "dot_product",
    "enable_checkpointing": False, "run_name": "x", "base_output_directory": "/tmp/maxtext",
    "normalization_layer_epsilon": 1e-5, "rope_max_timescale": 10000, "enable_dropout": False,
    "skip_jax_distributed_system": True, "hardware": "cpu", "logits_via_embedding": False,
    "mlp_activations": '["silu","linear"]', "normalize_embedding_logits": False,
}  # fmt: skip
KINDS = {
    "llama": {"decoder_block": "llama2", "rope_type": "llama3.1", "scan_layers": True},
    "mistral": {"decoder_block": "mistral", "scan_layers": False},
    "qwen2": {"decoder_block": "qwen2", "attention_bias": True, "scan_layers": True},
    "qwen3": {"decoder_block": "qwen3", "use_qk_norm": True, "scan_layers": False},
}


def main() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (2, 12)).astype(np.int32)
    places = jnp.broadcast_to(jnp.arange(12), (2, 12))
    shutil.rmtree(OUT, ignore_errors=True)
    for kind, given in KINDS.items():
        options = [f"{k}={v}" for k, v in (SMALL | given).items()]
        base = Path(maxtext.__file__).parent / "configs" / "base.yml"
        config = pyconfig.initialize(["maxtext", str(base), *options])
        devices = jax.devices()[:1]
        mesh = maxtext_utils.get_mesh_from_config(config, devices)
        model = model_creation_utils.from_config(config, devices, mesh, rngs=nnx.Rngs(0))
        leaves, tree = jax.tree.flatten(nnx.state(model, nnx.Param))  # norms and biases differ too
        draw = lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32)
        nnx.update(model, jax.tree.unflatten(tree, [draw(x) for x in leaves]))
        segments = jnp.ones((2, 12), jnp.int32)
        with mesh:
            logits = model(
                jnp.asarray(tokens), places, decoder_segment_ids=segments, enable_dropout=False
            )
        params = to_checkpoint_dict(nnx.state(TrainStateNNX(model, None)))["params"]
        checkpointing.save_params_to_path(str(OUT / kind / "checkpoint"), params)
        np.savez(OUT / kind / "logits.npz", tokens=tokens, logits=np.asarray(logits))


if __name__ == "__main__":
    main()
