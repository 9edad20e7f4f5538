"""What differs between the families of decoders, as data: one row a `model_type`.

A value is a constant, or (a `Key`) the entry of config.json that says it. What a family's
config.json leaves unsaid is in `defaults`, the values of transformers' config classes, and in
`jaxmerge.io.architectures.defaults`, which GGUF files need too.

Sources: Llama 2 (arXiv 2307.09288) and 3 (2407.21783), Mistral (2310.06825), Qwen2 (2407.10671),
Qwen3 (2505.09388), Gemma (2403.08295), Gemma 2 (2408.00118), Gemma 3 (2503.19786), Phi-3
(2404.14219), Mixtral (2401.04088); the formulas are transformers' (5.24).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Key:
    """An entry of config.json, its value where it is absent, and another name that it may have."""

    name: str
    default: Any = None
    alias: str = ""

    def of(self, settings: Mapping) -> Any:
        return settings.get(self.name, settings.get(self.alias, self.default))


Windowed = Callable[[Mapping, int], bool]  # config.json, layer -> whether its attention is windowed


@dataclass(frozen=True)
class Experts:
    """Where a family's config.json and its checkpoints say what of its experts.

    Attributes:
      count, chosen, hidden: experts a layer, those that a token uses, their width.
      normalise: whether the weights of the chosen ones sum to one.
      shared: width of the expert that every token uses, None without one.
      where: keys of a layer's experts in a checkpoint: router, one expert, its three matrices.
    """

    count: Key
    chosen: Key
    hidden: Key
    normalise: bool | Key
    shared: Key | None
    where: Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
      architecture: transformers' class.
      defaults: entries of config.json where it lacks them.
      local_theta: the base of the rotation's wavelengths in windowed layers where it is another.
      bias, out_bias, mlp_bias: of query, key and value; of attention's output; of the MLP.
      qk_norm: queries and keys are normalised, each head on its own.
      norm_offset: what norms add to their scale.
      out_norms: norms behind attention and MLP too.
      embed_scaled: embeddings times the root of the width.
      score_width: scores are divided by its root, otherwise by that of the head's width.
      score_cap, logit_cap: soft caps of scores and logits.
      windowed: which layers look at a window only, where config.json has no `layer_types`.
      listed: whether `layer_types` decides where it is there.
      experts: of a mixture of experts.
      fused: query, key and value in one tensor of a checkpoint, gate and up in another.
    """

    architecture: str
    defaults: Mapping[str, Any]
    local_theta: float | None = None
    bias: bool | Key = False
    out_bias: bool | Key = False
    mlp_bias: bool | Key = False
    qk_norm: bool = False
    norm_offset: float = 0.0
    out_norms: bool = False
    embed_scaled: bool = False
    score_width: Key | None = None
    score_cap: Key | None = None
    logit_cap: Key | None = None
    windowed: Windowed = field(default=lambda settings, layer: False)
    listed: bool = False
    experts: Experts | None = None
    fused: bool = False


def _every(settings: Mapping, layer: int) -> bool:
    return True


def _late(settings: Mapping, layer: int) -> bool:
    return layer >= settings["max_window_layers"]


def _all_but_every(nth: int | Key) -> Windowed:
    def windowed(settings: Mapping, layer: int) -> bool:
        return bool((layer + 1) % (nth.of(settings) if isinstance(nth, Key) else nth))

    return windowed


def _odd_early(settings: Mapping, layer: int) -> bool:
    return bool((layer + 1) % 2) and layer < settings["max_window_layers"]


def _defaults(**values: Any) -> Mapping[str, Any]:
    common = {"initializer_range": 0.02, "hidden_act": "silu"}
    return MappingProxyType({**common, "tie_word_embeddings": False, **values})


_LLAMA = dict(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
    num_attention_heads=32, max_position_embeddings=2048,
)  # fmt: skip
_MISTRAL = {
    **_LLAMA, "intermediate_size": 14336, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "sliding_window": 4096,
}  # fmt: skip
_QWEN = dict(
    vocab_size=151936, hidden_size=4096, intermediate_size=22016, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=32768,
    use_sliding_window=False, sliding_window=4096, max_window_layers=28,
)  # fmt: skip
_QWEN_MOE = {
    **_QWEN, "hidden_size": 2048, "num_hidden_layers": 24, "decoder_sparse_step": 1,
    "norm_topk_prob": False, "mlp_only_layers": None,
}  # fmt: skip
_GEMMA = dict(
    vocab_size=256000, head_dim=256, max_position_embeddings=8192, tie_word_embeddings=True,
    hidden_act="gelu_pytorch_tanh",
)  # fmt: skip
_GEMMA_2 = {
    **_GEMMA, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
}  # fmt: skip

