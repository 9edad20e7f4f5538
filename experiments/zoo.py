"""Every architecture of transformers, built small: what the table and its proof are made with.

`config_of` takes the default config of a model type and divides its widths by one factor, so that
all that has to fit goes on fitting (heads into widths, groups into channels); layers become three,
tokens a hundred.  `shapes_of` gives the leaves of a checkpoint as `save_pretrained` would write it,
from the meta device: nothing is computed.
"""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, logging
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.models.auto.auto_factory import getattribute_from_module
from transformers.models.auto.configuration_auto import model_type_to_module_name

logging.set_verbosity(logging.CRITICAL)
warnings.filterwarnings("ignore")

ORDER = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM",
         "CAUSAL_LM", "MASKED_LM", "PRETRAINING", "ZERO_SHOT_IMAGE_CLASSIFICATION", "CTC",
         "IMAGE_CLASSIFICATION", "OBJECT_DETECTION", "SEMANTIC_SEGMENTATION",
         "AUDIO_CLASSIFICATION", "SEQUENCE_CLASSIFICATION")  # fmt: skip
COUNT = re.compile(
    r"layers?$|^depth$|^n_layers?$|_layers$|_blocks?$|^num_blocks|repeats|num_stacks|_depth$"
)
EXPERT = re.compile(r"experts?$")
FEW = re.compile(
    r"per_tok|top_?k|heads$|(num|n)_head$|groups?$|window|patch|stride|kernel|channels?$|num_labels"
)
HEADS = re.compile(r"^(num|n)_\w*heads?$|_heads$")
IDS = re.compile(r"(_id|_idx|_index|_token|_ids|_tokens)$")
NEEDED: dict[str, dict[str, Any]] = {  # what a default config leaves open
    **{t: {"prediction_length": 8} for t in ("autoformer", "informer", "time_series_transformer")},
    **{t: {"head_dim": 128} for t in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **{t: {"num_experts_per_tok": 2} for t in ("qwen4_exp_text",)},
    **{t: {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6}} for t in ("chameleon", "emu3")},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp": {"text_config": {"num_experts_per_tok": 2}},
    "reformer": {"is_decoder": True},
    "wav2vec2-bert": {"vocab_size": 100},
}
WIDE = 64
TOKENS = 100


class Empty(Exception):
    """Nothing was tried."""


def types() -> list[str]:
    """Model types that have a model."""
    return [t for t in configuration_auto.CONFIG_MAPPING_NAMES if class_name(t)]


@functools.cache
def class_name(model_type: str) -> str | None:
    """The class that most checkpoints of a type hold: a language model before a bare one."""
    tables = {
        k: v
        for k, v in vars(modeling_auto).items()
        if k.startswith("MODEL_") and k.endswith("_NAMES")
    }
    names = [f"MODEL_FOR_{o}_MAPPING_NAMES" for o in ORDER]
    names += ["MODEL_MAPPING_NAMES", *sorted(tables)]
    for name in names:
        classes = tables.get(name, {}).get(model_type)
        if classes:
            return classes if isinstance(classes, str) else classes[0]
    return None


def class_of(model_type: str) -> type:
    """The class itself."""
    import importlib

    module = importlib.import_module(f"transformers.models.{model_type_to_module_name(model_type)}")
    return getattribute_from_module(module, class_name(model_type))


def ints(config: Any, path: tuple = ()) -> Iterator[tuple[tuple, int]]:
    """Every integer of a nested config with its path."""
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in items:
        if type(value) is int:
            yield (*path, key), value
        elif isinstance(value, dict | list):
            yield from ints(value, (*path, key))


def put(config: dict, path: tuple, value: Any) -> dict:
    """The config with another value there."""
    out = copy.deepcopy(config)
    at = out
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return out


def word(path: tuple) -> str:
    return next(str(k) for k in reversed(path) if isinstance(k, str))


def build(model_type: str, config: dict, device: str = "meta") -> torch.nn.Module:
    """The model of a config as data."""
    hf_config = AutoConfig.for_model(
        model_type, **{k: v for k, v in copy.deepcopy(config).items() if k != "model_type"}
    )
    with torch.device(device):
        return class_of(model_type)(hf_config)


