"""Stacks of layers found in names and shapes, and the place of every leaf in them.

A number counts layers if what stands behind it repeats: at least two of its values have leaves of
the same names and shapes.  The outermost such number of a name is its layer; experts, T5's
sublayers and the members of a sequence lie further in.  Where the outer number has values that
differ in shape (the stages of Swin, ResNet), the layers are those of the number inside, counted on
from stage to stage.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import NamedTuple

from jaxmerge.io.architectures.names import Number, numbers, template

LAYER = re.compile(r"(^|[./])(\w*(layers?|blocks?)|h)_?$")  # words that name layers
EXPERTS = re.compile(r"(^|[./])\w*experts?_?$")

Members = Mapping[tuple[int, ...], Mapping[str, str]]  # numbers -> what stands behind -> name


class Stack(NamedTuple):
    """Layers that follow each other.

    Attributes:
        path: what stands before the number, with a star for a stage ("encoder.layers.*.blocks").
        order: the numbers that count layers, (layer,) or (stage, layer), first to last.
        count: path of the config's key that says how many there are, or () where none does.
        extra: numbers behind the last layer that the config does not count (layers that predict
            further tokens).
    """

    path: str
    order: tuple[tuple[int, ...], ...]
    count: tuple[str | int, ...] = ()
    extra: tuple[tuple[int, ...], ...] = ()

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.order)

    @property
    def places(self) -> dict[tuple[int, ...], int]:
        """Number in a name -> layer."""
        return _places(self.order)

    @property
    def stages(self) -> bool:
        """Whether its layers are counted in stages, whose shapes differ."""
        return len(self.order[0]) > 1


class Place(NamedTuple):
    """Where a leaf lies.

    Attributes:
        stack: its stack.
        layer: which layer, from 0, stages counted through.
        number: the number in its name that says so.
    """

    stack: Stack
    layer: int
    number: Number

    @property
    def depth(self) -> float:
        """In [0, 1]: 0 is the first layer, 1 the last; 0 where there is one layer only."""
        return self.layer / (self.stack.layers - 1) if self.stack.layers > 1 else 0.0


@functools.lru_cache
def _places(order: tuple[tuple[int, ...], ...]) -> dict[tuple[int, ...], int]:
    return {numbers: i for i, numbers in enumerate(order)}


def find_stacks(
    shapes: Mapping[str, tuple[int, ...]],
    layers: Collection[str] = (),
    others: Collection[str] = (),
) -> list[Stack]:
    """The stacks in a model's names.

    Args:
        shapes: of all leaves.
        layers: containers that are known to hold layers, however many.
        others: containers that are known to hold something else.

    Example:
        >>> shapes = {f"model.layers.{i}.experts.{e}.w": (4, 4) for i in range(2) for e in range(8)}
        >>> [(s.path, s.layers) for s in find_stacks(shapes)]
        [('model.layers', 2)]
    """
    stacks, groups, depth = [], _group(shapes, 0), 0
    while groups:
        inside = []
        for path, members in groups.items():
            known = path in layers
            if known or (path not in others and _is_stack(path, members, shapes, depth)):
                stacks.append(Stack(path, tuple(sorted(members))))
            else:
                inside += [name for member in members.values() for name in member.values()]
        depth += 1
        groups = _group(inside, depth)
    return sorted(stacks, key=lambda s: s.path)


def place_of(name: str, stacks: Mapping[str, Stack]) -> Place | None:
    """The place of a leaf, given the stacks by path; None for a leaf outside of all layers."""
    values: tuple[int, ...] = ()
    for number in numbers(name):
        values = (*values, number.value)
        stack = stacks.get(number.container)
        if stack is not None:
            return Place(stack, stack.places[values], number) if values in stack.places else None
    return None


def depths_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """The depth in [0, 1] of every leaf that lies in a layer; 1 where there is one layer only.

    >>> depths_of({f"block_{i}/w": (1,) for i in range(3)} | {"norm": (1,)})
    {'block_0/w': 0.0, 'block_1/w': 0.5, 'block_2/w': 1.0}
    """
    stacks = {s.path: s for s in find_stacks(shapes)}
    places = {n: place_of(n, stacks) for n in shapes}
    return {n: p.depth if p.stack.layers > 1 else 1.0 for n, p in places.items() if p}


def _group(names: Iterable[str], depth: int) -> dict[str, dict[tuple[int, ...], dict[str, str]]]:
    """Container of the number at that depth -> its members."""
    groups: dict[str, dict[tuple[int, ...], dict[str, str]]] = {}
    for name in names:
        positions = numbers(name)
        if len(positions) > depth:
            values = tuple(n.value for n in positions[: depth + 1])
            members = groups.setdefault(positions[depth].container, {})
            members.setdefault(values, {})[name[positions[depth].stop :]] = name
    return groups


def _is_stack(path: str, members: Members, shapes: Mapping[str, tuple], depth: int) -> bool:
    if EXPERTS.search(path):
        return False
    rows: dict[tuple[int, ...], list[int]] = {}
    for values in members:
        rows.setdefault(values[:-1], []).append(values[-1])
    for outer, row in rows.items():
        row = sorted(row)
        begins = row[0] <= 1 or LAYER.search(path) is not None
        if len(row) > 1 and begins and row[-1] - row[0] == len(row) - 1:
            kinds = [_kinds(members[(*outer, i)], shapes) for i in row]
            if any(2 * len(a & b) >= min(len(a), len(b)) for a, b in pairwise(kinds)):
                return True
    if not LAYER.search(path) or any(values[-1] for values in members):
        return False
    names = [n for member in members.values() for n in member.values()]
    return not any(_is_stack(p, m, shapes, depth + 1) for p, m in _group(names, depth + 1).items())


def _kinds(member: Mapping[str, str], shapes: Mapping[str, tuple]) -> set[tuple]:
    return {(template(behind), shapes[name]) for behind, name in member.items()}
