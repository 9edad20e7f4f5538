"""GGUF's names and layouts of decoders against Hugging Face's, as data.

A `Place` says which tensor of a GGUF file a leaf of a Hugging Face checkpoint is, and how:

    same       as it is
    heads      rows of queries and keys, which llama.cpp's converter interleaves within each head:
               P = W.reshape(h, 2, d/2, in).swapaxes(1, 2).reshape(out, in)
    plus_one   norms that Gemma adds one to are stored with the one in them
    expert     one of the matrices that are stacked
    column     `[1, n]` here, `[n]` there
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jaxmerge.errors import UserError


class Place(NamedTuple):
    """Where a leaf is in a GGUF file.

    Attributes:
        name: of the tensor there.
        kind: of the mapping, see above.
        index: of an expert.
    """

    name: str
    kind: str = "same"
    index: int = 0


class Kind(NamedTuple):
    """One `general.architecture`.

    Attributes:
        family: `model_type` of config.json.
        moe: the same where there are experts.
        interleaved: whether rows of queries and keys are interleaved.
        plus_one: whether norms hold one more.
        four_norms: norms behind attention and MLP too.
        fused: gate and up are one matrix.
        experts: how a checkpoint calls a layer's experts: router, expert, matrices.
    """

    family: str
    moe: str = ""
    interleaved: bool = False
    plus_one: bool = False
    four_norms: bool = False
    fused: bool = False
    experts: tuple[str, str, tuple[str, str, str]] | None = None


_QWEN_EXPERTS = ("mlp.gate", "mlp.experts", ("gate_proj", "up_proj", "down_proj"))
KINDS: Mapping[str, Kind] = MappingProxyType({
    "llama": Kind(
        "llama", "mixtral", interleaved=True,
        experts=("block_sparse_moe.gate", "block_sparse_moe.experts", ("w1", "w3", "w2")),
    ),
    "qwen2": Kind("qwen2"),
    "qwen3": Kind("qwen3"),
    "qwen2moe": Kind("qwen2_moe", "qwen2_moe", experts=_QWEN_EXPERTS),
    "qwen3moe": Kind("qwen3_moe", "qwen3_moe", experts=_QWEN_EXPERTS),
    "gemma": Kind("gemma", plus_one=True),
    "gemma2": Kind("gemma2", plus_one=True, four_norms=True),
    "gemma3": Kind("gemma3_text", plus_one=True, four_norms=True),
    "phi3": Kind("phi3", fused=True),
})  # fmt: skip

_TOP = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_EXPERT = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
IGNORED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_KEY = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def place_of(key: str, kind: Kind) -> Place:
    """Where a leaf of a Hugging Face checkpoint is in a GGUF file.

    >>> place_of("model.layers.3.self_attn.q_proj.weight", KINDS["llama"])
    Place(name='blk.3.attn_q.weight', kind='heads', index=0)
    """
    top, _, end = key.rpartition(".")
    if top in _TOP:
        norm = top == "model.norm" and kind.plus_one
        return Place(f"{_TOP[top]}.{end}", "plus_one" if norm else "same")
    match = _KEY.fullmatch(key)
    if match is None:
        raise UserError(f"{key!r} has no place in a GGUF file of {kind.family}.")
    layer, module, end = match.groups()
    names = _modules(kind)
    if kind.experts is not None:
        _, experts, parts = kind.experts
        expert = re.fullmatch(rf"{re.escape(experts)}\.(\d+)\.({'|'.join(parts)})", module)
        if expert is not None:
            name = _EXPERT[parts.index(expert.group(2))]
            return Place(f"blk.{layer}.{name}.{end}", "expert", int(expert.group(1)))
    if module not in names:
        raise UserError(f"{key!r} has no place in a GGUF file of {kind.family}.")
    name = f"blk.{layer}.{names[module]}.{end}"
    if kind.interleaved and module in ("self_attn.q_proj", "self_attn.k_proj"):
        return Place(name, "heads")
    if kind.plus_one and module.endswith("norm"):
        return Place(name, "plus_one")
    return Place(name, "column" if module == "mlp.shared_expert_gate" else "same")


def _modules(kind: Kind) -> dict[str, str]:
    """A layer's modules -> their names in a GGUF file."""
    names = {**_LAYER, **(_FOUR_NORMS if kind.four_norms else {})}
    if kind.experts is not None:
        names[kind.experts[0]] = "ffn_gate_inp"
    del names["mlp.up_proj" if kind.fused else "mlp.gate_up_proj"]
    return names


def keys_of(name: str, kind: Kind, count: int) -> list[str]:
    """The leaves of a Hugging Face checkpoint that a tensor of a GGUF file holds; none if unknown.

    Args:
        count: the tensor's length, the number of experts where it holds such.

    >>> keys_of("blk.0.ffn_norm.weight", KINDS["llama"], 64)
    ['model.layers.0.post_attention_layernorm.weight']
    """
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        return []
    layer, called, end = match.groups()
    if layer is None:
        return [f"{top}.{end}" for top, theirs in _TOP.items() if theirs == called]
    if called in _EXPERT and kind.experts is not None:
        _, experts, parts = kind.experts
        part = parts[_EXPERT.index(called)]
        return [f"model.layers.{layer}.{experts}.{i}.{part}.{end}" for i in range(count)]
    modules = [ours for ours, theirs in _modules(kind).items() if theirs == called]
    return [f"model.layers.{layer}.{module}.{end}" for module in modules]


def to_theirs(place: Place, leaf: np.ndarray, heads: int) -> np.ndarray:
    """A leaf as a GGUF file has it; `heads` of the queries or keys that it makes."""
    if place.kind == "heads":
        halves = leaf.reshape(heads, 2, len(leaf) // heads // 2, *leaf.shape[1:])
        return halves.swapaxes(1, 2).reshape(leaf.shape)
    if place.kind == "plus_one":
        return leaf.astype(np.float32) + 1
    return leaf.reshape(-1) if place.kind == "column" else leaf


def to_ours(place: Place, tensor: np.ndarray, heads: int) -> np.ndarray:
    """The inverse; of stacked experts the one that is meant."""
    if place.kind == "heads":
        pairs = tensor.reshape(heads, len(tensor) // heads // 2, 2, *tensor.shape[1:])
        return pairs.swapaxes(1, 2).reshape(tensor.shape)
    if place.kind == "plus_one":
        return tensor.astype(np.float32) - 1
    if place.kind == "expert":
        return tensor[place.index]
    return tensor.reshape(1, -1) if place.kind == "column" else tensor
