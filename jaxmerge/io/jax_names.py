"""Names and shapes of Llama, Mistral and Qwen models in Tunix, MaxText and EasyDeL, and on the hub.

                Hugging Face                              Tunix                       MaxText, one leaf for all layers
    query       model.layers.0.self_attn.q_proj.weight    layers/0/attn/q_proj/w      decoder/layers/self_attention/query/kernel
                [heads * head, width]                     [width, heads, head]        [width, layers, heads, head]
    up          model.layers.0.mlp.up_proj.weight         layers/0/mlp/up_proj/kernel decoder/layers/mlp/wi_1/kernel
                [out, in]                                 [in, out]                   [in, layers, out]

EasyDeL has Hugging Face's modules with Flax's kernels [in, out], and dots in its names.

MaxText's attention of Llama and Mistral does not divide scores by the root of the head's width: its
queries are stored divided.  With Llama 3.1's rotation (a `rope_scaling` of kind "llama3") it turns
neighbouring entries of a head, where transformers turns entries half a head apart: queries and keys
are stored in another order.  Qwen has neither.  `scan_layers=False` gives each layer leaves of its
own, "maxtext-unscanned" here.
"""  # noqa: E501

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.errors import UserError


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


Turn = Callable[..., np.ndarray]
# How a leaf of Hugging Face's becomes the other library's, given the heads, and back.
TURNS: dict[str, tuple[Turn, Turn]] = {
    "turned": (lambda x, h: x.T, lambda x: x.T),
    "queries": (
        lambda x, h: x.T.reshape(-1, h.queries, h.width),
        lambda x: x.reshape(x.shape[0], -1).T,
    ),
    "keys": (
        lambda x, h: x.T.reshape(-1, h.keys, h.width),
        lambda x: x.reshape(x.shape[0], -1).T,
    ),
    "out": (
        lambda x, h: x.T.reshape(h.queries, h.width, -1),
        lambda x: x.reshape(-1, x.shape[-1]).T,
    ),
    "query bias": (lambda x, h: x.reshape(h.queries, h.width), lambda x: x.reshape(-1)),
    "key bias": (lambda x, h: x.reshape(h.keys, h.width), lambda x: x.reshape(-1)),
    "divided": (lambda x, h: _times(x, h.width**-0.5), lambda x: _times(x, x.shape[-1] ** 0.5)),
    "neighbours": (
        lambda x, h: x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape),
        lambda x: x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape),
    ),
}


def _times(x: np.ndarray, factor: float) -> np.ndarray:
    return (x.astype(np.float32) * np.float32(factor)).astype(x.dtype)


class Pair(NamedTuple):
    """A leaf in both libraries.

    Attributes:
        hf, other: its names; {} stands for the number of the layer.  Where `other` has none and
            `hf` has, one leaf stacks all layers along axis 1.
        turns: keys of `TURNS`, applied in this order from Hugging Face's.
    """

    hf: str
    other: str
    turns: tuple[str, ...] = ()

    def from_hf(self, heads: Heads, shapes: bool = False) -> Turn:
        """Hugging Face's array as the other library has it; `shapes` leaves out arithmetic."""
        chosen = [TURNS[t][0] for t in self.turns if not (shapes and t == "divided")]
        return lambda x: functools.reduce(lambda y, f: f(y, heads), chosen, x)

    def to_hf(self, shapes: bool = False) -> Turn:
        """The other library's array as Hugging Face has it."""
        chosen = [TURNS[t][1] for t in reversed(self.turns) if not (shapes and t == "divided")]
        return lambda x: functools.reduce(lambda y, f: f(y), chosen, x)


LAYER = "model.layers.{}."
NORMS = ("input_layernorm", "post_attention_layernorm")


def tunix(config: Mapping[str, Any] | None, ref: str) -> list[Pair]:
    """Tunix's names of Llama and Qwen models (`tunix.models.llama3`, `.qwen2`, `.qwen3`)."""
    attention = {"q": "queries", "k": "keys", "v": "keys", "o": "out"}
    return [
        Pair("model.embed_tokens.weight", "embedder/input_embedding"),
        Pair("model.norm.weight", "final_norm/w"),
        Pair("lm_head.weight", "lm_head/w", ("turned",)),
        *(Pair(f"{LAYER}{n}.weight", f"layers/{{}}/{n}/w") for n in NORMS),
        *(
            Pair(f"{LAYER}self_attn.{x}_proj.weight", f"layers/{{}}/attn/{x}_proj/w", (kind,))
            for x, kind in attention.items()
        ),
        *(Pair(f"{LAYER}self_attn.{x}_proj.bias", f"layers/{{}}/attn/{x}_bias") for x in "qkv"),
        *(Pair(f"{LAYER}self_attn.{x}_norm.weight", f"layers/{{}}/attn/{x}_norm/w") for x in "qk"),
        *(
            Pair(f"{LAYER}mlp.{x}_proj.weight", f"layers/{{}}/mlp/{x}_proj/kernel", ("turned",))
            for x in ("gate", "up", "down")
        ),
    ]


