"""The layout of transformers' checkpoints of decoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxmerge.io.key_tables import Entry, Table
from jaxmerge.models.decoder.config import Config
from jaxmerge.models.decoder.families import FAMILIES

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
_FOUR_NORMS = {
    "norm1": "input_layernorm",
    "out_norm1": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "out_norm2": "post_feedforward_layernorm",
}
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def hf_table(config: Config) -> list[Entry]:
    """Our leaves against the keys of a family's `...ForCausalLM`."""
    family, table = FAMILIES[config.family], Table()
    table.add(EMBEDDING, "token")
    for index in range(config.layers):
        key, name = f"model.layers.{index}", f"block_{index:02d}"
        for ours, theirs in (_FOUR_NORMS if config.out_norms else _NORMS).items():
            table.add(f"{key}.{theirs}.weight", f"{name}/{ours}/scale")
        attention, parts = f"{key}.self_attn", ("query", "key", "value")
        if family.fused:
            names = [f"{name}/attn/{part}" for part in parts]
            table.dense(f"{attention}.qkv_proj", *names, bias=config.bias)
        else:
            for part in parts:
                where = f"{attention}.{_ATTENTION[part]}"
                table.dense(where, f"{name}/attn/{part}", bias=config.bias)
        table.dense(f"{attention}.o_proj", f"{name}/attn/out", bias=config.out_bias)
        if config.qk_norm:
            table.add(f"{attention}.q_norm.weight", f"{name}/attn/query_norm/scale")
            table.add(f"{attention}.k_norm.weight", f"{name}/attn/key_norm/scale")
        if config.experts and config.experts.layers[index]:
            _experts(table, config, key, name)
        elif family.fused:
            gate_up = [f"{name}/mlp/gate", f"{name}/mlp/up"]
            table.dense(f"{key}.mlp.gate_up_proj", *gate_up, bias=config.mlp_bias)
            table.dense(f"{key}.mlp.down_proj", f"{name}/mlp/down", bias=config.mlp_bias)
        else:
            _mlp(table, f"{key}.mlp", f"{name}/mlp", config.mlp_bias)
    table.add("model.norm.weight", "final_norm/scale")
    if not config.tied:
        table.add(HEAD, "head/kernel", kind="dense")
    return table.entries


def _mlp(table: Table, key: str, name: str, bias: bool, keys: Mapping[str, str] = _MLP) -> None:
    for part in _MLP:
        table.dense(f"{key}.{keys[part]}", f"{name}/{part}", bias=bias)


def _experts(table: Table, config: Config, key: str, name: str) -> None:
    row, mixture = FAMILIES[config.family].experts, config.experts
    if row is None or mixture is None:
        raise TypeError(f"{config.family} has no experts")
    table.dense(f"{key}.{row.where['router']}", f"{name}/moe/router", bias=False)
    for index in range(mixture.count):
        where = f"{key}.{row.where['expert'].format(index)}"
        _mlp(table, where, f"{name}/moe/expert_{index:02d}", False, row.where)
    if mixture.shared:
        _mlp(table, f"{key}.mlp.shared_expert", f"{name}/moe/shared", False)
        table.dense(f"{key}.mlp.shared_expert_gate", f"{name}/moe/shared_gate", bias=False)


def plain_keys(keys: Iterable[str]) -> dict[str, str]:
    """The keys of a checkpoint as `hf_table` has them -> as they are stored.

    A decoder saved without its head (`LlamaModel`) lacks the `model.` in front; tables of
    rotations are no parameters.

    >>> plain_keys(["layers.0.mlp.up_proj.weight", "layers.0.self_attn.rotary_emb.inv_freq"])
    {'model.layers.0.mlp.up_proj.weight': 'layers.0.mlp.up_proj.weight'}
    """
    keys = [key for key in keys if not key.endswith(".rotary_emb.inv_freq")]
    bare = not any(key.startswith("model.") for key in keys)
    return {f"model.{key}" if bare and key != HEAD else key: key for key in keys}
