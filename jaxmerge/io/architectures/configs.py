"""Keys of config.json, wherever they stand; a path is a tuple: ("text_config", "num_layers").

What is written into a config goes to the keys that it has; none is ever added.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Path = tuple[str | int, ...]

COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "depth",
          "encoder_layers", "decoder_layers", "num_encoder_layers", "depths")  # fmt: skip
VOCABULARIES = (
    "vocab_size",
    "padded_vocab_size",
    "n_vocab",
    "vocabulary_size",
    "text_vocab_size",
    "vocab_size_per_layer_input",
)
OTHER_VOCABULARIES = re.compile(r"vocab|codebook|num_codes|_tokens$|code_size")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_experts",
           "num_routed_experts")  # fmt: skip
FURTHER = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers")
DTYPES = ("dtype", "torch_dtype")
PERIODS = ("attn_layer_period", "expert_layer_period", "decoder_sparse_step", "moe_layer_freq",
           "interleave_moe_layer_step", "full_attention_interval", "encoder_sparse_step",
           "moe_layer_interval", "moe_every_n_layers", "cross_attention_frequency",
           "n_layers_per_attn_res_block")  # fmt: skip
UNLISTED = ("n_layers_per_attn_res_block",)  # periods that hold whatever lists by layer say
DENSE = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
INDICES = ("mlp_only_layers", "moe_layers", "cross_attention_layers", "attn_layer_indices",
           "full_attn_idxs", "full_attention_layers", "global_attn_layers", "kv_share_layers",
           "global_attn_indexes", "fullatt_block_indexes", "window_block_indices",
           "global_attention_blocks", "residual_block_indices", "local_layer_ids",
           "ple_layer_ids", "rope_scaling_layers")  # fmt: skip
SHARED = ("kv_source_layers",)  # by layer, the number of the layer whose cache it reads
STAGES = re.compile(r"stage|stride|kernel|channel|conv|pool|ratio|patch|^out_")  # lists by stage
OTHERS = re.compile(  # lists by axis of the input, of names, of tokens
    r"image|video|tubelet|window_size$|section|^architectures$|_to_|_args$|label|lang|token"
    r"|_mean$|_std$"
)
NUMBERS = re.compile(r"ind(ex|ic)es$|_(idx|ids|index)s?$")  # lists of numbers, of layers or others


def walk(config: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every key of a nested config with its path, outer keys before inner ones."""
    for key, value in config.items():
        yield (*path, key), value
    for key, value in config.items():
        if isinstance(value, Mapping) and len(path) < 6:
            yield from walk(value, (*path, key))


def get(config: Any, path: Path, default: Any = None) -> Any:
    """The value at a path.

    >>> get({"a": {"b": [1, 2]}}, ("a", "b", 1))
    2
    """
    for key in path:
        try:
            config = config[key]
        except (KeyError, IndexError, TypeError):
            return default
    return config


def changed(config: Mapping[str, Any], changes: Mapping[Path, Any]) -> dict[str, Any]:
    """The config with other values at these paths.

    >>> changed({"a": {"b": 1}, "c": 2}, {("a", "b"): 3})
    {'a': {'b': 3}, 'c': 2}
    """
    out = copy.deepcopy(dict(config))
    for path, value in changes.items():
        get(out, path[:-1])[path[-1]] = value
    return out


def numbers_at(config: Mapping[str, Any], keys: Sequence[str]) -> dict[Path, int]:
    """Every integer under one of these keys."""
    return {p: v for p, v in walk(config) if p[-1] in keys and type(v) is int}


