"""Values of a recipe that differ from model to model or from leaf to leaf.

    0.5                              a number
    [0.3, 0.5, 0.2]                  as long as there are models: one for each model
    [0, 0.5, 1]                      any other length: a gradient over the layers, first to last
                                     (but of `weights`, which are one for each model)
    {models: [...]}, {gradient: [...]}    the same, said outright
    [{match: regex, value: ...}, {value: ...}]    by the leaf's name, the first match decides

A gradient is piecewise linear in t = i / (L - 1), where i is the leaf's layer and L counts the
layers of its stack (`jaxmerge.io.architectures`); leaves outside of all layers take t = 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.core.patterns import PatternError, compile_pattern
from jaxmerge.errors import UserError
from jaxmerge.recipes.parse import mapping, number


class Where(NamedTuple):
    """A leaf as values see it: its name, and its depth t in [0, 1]."""

    name: str
    depth: float


def gradient(points: list[float], t: float) -> float:
    """Piecewise linear through equally spaced points.

    >>> gradient([0, 1, 0], 0.25)
    0.5
    """
    if len(points) == 1:
        return float(points[0])
    return float(np.interp(t * (len(points) - 1), range(len(points)), points))


def reader(
    value: Any, models: int, what: str, names: Collection[str], each: bool = False
) -> Callable[[Where], Any] | None:
    """A function of the leaf if the value differs from leaf to leaf, else None.

    Args:
        names: of all leaves.
        each: a plain list is one value for each model, whatever its length.

    Raises:
        UserError: it is none of the forms above; a regex matches no leaf; a leaf has no value.
    """
    return _read(value, models, what, names, each)[0]


def constant(value: Any, models: int, what: str, each: bool = False) -> Any:
    """The value where `reader` says None: a number, a tuple over models, or anything else."""
    return _read(value, models, what, (), each)[1]


@functools.singledispatch
def _read(
    value: Any, models: int, what: str, names: Collection[str], each: bool
) -> tuple[Callable | None, Any]:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return None, float(number(value, what)) if plain else value


@_read.register
def _(value: dict, models: int, what: str, names: Collection[str], each: bool):
    value = mapping(value, what, ("gradient", "models"))
    if len(value) != 1:
        raise UserError(f"{what} must say gradient or models, one of them.")
    ((kind, items),) = value.items()
    if not isinstance(items, list):
        raise UserError(f"{what}: {kind} must be a list, got {items!r}.")
    if kind == "gradient":
        points = [float(number(v, what)) for v in items]
        if not points:
            raise UserError(f"{what}: a gradient needs a number.")
        return (lambda leaf: gradient(points, leaf.depth)), None
    return _over_models(items, models, what, names)


@_read.register
def _(value: list, models: int, what: str, names: Collection[str], each: bool):
    if value and all(isinstance(v, dict) and "value" in v for v in value):
        return _by_name(value, models, what, names, each)
    if len(value) == models:
        return _over_models(value, models, what, names)
    if each:
        raise UserError(
            f"{what} has {len(value)} value{'s' * (len(value) != 1)} for {models} models: give one "
            "for each model; one for all of them that changes over the layers is {gradient: [...]}."
        )
    return _read({"gradient": value}, models, what, names, each)


def _over_models(items: list, models: int, what: str, names: Collection[str]):
    if len(items) != models:
        raise UserError(f"{what} has {len(items)} values for {models} models.")
    read = [_read(v, models, what, names, False) for v in items]
    if all(r is None for r, _ in read):
        return None, tuple(c for _, c in read)
    return (lambda leaf: tuple(r(leaf) if r else c for r, c in read)), None


def _by_name(entries: list, models: int, what: str, names: Collection[str], each: bool):
    rules = []
    for entry in entries:
        entry = mapping(entry, what, ("match", "value"))
        try:
            pattern = compile_pattern(entry.get("match") or "")
        except (PatternError, TypeError) as error:
            raise UserError(f"{what}: {error}") from None
        rules.append((pattern, *_read(entry["value"], models, what, names, each)))

    idle = [r.pattern for r, *_ in rules if not any(map(r.search, names))]
    if names and idle:
        raise UserError(
            f"{what}: {', '.join(map(repr, idle))} matches none of the {len(names)} leaves, which "
            f"are named such as {', '.join(list(names)[:3])}."
        )
    bare = [n for n in names if not any(r.search(n) for r, *_ in rules)]
    if bare:
        raise UserError(
            f"{what} has no value for {len(bare)} of {len(names)} leaves, such as {bare[0]!r}; add "
            "a last entry {value: ...}."
        )

    def choose(leaf: Where) -> Any:
        read, value = next(rest for r, *rest in rules if r.search(leaf.name))
        return read(leaf) if read else value

    return choose, None
