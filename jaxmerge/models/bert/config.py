"""What a BERT sentence encoder looks like, and how its states become one vector a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxmerge.models.transformer import ACTIVATIONS


@dataclass(frozen=True)
class Config:
    """A BERT or MPNet encoder with sentence-transformers' pooling.

    Attributes:
      vocab, positions, types: sizes of the three embeddings; MPNet has no types (0).
      first: the position of a sentence's first token (MPNet: the one behind its padding id).
      buckets: of MPNet's relative positions, which add to the scores of attention; 0 for none.
      width, layers, heads, hidden: of the transformer.
      activation, eps: of the MLP and of every layer norm.
      pad: token id of padding.
      pooler: whether the checkpoint carries BERT's pooler (kept, never used for sentences).
      pooling: "mean" of the states of a sentence's tokens, or "cls", the first state.
      normalise: whether sentence vectors are scaled to unit length.
      max_tokens: longest sentence, special tokens included.
    """

    vocab: int = 30522
    positions: int = 512
    types: int = 2
    first: int = 0
    buckets: int = 0
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: str = "gelu"
    eps: float = 1e-12
    pad: int = 0
    pooler: bool = True
    pooling: str = "mean"
    normalise: bool = True
    max_tokens: int = 512

    def __post_init__(self):
        wrong = []
        sizes = ("vocab", "positions", "width", "layers", "heads", "hidden")
        if low := [f"{name} {size}" for name in sizes if (size := getattr(self, name)) < 1]:
            wrong.append(f"expected at least 1, found {', '.join(low)}")
        elif self.width % self.heads:
            wrong.append(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(sorted(ACTIVATIONS))
            wrong.append(f"activation {self.activation!r}, expected one of {known}")
        if self.pooling not in ("mean", "cls"):
            wrong.append(f"pooling {self.pooling!r}, expected mean or cls")
        if not 2 < self.max_tokens <= self.room:
            wrong.append(f"max_tokens {self.max_tokens} beside {self.room} positions")
        if wrong:
            raise ValueError(f"BERT config: {'; '.join(wrong)}")

    @property
    def room(self) -> int:
        """Tokens that have a position."""
        return self.positions - self.first

    @classmethod
    def from_hf(cls, config: Mapping, **pooling) -> Config:
        """Reads Hugging Face's `config.json` of a BERT or MPNet; `pooling` sets what it lacks."""
        kind = config.get("model_type")
        if kind not in ("bert", "mpnet"):
            raise ValueError(f"config.json: found model_type {kind!r}, expected bert or mpnet")
        if config.get("position_embedding_type", "absolute") != "absolute":
            position_type = config["position_embedding_type"]
            raise ValueError(f"config.json: found {position_type!r} positions, expected absolute")
        values = {ours: config[theirs] for ours, theirs in FIELDS.items() if theirs in config}
        if kind == "mpnet":
            values = {**MPNET, **values}
            values |= {"types": 0, "first": values["pad"] + 1}
        positions = values.get("positions", cls.positions) - values.get("first", 0)
        values.setdefault("max_tokens", positions)
        return cls(**{**values, **pooling})

    def to_hf(self) -> dict:
        """The `config.json` with which transformers builds the same architecture."""
        values = {theirs: getattr(self, ours) for ours, theirs in FIELDS.items()}
        values = {key: value for key, value in values.items() if value or key not in ABSENT}
        if self.buckets:
            return {"architectures": ["MPNetModel"], "model_type": "mpnet", **values}
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "position_embedding_type": "absolute",
            **values,
        }


FIELDS = {
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "activation": "hidden_act",
    "eps": "layer_norm_eps",
    "pad": "pad_token_id",
    "buckets": "relative_attention_num_buckets",
}
ABSENT = ("type_vocab_size", "relative_attention_num_buckets")  # left out where they are 0
MPNET = {"vocab": 30527, "pad": 1, "buckets": 32}  # where its config.json says nothing
