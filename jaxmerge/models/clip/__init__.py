"""CLIP in JAX: config, two towers as pure functions, checkpoints, tokens, pictures, heads.

>>> import jax
>>> from jaxmerge.models import clip
>>> vision = clip.Vision(image=16, patch=8, width=16, layers=1, heads=2, hidden=32)
>>> text = clip.Text(vocab=50, context=8, width=16, layers=1, heads=2, hidden=32, bos=48, eos=49)
>>> config = clip.Config(vision, text, projection_dim=8)
>>> params = clip.init(config, jax.random.key(0))
>>> clip.image_features(config, params, jax.numpy.zeros((2, 16, 16, 3))).shape
(2, 8)
"""

from jaxmerge.models.clip.augment import random_resized_crop
from jaxmerge.models.clip.checkpoint import Model, load, save
from jaxmerge.models.clip.config import Config, Text, Vision
from jaxmerge.models.clip.extract import accuracies, encode_images
from jaxmerge.models.clip.lazily import lazy
from jaxmerge.models.clip.modeling import (
    image_features,
    init,
    param_shapes,
    text_features,
)
from jaxmerge.models.clip.preprocess import Preprocess, preprocess
from jaxmerge.models.clip.tokenize import Tokenizer, from_bpe, load_tokenizer
from jaxmerge.models.clip.variants import VARIANTS, variant
from jaxmerge.models.clip.zeroshot import TEMPLATES, load_prompts, zero_shot_head
from jaxmerge.models.heads import logits, normalise
from jaxmerge.models.transformer import Compute

__all__ = [
    "TEMPLATES",
    "VARIANTS",
    "Compute",
    "Config",
    "Model",
    "Preprocess",
    "Text",
    "Tokenizer",
    "Vision",
    "accuracies",
    "encode_images",
    "from_bpe",
    "image_features",
    "init",
    "lazy",
    "load",
    "load_prompts",
    "load_tokenizer",
    "logits",
    "normalise",
    "param_shapes",
    "preprocess",
    "random_resized_crop",
    "save",
    "text_features",
    "variant",
    "zero_shot_head",
]
