"""Parameters of a mergekit recipe at one leaf: filters, gradients over layers, levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxmerge.errors import UserError
from jaxmerge.io.architectures import part_of
from jaxmerge.recipes.layers import ref_of
from jaxmerge.recipes.mergekit_methods import REQUIRED
from jaxmerge.recipes.parse import mapping, number_of
from jaxmerge.recipes.values import gradient

PARTS = {"self_attn": "attention", "mlp": "mlp"}  # filters that name a part of a layer


def absent(names: Iterable[str]) -> dict[str, str]:
    """Filters that name a part of a layer and stand in none of these names, with the part."""
    return {f: part for f, part in PARTS.items() if not any(f in n for n in names)}


def labelled(name: str, words: Mapping[str, str]) -> str:
    """What filters match: a name, and behind it the absent words for its part of a layer.

    >>> labelled("transformer.h.0.attn.c_proj.weight", {"self_attn": "attention"})
    'transformer.h.0.attn.c_proj.weight self_attn'
    """
    return " ".join((name, *(word for word, part in words.items() if part_of(name) == part)))


def filters(content: Any) -> set[str]:
    """Every filter of a document."""
    if isinstance(content, Mapping):
        own = {str(content["filter"])} if "filter" in content else set()
        return own.union(*map(filters, content.values()))
    return set().union(*map(filters, content)) if isinstance(content, list) else set()


def look_up(
    key: str,
    default: Any,
    levels: Sequence[Mapping],
    name: str,
    t: float,
    what: str,
    model: Any = None,
) -> Any:
    """The value of a parameter at a leaf: of the first level that says one for it.

    Args:
        levels: parameters of the model, the slice, the module, the document.
        name: what filters match.
        t: where in its slice the leaf stands, in [0, 1].
        what: the method, for messages.
        model: whose parameter it is, for messages; None if of no single one.
    """
    for parameters in levels:
        if key in parameters:
            value = _value(parameters[key], name, t, f"{what}: {key}")
            if value is not None:
                return value
    if default is REQUIRED:
        whose = "" if model is None else f" of {ref_of(model)}"
        raise UserError(
            f"{what}: no {key} for leaf {name.split()[0]!r}{whose}. Give every model a {key}, or "
            f"all of them one (parameters: {{{key}: ...}}), and add an entry without a filter."
        )
    return default


def _value(value: Any, name: str, t: float, what: str) -> Any:
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        if value and all(isinstance(v, Mapping) for v in value):
            for entry in value:
                entry = mapping(entry, what, ("filter", "value"))
                text = entry.get("filter")
                if text in (None, "*") or str(text) in name:
                    return _value(entry.get("value"), name, t, what)
            return None
        if not value:
            raise UserError(f"{what}: an empty list.")
        return gradient([float(number_of(v, what)) for v in value], t)
    if isinstance(value, bool) or value is None:
        return value
    return float(number_of(value, what))