_SAID = Key("attention_bias", False)
_QWEN_EXPERTS = MappingProxyType({
    "router": "mlp.gate",
    "expert": "mlp.experts.{}",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
})  # fmt: skip

FAMILIES: Mapping[str, Family] = MappingProxyType({
    "llama": Family(
        "LlamaForCausalLM", _defaults(**_LLAMA),
        bias=_SAID, out_bias=_SAID, mlp_bias=Key("mlp_bias", False),
    ),
    "mistral": Family("MistralForCausalLM", _defaults(**_MISTRAL), windowed=_every),
    "qwen2": Family(
        "Qwen2ForCausalLM", _defaults(**_QWEN), bias=True, windowed=_late, listed=True
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", _defaults(**_QWEN, head_dim=128),
        bias=_SAID, out_bias=_SAID, qk_norm=True, windowed=_late, listed=True,
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        _defaults(
            **_GEMMA, hidden_size=3072, intermediate_size=24576, num_hidden_layers=28,
            num_attention_heads=16, num_key_value_heads=16,
        ),
        bias=_SAID, out_bias=_SAID, norm_offset=1.0, embed_scaled=True,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM", _defaults(**_GEMMA_2),
        bias=_SAID, out_bias=_SAID, norm_offset=1.0, out_norms=True, embed_scaled=True,
        score_width=Key("query_pre_attn_scalar", 256),
        score_cap=Key("attn_logit_softcapping", 50.0),
        logit_cap=Key("final_logit_softcapping", 30.0),
        windowed=_all_but_every(2), listed=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _defaults(**{**_GEMMA_2, "vocab_size": 262208, "max_position_embeddings": 131072}),
        local_theta=10_000.0,
        bias=_SAID, out_bias=_SAID, qk_norm=True, norm_offset=1.0, out_norms=True,
        embed_scaled=True,
        score_width=Key("query_pre_attn_scalar", 256),
        score_cap=Key("attn_logit_softcapping"), logit_cap=Key("final_logit_softcapping"),
        windowed=_all_but_every(Key("sliding_window_pattern", 6)), listed=True,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        _defaults(
            **{**_LLAMA, "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192},
            original_max_position_embeddings=4096,
        ),
        windowed=_every, fused=True,
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        _defaults(**{**_MISTRAL, "sliding_window": None}),
        windowed=_every,
        experts=Experts(
            Key("num_local_experts", 8, "num_experts"), Key("num_experts_per_tok", 2),
            Key("intermediate_size"),
            normalise=True, shared=None,
            where=MappingProxyType({
                "router": "block_sparse_moe.gate", "expert": "block_sparse_moe.experts.{}",
                "gate": "w1", "up": "w3", "down": "w2",
            }),
        ),
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        _defaults(
            **{**_QWEN_MOE, "num_attention_heads": 16, "num_key_value_heads": 16,
               "intermediate_size": 5632},
        ),
        bias=Key("qkv_bias", True), windowed=_odd_early, listed=True,
        experts=Experts(
            Key("num_experts", 60, "num_local_experts"), Key("num_experts_per_tok", 4),
            Key("moe_intermediate_size", 1408), normalise=Key("norm_topk_prob", False),
            shared=Key("shared_expert_intermediate_size", 5632), where=_QWEN_EXPERTS,
        ),
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _defaults(
            **{**_QWEN_MOE, "num_key_value_heads": 4, "intermediate_size": 6144},
        ),
        bias=_SAID, out_bias=_SAID, qk_norm=True, windowed=_every,
        experts=Experts(
            Key("num_experts", 128, "num_local_experts"), Key("num_experts_per_tok", 8),
            Key("moe_intermediate_size", 768), normalise=Key("norm_topk_prob", False),
            shared=None, where=_QWEN_EXPERTS,
        ),
    ),
})  # fmt: skip

# Entries of config.json that say nothing of what is computed.
SILENT = frozenset((
    "architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "initializer_range",
    "pretraining_tp", "attn_implementation", "_attn_implementation", "_name_or_path",
    "return_dict", "output_attentions", "output_hidden_states", "output_router_logits",
    "router_aux_loss_coef", "id2label", "label2id", "chunk_size_feed_forward",
    "is_encoder_decoder", "resid_pdrop", "embd_pdrop", "auto_map",
))  # fmt: skip
