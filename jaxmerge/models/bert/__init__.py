"""BERT sentence encoders in JAX (BERT, MiniLM, MPNet), pooled as sentence-transformers pools them.

>>> import jax
>>> from jaxmerge.models import bert
>>> config = bert.Config(
...     vocab=20, positions=8, width=8, layers=1, heads=2, hidden=16, max_tokens=8
... )
>>> params = bert.init(config, jax.random.key(0))
>>> bert.text_features(config, params, jax.numpy.array([[2, 5, 7, 3, 0, 0]])).shape
(1, 8)
"""

from jaxmerge.models.bert.checkpoint import Model, encode, load, save, zero_shot_head
from jaxmerge.models.bert.config import Config
from jaxmerge.models.bert.modeling import init, param_shapes, text_features, text_states
from jaxmerge.models.bert.tokenize import Tokenizer, load_tokenizer
from jaxmerge.models.heads import logits, normalise
from jaxmerge.models.transformer import Compute

__all__ = [
    "Compute",
    "Config",
    "Model",
    "Tokenizer",
    "encode",
    "init",
    "load",
    "load_tokenizer",
    "logits",
    "normalise",
    "param_shapes",
    "save",
    "text_features",
    "text_states",
    "zero_shot_head",
]