def count_path(
    config: Mapping[str, Any], known: Path, count: int, near: Callable[[Path], int]
) -> Path:
    """The path of the key that says how many layers a stack has, or ().

    Args:
        known: where the family has it, perhaps in a config of another depth.
        count: how many layers the weights have; may be more than the config says by a few that
            predict further tokens.
        near: of several such keys, which is nearest to the stack.
    """
    if known:
        for path in (known, known[-1:], *(p for p, _ in walk(config) if p[-1:] == known[-1:])):
            if isinstance(get(config, path), int):
                return path
    keys = numbers_at(config, COUNTS)
    fitting = [p for p, v in keys.items() if v in (count, count - further(config))]
    order = lambda p: (-near(p), COUNTS.index(p[-1]), len(p))
    return min(fitting, key=order, default=())


def kind_of(config: Any, layer: int) -> tuple:
    """Where a layer stands in every period of the config that gives layers other leaves.

    >>> kind_of({"first_k_dense_replace": 2}, 1) == kind_of({"first_k_dense_replace": 2}, 0)
    True
    >>> kind_of({"attn_layer_period": 4}, 1) == kind_of({"attn_layer_period": 4}, 5)
    True
    """
    if not isinstance(config, Mapping):
        return ()
    period = lambda k: config[k] if type(config.get(k)) is int and config[k] > 0 else 1
    out: list[Any] = [layer % period(k) for k in PERIODS]
    dense = [config[k] for k in DENSE if type(config.get(k)) is int]
    return (*out, *(layer < k for k in dense))


def further(config: Mapping[str, Any]) -> int:
    """How many layers behind the last predict further tokens (DeepSeek, GLM)."""
    return max(numbers_at(config, FURTHER).values(), default=0)


def by_layer(config: Mapping[str, Any], path: Path, count: int) -> list[Path]:
    """Lists with one entry for each layer, beside the key of the count.

    Where an encoder and a decoder have as many layers, a list that names neither is the encoder's,
    as is ``num_hidden_layers`` in transformers.

    >>> config = {"encoder_layers": 2, "decoder_layers": 2, "attention_window": [8, 4]}
    >>> [by_layer(config, (k,), 2) for k in ("encoder_layers", "decoder_layers")]
    [[('attention_window',)], []]
    """
    here = get(config, path[:-1], {})
    if not path or not isinstance(here, Mapping):
        return []
    side = lambda key: next((s for s in ("encoder", "decoder") if s in str(key)), "")
    own = side(path[-1])
    alike = any(side(k) not in ("", own) and here.get(k) == count for k in COUNTS)
    its = lambda key: not (own and alike) or (side(key) or "encoder") == own
    other = {*of_layers(config, path, count), *shared(config, path, count)}
    return [
        (*path[:-1], k)
        for k, v in here.items()
        if isinstance(v, list)
        and len(v) == count
        and its(k)
        and not (NUMBERS.search(k) or STAGES.search(k) or OTHERS.search(k))
        and (*path[:-1], k) not in other
    ]


def of_layers(config: Mapping[str, Any], path: Path, count: int) -> list[Path]:
    """Lists of numbers of layers (the layers with experts, say), beside the key of the count.

    >>> config = {"num_hidden_layers": 3, "moe_layers": [0, 1, 2], "kv_share_layers": [1, 1, 0]}
    >>> of_layers(config, ("num_hidden_layers",), 3)
    [('moe_layers',)]
    """
    here = get(config, path[:-1], {})
    if not path or not isinstance(here, Mapping):
        return []
    return [
        (*path[:-1], k)
        for k in INDICES
        if isinstance(v := here.get(k), list)
        and all(type(i) is int for i in v)
        and (len(set(v)) == len(v) or not (len(v) == count and not NUMBERS.search(k)))
    ]


def shared(config: Mapping[str, Any], path: Path, count: int) -> list[Path]:
    """Lists that say of each layer which layer's cache it reads, beside the key of the count."""
    here = get(config, path[:-1], {})
    if not path or not isinstance(here, Mapping):
        return []
    return [
        (*path[:-1], k)
        for k in SHARED
        if isinstance(v := here.get(k), list) and len(v) == count and all(type(i) is int for i in v)
    ]
