"""Decoders in JAX: Llama, Mistral, Qwen, Gemma, Phi-3, Mixtral, driven by their config."""

from jaxmerge.models.decoder.checkpoint import Model, load, read, save
from jaxmerge.models.decoder.config import Config
from jaxmerge.models.decoder.families import FAMILIES
from jaxmerge.models.decoder.modeling import (
    Positions,
    init,
    logits,
    param_shapes,
    positions_of,
    states,
)
from jaxmerge.models.decoder.tokenize import Tokenizer, load_tokenizer
from jaxmerge.models.transformer import Compute

__all__ = [
    "FAMILIES",
    "Compute",
    "Config",
    "Model",
    "Positions",
    "Tokenizer",
    "init",
    "load",
    "load_tokenizer",
    "logits",
    "param_shapes",
    "positions_of",
    "read",
    "save",
    "states",
]
