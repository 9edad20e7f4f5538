"""Layers placed anew: which layer of which model becomes which layer of the output.

Mergekit's ``slices`` stack ranges of layers of different models.  A slice is merged from its
sources under the output's names, so a stack costs a renaming (`jaxmerge.io.opened_model.View`).
What counts as a layer says `jaxmerge.io.architectures`; leaves outside of the layers that are moved
come from the first slice if they stand before them (embeddings, other towers), else from the last.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmerge.errors import UserError
from jaxmerge.io.architectures import Architecture, Stack, architecture
from jaxmerge.io.architectures.config_changes import layer_changes
from jaxmerge.io.architectures.names import numbers, renumber, template
from jaxmerge.io.opened_model import Source, View
from jaxmerge.io.safetensors import Leaves
from jaxmerge.recipes.parse import mapping


def ref_of(value: Any) -> str:
    """A reference: a string, or mergekit's mapping of model, revision and adapter."""
    if isinstance(value, Mapping):
        value = mapping(value, "a model", ("model", "lora", "override_architecture"))
        inner, lora = value.get("model"), value.get("lora")
        parts = []
        for part in (inner, lora):
            if isinstance(part, Mapping):
                part = mapping(part, "a model", ("path", "revision"))
                if not isinstance(part.get("path"), str):
                    raise UserError(f"a model must be a reference, got {value!r}.")
                part = part["path"] + (f"@{part['revision']}" if part.get("revision") else "")
            parts.append(part)
        if all(isinstance(p, str) for p in parts):
            value = "+".join(parts)
        else:
            value = parts[0] if parts[1] is None else value
    if not isinstance(value, str):
        raise UserError(f"a model must be a reference, got {value!r}.")
    return value


