"""Decoders in JAX: Llama, Mistral, Qwen, Gemma, Phi-3, Mixtral, driven by their config.

    families    what differs between them: one table
    config      config.json, read through it
    modeling    the decoder; rope, its rotations
    params      its leaves against the keys of Hugging Face's checkpoints
    checkpoint  load, save; tokenize: tokenizer and chat template
    scoring     log-likelihoods, reduced on the device
    generate    texts, in one compiled loop

>>> import jax
>>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 9}
>>> config = Config.from_hf({"model_type": "llama", "num_hidden_layers": 1, **sizes})
>>> params = init(config, jax.random.key(0))
>>> logits(config, params, jax.numpy.array([[3, 1, 4]])).shape
(1, 3, 9)
>>> [len(one.tokens) for one in generate(Model(config, params), [[3], [1, 4]], most=5)]
[5, 5]
"""

from jaxmerge.models.decoder.checkpoint import Model, load, read, save, why_no_tokenizer
from jaxmerge.models.decoder.config import Config
from jaxmerge.models.decoder.families import FAMILIES
from jaxmerge.models.decoder.generate import Generation, Sampling, generate
from jaxmerge.models.decoder.modeling import (
    Positions,
    init,
    logits,
    param_shapes,
    positions_of,
    states,
)
from jaxmerge.models.decoder.scoring import Score, score, token_scores
from jaxmerge.models.decoder.tokenize import Tokenizer, load_tokenizer
from jaxmerge.models.transformer import Compute

__all__ = [
    "FAMILIES",
    "Compute",
    "Config",
    "Generation",
    "Model",
    "Positions",
    "Sampling",
    "Score",
    "Tokenizer",
    "generate",
    "init",
    "load",
    "load_tokenizer",
    "logits",
    "param_shapes",
    "positions_of",
    "read",
    "save",
    "score",
    "states",
    "token_scores",
    "why_no_tokenizer",
]
