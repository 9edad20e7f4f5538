"""The layouts of Hugging Face's `BertModel` and `MPNetModel`, which differ in a few keys."""

from __future__ import annotations

from jaxmerge.io.key_tables import Entry, Table
from jaxmerge.models.bert.config import Config


def hf_table(config: Config) -> list[Entry]:
    """Our leaves against the keys of `BertModel`, or of `MPNetModel` with relative positions."""
    keys = _MPNET if config.buckets else _BERT
    table = Table()
    table.add("embeddings.word_embeddings.weight", "text/token")
    table.add("embeddings.position_embeddings.weight", "text/position")
    if config.types:
        table.add("embeddings.token_type_embeddings.weight", "text/type")
    if config.buckets:
        table.add("encoder.relative_attention_bias.weight", "text/relative")
    table.norm("embeddings.LayerNorm", "text/embed_norm")
    for index in range(config.layers):
        key, name = f"encoder.layer.{index}", f"text/block_{index:02d}"
        for part in ("query", "key", "value", "out"):
            table.dense(f"{key}.attention.{keys[part]}", f"{name}/attn/{part}")
        table.norm(f"{key}.attention.{keys['norm']}", f"{name}/norm1")
        table.dense(f"{key}.intermediate.dense", f"{name}/mlp/up")
        table.dense(f"{key}.output.dense", f"{name}/mlp/down")
        table.norm(f"{key}.output.LayerNorm", f"{name}/norm2")
    if config.pooler:
        table.dense("pooler.dense", "text/pooler")
    return table.entries


_BERT = {part: f"self.{part}" for part in ("query", "key", "value")}
_BERT |= {"out": "output.dense", "norm": "output.LayerNorm"}
_MPNET = {part: f"attn.{part[0]}" for part in ("query", "key", "value", "out")}
_MPNET |= {"norm": "LayerNorm"}


def plain_key(key: str) -> str | None:
    """A checkpoint's key as the bare model has it; None for what is no part of the encoder.

    Checkpoints of pre-training put `bert.` (`mpnet.`) in front and carry their heads (`cls.`,
    `lm_head.`); the oldest call a norm's weight and bias gamma and beta.

    >>> plain_key("bert.embeddings.LayerNorm.gamma"), plain_key("cls.predictions.bias")
    ('embeddings.LayerNorm.weight', None)
    """
    if key.startswith(("cls.", "lm_head.")) or key.endswith("embeddings.position_ids"):
        return None
    key = key.removeprefix("bert.").removeprefix("mpnet.")
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
