"""The layout of BERT's checkpoints in Hugging Face's `BertModel`."""

from __future__ import annotations

from jaxmerge.models.bert.config import Config
from jaxmerge.models.tables import Entry, Table


def hf_table(config: Config) -> list[Entry]:
    """Our leaves against the keys of `BertModel`."""
    table = Table()
    table.add("embeddings.word_embeddings.weight", "text/token")
    table.add("embeddings.position_embeddings.weight", "text/position")
    table.add("embeddings.token_type_embeddings.weight", "text/type")
    table.norm("embeddings.LayerNorm", "text/embed_norm")
    for index in range(config.layers):
        key, name = f"encoder.layer.{index}", f"text/block_{index:02d}"
        for part in ("query", "key", "value"):
            table.dense(f"{key}.attention.self.{part}", f"{name}/attn/{part}")
        table.dense(f"{key}.attention.output.dense", f"{name}/attn/out")
        table.norm(f"{key}.attention.output.LayerNorm", f"{name}/norm1")
        table.dense(f"{key}.intermediate.dense", f"{name}/mlp/up")
        table.dense(f"{key}.output.dense", f"{name}/mlp/down")
        table.norm(f"{key}.output.LayerNorm", f"{name}/norm2")
    if config.pooler:
        table.dense("pooler.dense", "text/pooler")
    return table.entries


def plain_key(key: str) -> str | None:
    """A checkpoint's key as `BertModel` has it; None for what is no part of the encoder.

    Checkpoints of pre-training put `bert.` in front and carry their heads (`cls.`); the oldest
    call a norm's weight and bias gamma and beta.

    >>> plain_key("bert.embeddings.LayerNorm.gamma"), plain_key("cls.predictions.bias")
    ('embeddings.LayerNorm.weight', None)
    """
    if key.startswith("cls.") or key.endswith("embeddings.position_ids"):
        return None
    key = key.removeprefix("bert.")
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
