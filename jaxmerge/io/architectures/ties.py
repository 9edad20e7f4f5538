"""Ties: arrays that a checkpoint may store under any of several names, or under all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxmerge.io.architectures import configs
from jaxmerge.io.architectures.names import ends_alike, template
from jaxmerge.io.architectures.roles import HEADS, TOKENS

if TYPE_CHECKING:
    from jaxmerge.io.architectures.architecture import Architecture


def tied(made_of: Architecture, known: Sequence[Sequence[str]] = ()) -> tuple[tuple[str, ...], ...]:
    """Groups of names that may hold one array, of which a checkpoint may store any.

    Names as the model has them where it has them; groups of embedding and head only where the
    config does not say that they are two.

    Args:
        known: groups of templates, as the family has them.
    """
    apart = any(
        v is False for p, v in configs.walk(made_of.config) if p[-1] == "tie_word_embeddings"
    )
    own = lambda path: next((n for n in made_of.like if ends_alike(template(n), path)), path)
    groups = [tuple(dict.fromkeys(map(own, g))) for g in known]
    if not any(n in made_of.like for g in groups for n in g):
        groups = _guessed(made_of)
    groups = [tuple(n for n in g if not (apart and _is_head(n))) for g in groups]
    return tuple(g for g in groups if len(g) > 1)


def _guessed(made_of: Architecture) -> list[tuple[str, ...]]:
    """The one table of tokens with the one head, where they may be one array."""
    shape = lambda name: tuple(made_of.like[name].shape)
    tables = [n for n in made_of.like if made_of.role(n) == "embedding"]
    heads = [n for n in made_of.like if made_of.role(n) == "head" and len(shape(n)) == 2]
    if len(tables) != 1 or len(heads) > 1:
        return []
    if heads:
        return [(tables[0], heads[0])] if shape(tables[0]) == shape(heads[0]) else []
    classes = made_of.config.get("architectures") or ()
    if classes and not any("LM" in str(c) or "Generation" in str(c) for c in classes):
        return []  # nothing that writes: the towers of a CLIP, an encoder
    prefix = "language_model." if tables[0].startswith("language_model.") else ""
    return [(tables[0], f"{prefix}lm_head.weight")]


def _is_head(name: str) -> bool:
    return bool(HEADS.search(name)) and not TOKENS.search(name)
