"""Frozen text heads: class names in prompts become the columns of a linear classifier.

For each class, every template is filled in, encoded and normalised; the mean of these vectors,
normalised again, is the class's column. Logits are `scale * unit(features) @ head`.

Source: Radford et al. 2021 (arXiv 2103.00020), section 3.1.4 (prompt ensembling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxmerge.core.types import Array


def normalise(features: jax.Array) -> jax.Array:
    """Rows of unit length.

    Args:
      features: `[..., width]`, not zero.

    >>> normalise(jnp.array([[3.0, 4.0]])).round(1)
    Array([[0.6, 0.8]], dtype=float32)
    """
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def text_head(
    encode: Callable[[list[str]], Array], class_names: Sequence[str], templates: Sequence[str]
) -> jax.Array:
    """The head of a set of classes.

    Args:
      encode: texts -> features `[texts, width]`.
      class_names: one name a class, in the order of the labels.
      templates: prompts with one `{}` each.

    Returns:
      float32 `[width, classes]`, columns of unit length.

    Raises:
      TypeError: a single text in place of a sequence.
      ValueError: no class or template, or a template without exactly one `{}`.

    >>> text_head(lambda texts: jnp.eye(2)[: len(texts)], ["cat", "dog"], ["a {}"]).shape
    (2, 2)
    """
    if isinstance(class_names, str) or isinstance(templates, str):
        raise TypeError("class_names and templates are sequences of texts, found a single text")
    if not class_names or not templates:
        raise ValueError(
            f"found {len(class_names)} classes and {len(templates)} templates, expected some"
        )
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise ValueError(f"templates need exactly one {{}}; found {wrong}")
    prompts = [t.replace("{}", name) for name in class_names for t in templates]
    features = normalise(jnp.asarray(encode(prompts)))
    means = features.reshape(len(class_names), len(templates), -1).mean(axis=1)
    return normalise(means).T


def logits(features: jax.Array, head: jax.Array, log_scale: jax.Array) -> jax.Array:
    """`exp(log_scale) * unit(features) @ head`, `[batch, classes]`.

    Args:
      features: `[batch, width]`, of any length.
      head: `[width, classes]`, columns of unit length.
      log_scale: the log of the factor on cosine similarities.

    >>> logits(jnp.array([[3.0, 4.0]]), jnp.eye(2), 0.0).round(1)
    Array([[0.6, 0.8]], dtype=float32)
    """
    return jnp.exp(log_scale) * (normalise(features) @ head)
