"""Tunix's names for Llama and Qwen models against Hugging Face's, both directions.

    layers/0/attn/q_proj/w      [width, heads, head]   model.layers.0.self_attn.q_proj.weight
    layers/0/attn/o_proj/w      [heads, head, width]   model.layers.0.self_attn.o_proj.weight
    layers/0/mlp/up_proj/kernel [in, out]              model.layers.0.mlp.up_proj.weight, [out, in]

Fine-tuned with Tunix, a model merges with others of Tunix as it is; under Hugging Face's names its
kernels are matrices again, which OPCM and its kin need, and every program reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.errors import UserError, listed
from jaxmerge.io.opened_model import Source
from jaxmerge.io.safetensors import Leaves, Like, Whole

LAYOUTS = ("hf", "tunix")
PAIRS = {  # Hugging Face -> Tunix, and how a leaf is turned; {} stands for the number of the layer
    "model.embed_tokens.weight": ("embedder/input_embedding", "same"),
    "model.norm.weight": ("final_norm/w", "same"),
    "lm_head.weight": ("lm_head/w", "turned"),
    "model.layers.{}.input_layernorm.weight": ("layers/{}/input_layernorm/w", "same"),
    "model.layers.{}.post_attention_layernorm.weight": (
        "layers/{}/post_attention_layernorm/w", "same",
    ),
    **{
        f"model.layers.{{}}.self_attn.{x}_proj.weight": (f"layers/{{}}/attn/{x}_proj/w", kind)
        for x, kind in (("q", "heads"), ("k", "kv heads"), ("v", "kv heads"), ("o", "from heads"))
    },
    **{
        f"model.layers.{{}}.self_attn.{x}_proj.bias": (f"layers/{{}}/attn/{x}_bias", "same")
        for x in "qkv"
    },
    **{
        f"model.layers.{{}}.self_attn.{x}_norm.weight": (f"layers/{{}}/attn/{x}_norm/w", "same")
        for x in "qk"
    },
    **{
        f"model.layers.{{}}.mlp.{x}_proj.weight": (f"layers/{{}}/mlp/{x}_proj/kernel", "turned")
        for x in ("gate", "up", "down")
    },
}  # fmt: skip


class Heads(NamedTuple):
    """How many heads queries have, how many keys and values have, and their width."""

    queries: int
    keys: int
    width: int

    @classmethod
    def of(cls, config: Mapping[str, Any], ref: str) -> Heads:
        """From a config.json; UserError where it says nothing of heads."""
        queries = config.get("num_attention_heads")
        if not isinstance(queries, int) or queries < 1:
            raise UserError(f"{ref} has no config.json that says num_attention_heads.")
        width = config.get("head_dim") or config.get("hidden_size", 0) // queries
        return cls(queries, config.get("num_key_value_heads") or queries, width)


def laid_out(source: Source, layout: str) -> Source:
    """A model under the names and in the shapes of a layout.

    Raises:
        UserError: leaves that are neither of Hugging Face's names of Llama and Qwen nor Tunix's.
    """
    inner = {n.removesuffix("/value"): n for n in source}  # of nnx.State, by its version
    back = layout == "tunix"
    table = {(a if back else b): ((b if back else a), kind) for a, (b, kind) in PAIRS.items()}
    renamed, unknown = {}, []
    for name, stored in inner.items():
        number = re.search(r"(?<=layers[./])\d+", name)
        template = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
        if template not in table:
            unknown.append(stored)
            continue
        other, kind = table[template]
        renamed[other.format(number[0]) if number else other] = (stored, kind)
    if unknown:
        known = "Hugging Face's of Llama or Qwen" if back else "Tunix's of Llama or Qwen"
        few = [f"{n!r} is none of {known}" for n in unknown[:5]]
        raise UserError(f"{source.ref}: {len(unknown)} names do not fit: {listed(few)}")
    heads = Heads.of(source.config(), source.ref) if back else None
    leaves = Relaid(source, renamed, heads)
    return Source(leaves, source.ref, source._folder, source.files, source.config())


class Relaid(Whole):
    """Leaves of another model, turned when they are read.

    Args:
        names: new name -> (stored name, how it is turned).
        heads: where leaves get Tunix's axes; None where they lose them.
    """

    def __init__(
        self, source: Leaves, names: Mapping[str, tuple[str, str]], heads: Heads | None
    ):  # fmt: skip
        super().__init__()
        self.source, self.names, self.stamps = source, dict(names), source.stamps
        turn = (lambda kind: _split(kind, heads)) if heads else _joined
        self.turn: dict[str, Callable] = {n: turn(kind) for n, (_, kind) in names.items()}
        self.like, wrong = {}, []
        for new, (old, _) in names.items():
            like = source.like[old]
            try:
                shape = self.turn[new](np.broadcast_to(np.int8(0), like.shape)).shape
            except ValueError:
                wrong.append(f"{old!r} has the shape {list(like.shape)}")
                continue
            self.like[new] = Like(shape, like.dtype, like.storage)
        if wrong:
            raise UserError(f"{listed(wrong[:5])}: not that of such a leaf.")

    def load(self, name: str) -> np.ndarray:
        return self.turn[name](self.source[self.names[name][0]])


def _joined(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    """Tunix's leaf as Hugging Face has it."""
    return {
        "same": lambda x: x,
        "turned": lambda x: x.T,
        "heads": lambda x: x.reshape(x.shape[0], -1).T,
        "kv heads": lambda x: x.reshape(x.shape[0], -1).T,
        "from heads": lambda x: x.reshape(-1, x.shape[-1]).T,
    }[kind]


def _split(kind: str, heads: Heads) -> Callable[[np.ndarray], np.ndarray]:
    """Hugging Face's leaf as Tunix has it."""
    return {
        "same": lambda x: x,
        "turned": lambda x: x.T,
        "heads": lambda x: x.T.reshape(-1, heads.queries, heads.width),
        "kv heads": lambda x: x.T.reshape(-1, heads.keys, heads.width),
        "from heads": lambda x: x.T.reshape(heads.queries, heads.width, -1),
    }[kind]