class Layout:
    """Which layer of which model becomes which layer of the output.

    Args:
        sources: by reference, the first being the one whose config the output gets.
        slices: each with its sources; without layer ranges nothing moves.
        inside: whether a leaf belongs to the module that is laid out.

    Raises:
        UserError: a range that a model does not have, layers of several stacks, layers that a
            config cannot say.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        slices: list[dict[str, Any]],
        base_ref: str | None,
        inside: Callable[[str], bool] = lambda name: True,
    ):
        self.sources, self.slices, self.base_ref, self.inside = sources, slices, base_ref, inside
        self.made_of = {ref: architecture(s) for ref, s in sources.items()}
        self.first = next(iter(self.made_of.values()))
        self.moves = any(s.get("layer_range") for piece in slices for s in piece["sources"])
        self.placed: list[tuple[Architecture, int]] = []
        self.offsets: list[int] = []
        self.depths: list[dict[str, float]] = [{} for _ in slices]
        self.moved: dict[str, tuple[Stack, ...]] = {}
        self.begin = 0  # the number of the output's first layer
        if self.moves:
            self.moved = {ref: self._moved(ref) for ref in sources}
            self.begin = next(iter(self.moved.values()))[0].order[0][0]
            for piece in slices:
                self.offsets.append(len(self.placed))
                source = piece["sources"][0]
                ref = ref_of(source["model"])
                self.placed += [(self.made_of[ref], i) for i in range(*self._range(source, ref))]
            self._check()

    def _moved(self, ref: str) -> tuple[Stack, ...]:
        """The stack whose layers are placed anew, with those that move with it."""
        made_of = self.made_of[ref]
        stacks = [s for s in made_of.main(self.inside) if s.layers]
        if not stacks:
            raise UserError(f"layer_range: {ref} has no stack of layers.")
        together = made_of.together(stacks[0])
        if not {*stacks} <= {*together}:
            named = ", ".join(f"{s.path} ({s.layers})" for s in stacks)
            raise UserError(
                f"layer_range: {ref} has {len(stacks)} stacks of layers, {named}; say which by "
                f"modules: {{{holding(together)}: {{slices: ...}}, default: {{models: ...}}}}."
            )
        if {*together} != {*stacks} or len({(s.order, s.extra) for s in stacks}) > 1:
            named = ", ".join(f"{s.path} ({s.layers})" for s in together)
            raise UserError(
                f"layer_range: one key of config.json, {'.'.join(map(str, stacks[0].count))}, "
                f"counts the layers of {named}: they move together, or not at all where they are "
                "not as many; name a module that holds all of them."
            )
        if stacks[0].stages:
            raise UserError(
                f"layer_range: the layers of {ref} come in stages of different shapes "
                f"({stacks[0].path}), which cannot be stacked."
            )
        return tuple(stacks)

    def _range(self, source: Mapping[str, Any], ref: str) -> tuple[int, int]:
        have = self.moved[ref][0].layers
        start, stop = source.get("layer_range") or (0, have)
        if not 0 <= start <= stop <= have:
            raise UserError(
                f"layer_range [{start}, {stop}] does not fit {self.sources[ref].ref}, which has "
                f"{have} layers; it is written [first, behind the last]."
            )
        return start, stop

    def _check(self) -> None:
        """Raise where the config could not say what the layers of the output are made of."""
        first, (stack, *more) = self.first, next(iter(self.moved.values()))
        grown = first.grows() if len(self.placed) != stack.layers else []
        if grown:
            raise UserError(
                f"layer_range: {len(grown)} leaves such as {grown[0]!r} have a size that follows "
                f"from the number of layers, so {len(self.placed)} layers do not fit them."
            )
        grows = len(self.placed) > stack.layers == 1 and not more
        alone = _matrix(first, stack) if grows else None
        if alone and alone[0] != alone[1]:
            raise UserError(
                f"layer_range: {stack.path} has one layer, whose one matrix is {list(alone)}: it "
                "cannot follow itself."
            )
        if first.listed(stack) and not more:  # several lists may be stages, of other shapes
            return
        kinds = {id(a): _kinds(a, moved) for a, moved in self._all()}
        here = kinds[id(first)]
        stacks = {id(a): moved[0] for a, moved in self._all()}
        reported = {first.kind(stack, i): kind for i, kind in here.items()}
        explained = all(reported[first.kind(stack, i)] == kind for i, kind in here.items())
        due = lambda i: (
            here.get(i)
            or (
                reported.get(first.kind(stack, i))
                if explained
                else following(list(here.values()), i)
            )
        )
        wrong = [
            (i, j)
            for i, (a, j) in enumerate(self.placed)
            if due(i) != kinds[id(a)].get(j) or first.kind(stack, i) != a.kind(stacks[id(a)], j)
        ]
        if wrong:
            i, j = wrong[0]
            raise UserError(
                f"layer_range: layer {i} of the output would be made of a layer {j} with other "
                f"leaves than a layer {i} has there, as far as that is known ({len(wrong)} such "
                "layers); choose ranges that keep the order in which kinds of layers follow."
            )

    def _all(self) -> list[tuple[Architecture, tuple[Stack, ...]]]:
        return [(self.made_of[ref], moved) for ref, moved in self.moved.items()]

    def depth(self, i: int, name: str) -> float:
        """Where a leaf of the output stands in slice i, in [0, 1]; 1 in a slice of one layer.

        Leaves of a stack that is not moved take their place there, leaves outside of layers 0.
        """
        return self.depths[i].get(name, 0.0)

    def views(self, i: int) -> tuple[list[tuple[dict, Leaves]], Leaves | None]:
        """The sources of slice i under the output's names, and the base likewise."""
        piece = self.slices[i]
        base_ref = ref_of(piece["base_model"]) if piece.get("base_model") else self.base_ref
        views, base = [], None
        for s in piece["sources"]:
            ref = ref_of(s["model"])
            view = self._view(i, ref, s)
            views.append((s, view))
            base = view if ref == base_ref else base
        if base is None and base_ref is not None:
            base = self._view(i, base_ref, piece["sources"][0])
        return views, base

    def _view(self, i: int, ref: str, source: Mapping[str, Any]) -> Leaves:
        leaves, made_of, names = self.sources[ref], self.made_of[ref], {}
        span = self._range(source, ref) if self.moves else (0, 0)
        for n in filter(self.inside, leaves):
            new, depth = self._placed(i, n, made_of, self.moved.get(ref, ()), span)
            if new is not None:
                names[new] = n
                self.depths[i][new] = depth
        return View(leaves, names, leaves.ref)

    def _placed(
        self,
        i: int,
        name: str,
        made_of: Architecture,
        moved: Sequence[Stack],
        span: tuple[int, int],
    ) -> tuple[str | None, float]:
        """The name of a leaf in the output, None if slice i lacks it, and its depth."""
        place, last = made_of.layer(name), len(self.slices) - 1
        if place is not None and place.stack in moved:
            start, stop = span
            if not start <= place.layer < stop:
                return None, 0.0
            new = self.begin + self.offsets[i] + place.layer - start
            t = (place.layer - start) / (stop - start - 1) if stop - start > 1 else 1.0
            return renumber(name, place.number, new), t
        depth = 0.0 if place is None else place.depth if place.stack.layers > 1 else 1.0
        if not self.moves:
            return name, depth
        if i != (0 if made_of.early(name) else last):
            return None, 0.0
        extra = {(s.path, *e): i for s in moved for i, e in enumerate(s.extra)}
        for number in numbers(name) if extra else ():
            behind = extra.get((number.container, number.value))
            if behind is not None:
                return renumber(name, number, self.begin + len(self.placed) + behind), 0.0
        return name, depth

    def changes(self) -> dict[tuple, Any]:
        """What to change in the config, by path of keys: nothing where no layer moves."""
        if not self.moves:
            return {}
        return layer_changes(self.first, next(iter(self.moved.values()))[0], self.placed)


