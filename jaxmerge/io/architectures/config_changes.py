"""What a merge changes in config.json: sizes of vocabulary, and what is said layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmerge.errors import UserError
from jaxmerge.io.architectures import configs
from jaxmerge.io.architectures.stacks import Stack

if TYPE_CHECKING:
    from jaxmerge.io.architectures.architecture import Architecture


def token_sizes(made_of: Architecture, need: int) -> dict[configs.Path, int]:
    """Where the config says how many tokens the tokenizer has, of which it needs `need` rows.

    That is one section of it: of those long enough and of the size of a leaf the shortest.
    Others count other things, as the codes of speech.
    """
    sections: dict[configs.Path, dict[configs.Path, int]] = {}
    for path, size in made_of.vocabularies.items():
        sections.setdefault(path[:-1], {})[path] = size
    enough = [s for s in sections.values() if max(s.values()) >= need]
    rows = {made_of.rows(n) for n in made_of.like if made_of.vocabulary(n)}
    enough = [s for s in enough if rows & set(s.values())] or enough
    least = min((max(s.values()) for s in enough), default=0)
    return {p: v for s in enough if max(s.values()) == least for p, v in s.items()}


def short_vocabularies(made_of: Architecture, need: int) -> set[int]:
    """Sizes of tables that hold the first tokens only, as the inputs by layer of Gemma 3n."""
    return {v for v in token_sizes(made_of, need).values() if v < need}


def other_vocabularies(made_of: Architecture, need: int) -> set[int]:
    """Sizes of vocabularies that the config states beside the tokenizer's."""
    own = token_sizes(made_of, need)
    stated = {
        v for p, v in configs.walk(made_of.config)
        if type(v) is int and configs.OTHER_VOCABULARIES.search(str(p[-1])) and p not in own
    }  # fmt: skip
    return (stated | set(made_of.vocabularies.values())) - set(own.values())


def vocabulary_changes(made_of: Architecture, need: int, size: int) -> dict[configs.Path, int]:
    """What to change in the config where the tokenizer's vocabulary has another size.

    Args:
        need: rows that its tokens need.
    """
    only = made_of.vocabularies if len(made_of.vocabularies) == 1 else {}
    own = token_sizes(made_of, need) or only
    return {p: size for p, v in own.items() if v != size and v >= need}


def dtype_changes(config: Mapping[str, Any], dtype: str) -> dict[configs.Path, str]:
    """What to change in the config where the weights are stored in another dtype.

    >>> dtype_changes({"torch_dtype": "float32", "vision_config": {"dtype": None}}, "bfloat16")
    {('torch_dtype',): 'bfloat16'}
    """
    dtypes = {p: v for p, v in configs.walk(config) if p[-1] in configs.DTYPES}
    return {p: dtype for p, v in dtypes.items() if isinstance(v, str) and v != dtype}


def layer_changes(
    made_of: Architecture, stack: Stack, placed: Sequence[tuple[Architecture, int]]
) -> dict[configs.Path, Any]:
    """What to change in the config where a stack is made anew of layers of several models.

    Args:
        placed: for each layer of the output, whose it is and which one there.

    Raises:
        UserError: a layer of which no config has what a list by layer says; one that reads the
            cache of a layer which does not stand before it.
    """
    if not stack.count:
        return {}
    out: dict[configs.Path, Any] = {}
    more = len(placed) - stack.layers  # some configs count a layer that has no leaves
    if more:
        out[stack.count] = configs.get(made_of.config, stack.count) + more
    for path in configs.by_layer(made_of.config, stack.count, stack.layers):
        values = [
            configs.get(a.config, (*path, i), configs.get(made_of.config, (*path, i)))
            for a, i in placed
        ]
        if None in values:
            n = values.index(None)
            raise UserError(
                f"layer_range: no config.json says {'.'.join(map(str, path))} of layer {n} of "
                f"the output, layer {placed[n][1]} of its model."
            )
        if values != configs.get(made_of.config, path):
            out[path] = values
    for path in configs.of_layers(made_of.config, stack.count, stack.layers):
        its = {id(a): configs.get(a.config, path, []) for a, _ in placed}
        values = [
            n for n, (a, i) in enumerate(placed) if isinstance(its[id(a)], list) and i in its[id(a)]
        ]
        if values != configs.get(made_of.config, path):
            out[path] = values
    for path in configs.shared(made_of.config, stack.count, stack.layers):
        values = _sources(path, placed)
        if values != configs.get(made_of.config, path):
            out[path] = values
    return out


def _sources(path: configs.Path, placed: Sequence[tuple[Architecture, int]]) -> list[int]:
    """By layer of the output the layer whose cache it reads: itself, or the last such before it."""
    out: list[int] = []
    for n, (made_of, i) in enumerate(placed):
        source = configs.get(made_of.config, (*path, i), i)
        before = [m for m in range(n) if placed[m][1] == source and out[m] == m]
        if source != i and not before:
            raise UserError(
                f"layer_range: layer {n} of the output reads the cache of layer {source} of its "
                f"model ({'.'.join(map(str, path))} in config.json), which does not stand before "
                "it; choose ranges that have it."
            )
        out.append(n if source == i else before[-1])
    return out
