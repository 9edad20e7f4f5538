"""config.json from a GGUF file's metadata, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmerge.errors import UserError, closest
from jaxmerge.io.architectures.defaults import rms_eps, rope_theta
from jaxmerge.io.gguf.names import KINDS, Kind
from jaxmerge.io.gguf.tensors import Tensors

ENTRIES = {
    # key behind "<architecture>." -> entry of config.json
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
FLOATS = (
    "attention.layer_norm_rms_epsilon", "rope.freq_base", "attn_logit_softcapping",
    "final_logit_softcapping", "rope.scaling.factor",
)  # fmt: skip
TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # all of Llama 3.1 to 3.3
LARGE_GEMMA = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, scaled by width / heads


def kind_of(metadata: Mapping[str, Any], who: str) -> tuple[str, Kind]:
    """The architecture of a file and its row of the table.

    Raises:
        UserError: it says none, or one that is not read.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(
            f"{who} is of the architecture {name!r}, which is not read as a GGUF file "
            f"({closest(str(name), KINDS)})."
        )
    return name, KINDS[name]


def config_of(stored: Tensors, who: str) -> dict[str, Any]:
    """The config.json that Hugging Face has for a GGUF file.

    Raises:
        UserError: metadata that are missing or of another type than they must be.
    """
    name, kind = kind_of(stored.metadata, who)
    config: dict[str, Any] = {}
    for key, entry in ENTRIES.items():
        value = stored.metadata.get(f"{name}.{key}")
        if isinstance(value, np.ndarray) and value.size and (value == value.flat[0]).all():
            value = value.flat[0].item()
        if value is not None and not (key == "attention.sliding_window" and value == 0):
            number, say = (int | float, "a number") if key in FLOATS else (int, "an integer")
            if isinstance(value, bool) or not isinstance(value, number) or not 0 < value < 1e12:
                shown = str(value)[:40]
                raise UserError(f"{who}: {name}.{key} is {shown!r}, expected {say} above 0.")
            config[entry] = float(str(np.float32(value))) if isinstance(value, float) else value
    needed = ("embedding_length", "block_count", "attention.head_count")
    if missing := [f"{name}.{key}" for key in needed if ENTRIES[key] not in config]:
        raise UserError(f"{who} does not say {', '.join(missing)}.")
    experts = stored.metadata.get(f"{name}.expert_count", 0)
    config["model_type"] = kind.moe if experts else kind.family
    if experts:
        config["num_local_experts" if kind.moe == "mixtral" else "num_experts"] = experts
        config["norm_topk_prob"] = kind.moe != "qwen2_moe"
    embedding = stored.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{who} has no embedding token_embd.weight of two axes.")
    config["vocab_size"] = embedding.shape[0]
    config["tie_word_embeddings"] = "output.weight" not in stored.tensors
    if "blk.0.attn_q.bias" in stored.tensors:
        config["qkv_bias" if kind.family == "qwen2_moe" else "attention_bias"] = True
    if name in LARGE_GEMMA:
        head = config.get("head_dim", 256)
        if config["num_hidden_layers"] == LARGE_GEMMA[name]:
            head = config["hidden_size"] // config["num_attention_heads"]
        config["query_pre_attn_scalar"] = head
    config |= _rope(stored, name, config, who)
    for token, entry in TOKENS.items():
        value = stored.metadata.get(f"tokenizer.ggml.{token}_token_id")
        if isinstance(value, int):
            config[entry] = value
    return config