def default(model_type: str) -> dict:
    """The default config as data, without what follows from the rest."""
    config = AutoConfig.for_model(model_type, **NEEDED.get(model_type, {})).to_dict()

    def clean(d: dict) -> dict:
        drop = (
            "per_layer_config",
            "id2label",
            "label2id",
            "architectures",
            "transformers_version",
            "_name_or_path",
            "dtype",
        )
        return {
            k: clean(v) if isinstance(v, dict) else v
            for k, v in d.items()
            if k not in drop and v is not None
        }

    return clean(config)


def shrink(config: dict, factor: int, layers: int, experts: int, heads: int = 0) -> dict:
    """Widths divided, layers and experts few; heads too, unless 0; vocabularies stay apart."""
    sizes = sorted({v for p, v in ints(config) if "vocab" in word(p) and v > TOKENS})

    def small(key: Any, value: Any, here: dict) -> Any:
        key = str(key)
        if isinstance(value, dict):
            return {k: small(k, v, value) for k, v in value.items()}
        if isinstance(value, list) and "section" in key and value and type(value[0]) is int:
            third = sum(value) // factor // len(value)
            return [sum(value) // factor - third * (len(value) - 1), *[third] * (len(value) - 1)]
        if isinstance(value, list):
            if re.search(r"layers?$|indices|indexes|idxs", key):
                return [min(v, layers - 1) if type(v) is int else v for v in value]
            return [small(key, v, here) for v in value]
        if type(value) is not int or IDS.search(key):
            return min(value, TOKENS - 1) if type(value) is int and value >= TOKENS else value
        if "vocab" in key and value > TOKENS:
            return TOKENS + sizes.index(value)
        if COUNT.search(key) and layers < value <= 200:
            return layers
        if EXPERT.search(key) and value > experts:
            return experts
        if heads and HEADS.search(key) and value > heads:
            return heads
        if FEW.search(key) or "image_size" in key or value < WIDE or value % factor:
            return value
        return value // factor

    def lists(d: dict) -> dict:
        counts = {v for k, v in d.items() if type(v) is int and COUNT.search(k)}
        return {
            k: lists(v) if isinstance(v, dict) else v
            for k, v in d.items()
            if not (isinstance(v, list) and len(v) in counts and len(v) > layers)
        }

    config = lists(config)
    return {k: small(k, v, config) for k, v in config.items()}


def config_of(
    model_type: str,
    factors: tuple = (32, 16, 8, 4, 2, 1),
    layers: int = 3,
    experts: int = 4,
    most: int = 6_000_000,
) -> dict:
    """A small config that builds.

    Raises:
        Exception: what the last try raised.
    """
    first, best = default(model_type), None
    error: Exception = Empty(f"every small config has more than {8 * most:,} parameters")
    for factor in factors:
        for few, heads in ((layers, 0), (layers, 4), (4, 0), (4, 4), (12, 0), (200, 0)):
            config = shrink(first, factor, few, experts, heads)
            try:
                model = build(model_type, config)
            except ImportError:
                raise
            except Exception as e:
                error = e if isinstance(error, Empty) else error
                continue
            size = sum(p.numel() for p in model.parameters())
            if size <= most:
                return config
            if best is None or size < best[0]:
                best = size, config
    if best is not None and best[0] <= 8 * most:
        return best[1]
    raise error


def stored(model: torch.nn.Module) -> dict[str, str]:
    """Name in the module -> name in a checkpoint, of arrays that are stored under one name."""
    state = model.state_dict()
    marks = {id(t): n for n, t in state.items()}
    out = revert_weight_conversion(model, dict(state))
    return {marks[id(t)]: n for n, t in out.items() if id(t) in marks}


def checkpoint(model: torch.nn.Module, ties: bool = False) -> dict[str, torch.Tensor]:
    """The leaves as `save_pretrained` writes them, tied ones once (unless `ties`)."""
    state = model.state_dict()
    if not ties:
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        state = {n: t for n, t in state.items() if n not in tied}
    return revert_weight_conversion(model, dict(state))


def shapes_of(model_type: str, config: dict) -> dict[str, tuple[int, ...]]:
    """Leaf -> shape of a checkpoint."""
    return {n: tuple(t.shape) for n, t in checkpoint(build(model_type, config)).items()}