def holding(stacks: Sequence[Stack]) -> str:
    """The path below which all of these stacks lie; of stacks that share none the first's own.

    >>> holding([Stack(p, ((0,),)) for p in ("model.decoder.layers", "model.decoder.heads")])
    'model.decoder'
    """
    columns = zip(*(s.path.split(".") for s in stacks), strict=False)
    same = itertools.takewhile(lambda names: len(set(names)) == 1, columns)
    return ".".join(names[0] for names in same) or stacks[0].path


def _matrix(made_of: Architecture, stack: Stack) -> tuple[int, ...] | None:
    """The shape of the only matrix or convolution in a stack, None if there are more or none."""
    here = [n for n in made_of.like if (p := made_of.layer(n)) is not None and p.stack == stack]
    shapes = [s for n in here if len(s := tuple(made_of.like[n].shape)) > 1]
    return shapes[0] if len(shapes) == 1 else None


def _kinds(made_of: Architecture, stacks: Sequence[Stack]) -> dict[int, frozenset]:
    """Layer -> the leaves in it, by what stands around their number, with their shapes."""
    out: dict[int, set] = {}
    for n, like in made_of.like.items():
        place = made_of.layer(n)
        if place is not None and place.stack in stacks:
            at = stacks.index(place.stack), template(n[place.number.stop :])
            out.setdefault(place.layer, set()).add((*at, like.shape))
    return {i: frozenset(out[i]) for i in sorted(out)}


def following(kinds: Sequence[Any], i: int) -> Any:
    """The kind of a layer behind the last one, None if that cannot be said.

    Kinds that repeat go on repeating, and where the last ones are alike so is what follows.

    >>> following("abab", 4), following("abbb", 6), following("aba", 3), following("aab", 3)
    ('a', 'b', 'b', None)
    """
    n = len(kinds)
    for period in range(1, n):
        if all(kinds[k] == kinds[k - period] for k in range(period, n)):
            return kinds[i % period]
    return kinds[-1] if n == 1 or kinds[-1] == kinds[-2] else None
