"""What a BERT sentence encoder looks like, and how its states become one vector a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxmerge.models.transformer import ACTIVATIONS


@dataclass(frozen=True)
class Config:
    """A BERT encoder with sentence-transformers' pooling.

    Attributes:
      vocab, positions, types: sizes of the three embeddings.
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
        if self.width % self.heads:
            wrong.append(f"width {self.width} is not a multiple of {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(sorted(ACTIVATIONS))
            wrong.append(f"activation {self.activation!r}, expected one of {known}")
        if self.pooling not in ("mean", "cls"):
            wrong.append(f"pooling {self.pooling!r}, expected mean or cls")
        if not 2 < self.max_tokens <= self.positions:
            wrong.append(f"max_tokens {self.max_tokens} beside {self.positions} positions")
        if wrong:
            raise ValueError(f"BERT config: {'; '.join(wrong)}")

    @classmethod
    def from_hf(cls, config: Mapping, **pooling) -> Config:
        """Reads Hugging Face's `config.json` of a BERT; `pooling` sets the fields it lacks."""
        if config.get("model_type") != "bert":
            raise ValueError(
                f"config.json: found model_type {config.get('model_type')!r}, expected bert"
            )
        if config.get("position_embedding_type", "absolute") != "absolute":
            found = config["position_embedding_type"]
            raise ValueError(f"config.json: found {found!r} positions, expected absolute")
        values = {ours: config[theirs] for ours, theirs in FIELDS.items() if theirs in config}
        values.setdefault("max_tokens", values.get("positions", cls.positions))
        return cls(**{**values, **pooling})

    def to_hf(self) -> dict:
        """The `config.json` with which transformers builds the same architecture."""
        return {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "position_embedding_type": "absolute",
            **{theirs: getattr(self, ours) for ours, theirs in FIELDS.items()},
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
}
