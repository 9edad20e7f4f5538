"""Zero-shot heads: class names in prompts become the columns of a linear classifier.

For each class, every template is filled in, encoded and normalised; the mean of these vectors,
normalised again, is the class's column. Logits are `exp(logit_scale) * unit(features) @ head`.

Source: Radford et al. 2021 (arXiv 2103.00020), section 3.1.4 (prompt ensembling).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.models.clip.modeling import normalise, text_features

TEMPLATES = (
    "a photo of a {}.",
    "a picture of the {}.",
    "an image showing a {}.",
    "a close view of a {}.",
    "a small picture of a {}.",
    "a drawing of a {}.",
    "a {} in the middle of the picture.",
)


def zero_shot_head(
    model, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES, batch: int = 256
) -> jax.Array:
    """The frozen text head of a set of classes.

    Args:
      model: a `clip.Model` with a text tower and a tokenizer.
      class_names: one name a class, in the order of the labels.
      templates: prompts with one `{}` each.
      batch: prompts encoded at once.

    Returns:
      float32 `[projection_dim, classes]`, columns of unit length.

    Raises:
      ValueError: no tokenizer, no class or template, or a template without exactly one `{}`.
    """
    if model.tokenizer is None:
        raise ValueError("this model was loaded without a tokenizer, so it cannot read class names")
    if isinstance(class_names, str) or isinstance(templates, str):
        raise TypeError("class_names and templates are sequences of texts, found a single text")
    if not class_names or not templates:
        raise ValueError(f"found {len(class_names)} classes and {len(templates)} templates")
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise ValueError(f"templates need exactly one {{}}; found {wrong}")
    prompts = [t.replace("{}", name) for name in class_names for t in templates]
    tokens = model.tokenizer(prompts)
    # Nothing after the last end token is ever looked at: cut the padding, keep one shape.
    tokens = tokens[:, : int(np.max(np.argmax(tokens == model.tokenizer.end, axis=1))) + 1]
    tokens = np.concatenate([tokens, np.repeat(tokens[:1], -len(tokens) % batch, axis=0)])
    features = [
        text_features(model.config, model.params, tokens[start : start + batch])
        for start in range(0, len(tokens), batch)
    ]
    features = normalise(jnp.concatenate(features)[: len(prompts)])
    means = features.reshape(len(class_names), len(templates), -1).mean(axis=1)
    return normalise(means).T


def logits(features: jax.Array, head: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """`exp(logit_scale) * unit(features) @ head`, `[batch, classes]`."""
    return jnp.exp(logit_scale) * (normalise(features) @ head)