def _rope(stored: Tensors, name: str, config: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Scalings of the rotation: in the metadata, or as factors of every frequency."""
    scaling = stored.metadata.get(f"{name}.rope.scaling.type", "none")
    factor = stored.metadata.get(f"{name}.rope.scaling.factor")
    original = stored.metadata.get(f"{name}.rope.scaling.original_context_length")
    if "rope_freqs.weight" in stored.tensors:
        factors = stored.values("rope_freqs.weight").astype(np.float32)
        return {"rope_scaling": _llama3(factors, config, original or 8192, who)}
    if {"rope_factors_long.weight", "rope_factors_short.weight"} & set(stored.tensors):
        long, short = (
            stored.values(f"rope_factors_{n}.weight").astype(float).tolist()
            for n in ("long", "short")
        )
        rope = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        attention = stored.metadata.get(f"{name}.rope.scaling.attn_factor")
        rope |= {"attention_factor": attention} if attention else {}
        return {"rope_scaling": rope, "original_max_position_embeddings": original}
    if scaling in ("none", "") or factor is None:
        return {}
    if scaling not in ("linear", "yarn"):
        raise UserError(f"{who}: {name}.rope.scaling.type is {scaling!r}, expected linear or yarn.")
    rope = {"rope_type": scaling, "factor": float(factor)}
    if scaling == "yarn" and original:
        rope["original_max_position_embeddings"] = original
    return {"rope_scaling": rope}


def _llama3(factors: np.ndarray, config: Mapping, original: int, who: str) -> dict[str, Any]:
    """Llama 3's scaling, which a GGUF file keeps as what each frequency is divided by."""
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA_3}
    scaling["original_max_position_embeddings"] = original
    expected = llama3_factors(scaling, config.get("rope_theta", 10000.0), 2 * len(factors))
    if not np.allclose(factors, expected, rtol=1e-3):
        raise UserError(f"{who}: rope_freqs.weight is not the scaling of Llama 3.1 and its kin.")
    return scaling


def llama3_factors(scaling: Mapping[str, Any], theta: float, width: int) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by, float32 `[width / 2]`."""
    inverse = float(theta) ** (-np.arange(0, width, 2) / width)
    wave, low, high = 2 * math.pi / inverse, scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = (scaling["original_max_position_embeddings"] / wave - low) / (high - low)
    share = np.clip(share, 0, 1)
    return (1 / ((1 - share) / scaling["factor"] + share)).astype(np.float32)


def metadata_of(config: Mapping[str, Any]) -> tuple[str, Kind, dict[str, Any]]:
    """The architecture for a config.json and its metadata, keys without the architecture.

    Raises:
        UserError: a family that has none here.
    """
    family = str(config.get("model_type"))
    family = "llama" if family == "mistral" and not config.get("sliding_window") else family
    names = [n for n, kind in KINDS.items() if family in (kind.family, kind.moe)]
    if not names:
        known = sorted(
            {k.family for k in KINDS.values()} | {k.moe for k in KINDS.values() if k.moe}
        )
        raise UserError(
            f"A model of type {family!r} cannot be written as GGUF ({closest(str(family), known)})."
        )
    name = names[0]
    metadata = {
        key: config[entry] for key, entry in ENTRIES.items() if config.get(entry) is not None
    }
    if config.get("use_sliding_window") is False:
        metadata.pop("attention.sliding_window", None)
    metadata.setdefault("attention.layer_norm_rms_epsilon", rms_eps(family))
    heads = metadata["attention.head_count"]
    metadata.setdefault("attention.head_count_kv", heads)
    head = metadata.get("attention.key_length", metadata["embedding_length"] // heads)
    if "attention.key_length" in metadata:
        metadata["attention.value_length"] = head
    experts = config.get("num_local_experts") or config.get("num_experts")
    if KINDS[name].moe == family and experts:
        metadata["expert_count"] = experts
    given = config.get("rope_parameters") or {}
    full = given.get("full_attention", given) or {}
    metadata.setdefault("rope.freq_base", full.get("rope_theta") or rope_theta(family))
    part = full.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    metadata["rope.dimension_count"] = int(head * part)
    scaling = {**full, **(config.get("rope_scaling") or {})}
    how = scaling.get("rope_type") or scaling.get("type") or "default"
    if how in ("linear", "yarn"):
        metadata["rope.scaling.type"], metadata["rope.scaling.factor"] = (
            how,
            float(scaling["factor"]),
        )
        if how == "yarn" and scaling.get("original_max_position_embeddings"):
            original = scaling["original_max_position_embeddings"]
            metadata["rope.scaling.original_context_length"] = original
    elif how not in ("default", "llama3"):
        raise UserError(f"A rotation scaled by {how!r} cannot be written as GGUF.")
    return name, KINDS[name], metadata


def scaling_tensor(config: Mapping[str, Any]) -> np.ndarray | None:
    """The tensor `rope_freqs.weight` that Llama 3's scaling is written as; None without it."""
    given = config.get("rope_parameters") or {}
    scaling = {**given, **(config.get("rope_scaling") or {})}
    if (scaling.get("rope_type") or scaling.get("type")) != "llama3":
        return None
    scaling.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = scaling.get("rope_theta") or config.get("rope_theta", 10000.0)
    return llama3_factors(scaling, theta, head)
