"""Zero-shot heads of CLIP: class names x prompt templates -> the frozen text head.

`TEMPLATES` is the default set. OpenAI published class names and templates for 26 data sets with
its code (data/prompts.md, MIT); `load_prompts` reads them, or anybody's, from a JSON file
`{"data set": {"classes": [...], "templates": ["a photo of a {}.", ...]}}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.io.untrusted import read_json
from jaxmerge.models.clip.checkpoint import Model
from jaxmerge.models.clip.modeling import text_features
from jaxmerge.models.heads import text_head

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
    model: Model,
    class_names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    batch: int = 256,
    truncate: bool = False,
) -> jax.Array:
    """The frozen text head of a set of classes; see `jaxmerge.models.heads.text_head`.

    Args:
      model: a `clip.Model` with a text tower and a tokenizer.
      class_names: one name a class, in the order of the labels.
      templates: prompts with one `{}` each.
      batch: prompts encoded at once.
      truncate: cut prompts that are longer than the context instead of raising.

    Returns:
      float32 `[projection_dim, classes]`, columns of unit length; logits are
      `clip.logits(features, head, params["logit_scale"])`.

    Raises:
      ValueError: no text tower or tokenizer, no class, a template without exactly one `{}`, a
        prompt longer than the context, unless `truncate`.

    >>> from jaxmerge.models.clip.config import Config, Text
    >>> from jaxmerge.models.clip.modeling import init
    >>> from jaxmerge.models.clip.tokenize import END, START, Tokenizer, from_bpe
    >>> vocab = {token: i for i, token in enumerate(["a", "a</w>", "aa</w>", START, END])}
    >>> tower = Text(vocab=5, context=8, width=16, layers=1, heads=2, hidden=32, bos=3, eos=4)
    >>> config = Config(None, tower, projection_dim=8)
    >>> words = Tokenizer(from_bpe(vocab, [("a", "a</w>")]), 8, start=3, end=4, pad=4)
    >>> model = Model(config, init(config, jax.random.key(0)), words)
    >>> zero_shot_head(model, ["a", "aa"], ["a {}"]).shape
    (8, 2)
    """
    tokenizer = model.tokenizer
    if model.config.text is None or tokenizer is None:
        lacks = "text tower" if model.config.text is None else "tokenizer"
        raise ValueError(
            f"class names cannot be encoded: this model has no {lacks}. Load a full folder, or an"
            " image tower with base="
        )

    def encode(prompts: list[str]) -> jax.Array:
        tokens = tokenizer(prompts, truncate=truncate)
        # States look back only, so nothing behind the last end token matters: cut it off.
        ends = np.argmax(tokens == tokenizer.end, axis=1)
        tokens = tokens[:, : int(ends.max()) + 1]
        size = min(batch, len(tokens))
        tokens = np.concatenate([tokens, np.repeat(tokens[:1], -len(tokens) % size, axis=0)])
        features = [
            text_features(model.config, model.params, tokens[start : start + size])
            for start in range(0, len(tokens), size)
        ]
        return jnp.concatenate(features)[: len(prompts)]

    return text_head(encode, class_names, templates)


class Prompts(NamedTuple):
    """The class names of a data set, in the order of its labels, and its templates."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]


def load_prompts(path: str | Path) -> dict[str, Prompts]:
    """Data set -> class names and templates, from a JSON file (see the module's docstring).

    Where a class has a list of synonyms in place of a name, the first one is taken.

    Args:
      path: of the JSON file.

    Raises:
      ValueError: entries without classes and templates, all listed.

    >>> import json, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "prompts.json"
    >>> text = json.dumps({"pets": {"classes": ["cat", ["dog", "hound"]], "templates": ["a {}."]}})
    >>> path.write_text(text) == len(text)
    True
    >>> load_prompts(path)["pets"].classes
    ('cat', 'dog')
    """
    entries = read_json(path)
    wrong = [
        name
        for name, entry in entries.items()
        if not isinstance(entry, dict) or not entry.get("classes") or not entry.get("templates")
    ]
    if wrong:
        raise ValueError(
            f"{path}: these entries need non-empty classes and templates: {', '.join(wrong)}"
        )
    return {
        name: Prompts(
            tuple(c if isinstance(c, str) else c[0] for c in entry["classes"]),
            tuple(entry["templates"]),
        )
        for name, entry in entries.items()
    }