QWEN = ("qwen2", "qwen3")
LLAMA = ("llama", "mistral")


def maxtext(config: Mapping[str, Any] | None, ref: str, at: str = "layers") -> list[Pair]:
    """MaxText's names of Llama, Mistral and dense Qwen models.

    Args:
        config: of the model; None asks for the names alone.
        at: "layers" where one leaf holds all layers, "layers_{}" where each has its own.

    Raises:
        UserError: a model of another kind, or no config that says of which it is.
    """
    kind = None if config is None else config.get("model_type")
    if config is not None and kind not in QWEN + LLAMA:
        raise UserError(
            f"{ref}: MaxText stores queries by the model's kind, and config.json says "
            f"{kind!r}; known are {', '.join(LLAMA + QWEN)} (--like FOLDER gives a config)."
        )
    scaling = (config or {}).get("rope_scaling") or (config or {}).get("rope_parameters") or {}
    near = ("neighbours",) if "llama3" in (scaling.get("rope_type"), scaling.get("type")) else ()
    query = ("queries", *near, *(("divided",) if kind in LLAMA else ()))
    attention = {
        "q": ("query", query), "k": ("key", ("keys", *near)), "v": ("value", ("keys",)),
        "o": ("out", ("out",)),
    }  # fmt: skip
    biases = {"q": ("query", "query bias"), "k": ("key", "key bias"), "v": ("value", "key bias")}
    norms = dict(
        zip(NORMS, ("pre_self_attention_layer_norm", "post_self_attention_layer_norm"), strict=True)
    )
    top = "params/params/"  # as MaxText nests them: Flax's variables in a train state
    layer = f"{top}decoder/{at}/"
    own = f"{layer}self_attention"
    return [
        Pair("model.embed_tokens.weight", f"{top}token_embedder/embedding"),
        Pair("model.norm.weight", f"{top}decoder/decoder_norm/scale"),
        Pair("lm_head.weight", f"{top}decoder/logits_dense/kernel", ("turned",)),
        *(Pair(f"{LAYER}{n}.weight", f"{layer}{m}/scale") for n, m in norms.items()),
        *(
            Pair(f"{LAYER}self_attn.{x}_proj.weight", f"{own}/{n}/kernel", turns)
            for x, (n, turns) in attention.items()
        ),
        *(
            Pair(f"{LAYER}self_attn.{x}_proj.bias", f"{own}/{n}/bias", (turn,))
            for x, (n, turn) in biases.items()
        ),
        *(
            Pair(f"{LAYER}self_attn.{x}_norm.weight", f"{own}/{n}_norm/scale")
            for x, n in (("q", "query"), ("k", "key"))
        ),
        *(
            Pair(f"{LAYER}mlp.{x}_proj.weight", f"{layer}mlp/{n}/kernel", ("turned",))
            for x, n in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo"))
        ),
    ]


def easydel(config: Mapping[str, Any] | None, ref: str) -> list[Pair]:
    """EasyDeL's names of Llama, Mistral and Qwen models: Hugging Face's modules, Flax's leaves."""
    projections = [f"{LAYER}self_attn.{x}_proj" for x in "qkvo"]
    projections += [f"{LAYER}mlp.{x}_proj" for x in ("gate", "up", "down")]
    scales = [f"{LAYER}{n}" for n in (*NORMS, "self_attn.q_norm", "self_attn.k_norm")]
    return [
        Pair("model.embed_tokens.weight", "model.embed_tokens.embedding"),
        *(Pair(f"{n}.weight", f"{n}.kernel", ("turned",)) for n in [*projections, "lm_head"]),
        *(Pair(f"{n}.bias", f"{n}.bias") for n in projections),
        *(Pair(f"{n}.weight", f"{n}.kernel") for n in [*scales, "model.norm"]),
    ]


LIBRARIES: dict[str, Callable[[Mapping[str, Any] | None, str], list[Pair]]] = {
    "tunix": tunix,
    "maxtext": maxtext,
    "maxtext-unscanned": functools.partial(maxtext, at="layers_{}"),
    "easydel": easydel,
}
