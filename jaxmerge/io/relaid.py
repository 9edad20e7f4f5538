"""A model under the names and in the shapes of another library, turned when a leaf is read.

`jaxmerge.io.jax_names` has the tables.  Fine-tuned with such a library a model merges with others
of it as it is; under Hugging Face's names its kernels are matrices again, which OPCM and its kin
need, and every program reads it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.errors import UserError, bounded
from jaxmerge.io.jax_names import LIBRARIES, Heads, Pair
from jaxmerge.io.opened_model import Source
from jaxmerge.io.safetensors import Leaves, Like, Whole

LAYOUTS = ("hf", *LIBRARIES)
HUB = "Hugging Face"
STACKED = 1  # the axis of layers in a leaf that holds all of them


class Part(NamedTuple):
    """Where a leaf comes from.

    Attributes:
        stored: names of the leaves that it is made of, one for each layer where it stacks them.
        layer: which of the layers in the one stored leaf it is; None for all of it.
        stack: whether the leaf holds the stored ones, one for each layer.
        turn: the stored array in the shape that is wanted.
        shape: the same without arithmetic, for shapes.
    """

    stored: tuple[str, ...]
    layer: int | None
    stack: bool
    turn: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[np.ndarray], np.ndarray]


def laid_out(source: Source, layout: str) -> Source:
    """A model under the names and in the shapes of a layout.

    Args:
        layout: one of `LAYOUTS`; "hf" finds out by the names which library they are of.

    Raises:
        UserError: names that belong to no table; a config that is needed and not there.
    """
    bare = {_bare(n): n for n in source}
    config = source.config()
    if layout == "hf":
        name, pairs = _library(source, bare, config)
        renamed = _to_hf(source, bare, pairs, name)
    else:
        heads = Heads.of(config, source.ref)
        pairs = LIBRARIES[layout](config, source.ref)
        renamed = _from_hf(source, pairs, heads, layout)
    return Source(Relaid(source, renamed), source.ref, source._folder, source.files, config)


def _bare(name: str) -> str:
    """A name without what containers put around it: nnx.State's values, Linen's collections."""
    return re.sub(r"^(params/)+", "", name.removesuffix("/value"))


def _template(name: str) -> tuple[str, int | None]:
    """A name with {} for the number of its layer, and that number."""
    at = re.search(r"(?<=layers[./_])\d+", name)
    if at is None:
        return name, None
    return f"{name[: at.start()]}{{}}{name[at.end() :]}", int(at[0])


def _library(
    source: Source, bare: Mapping[str, str], config: Mapping[str, Any]
) -> tuple[str, Sequence[Pair]]:
    """The library that most of the names are of, and its table."""
    best = {}
    for name, table in LIBRARIES.items():
        known = {_bare(p.other) for p in table(None, source.ref)}
        best[name] = sum(_template(n)[0] in known for n in bare)
    name = max(best, key=lambda n: best[n])
    if not best[name]:
        first = next(iter(source), "")
        others = ", ".join(LIBRARIES)
        raise UserError(f"{source.ref}: {first!r} is a name of none of {others}.")
    return name, LIBRARIES[name](config, source.ref)


def _to_hf(
    source: Source, bare: Mapping[str, str], pairs: Iterable[Pair], library: str
) -> dict[str, Part]:
    table = {_bare(p.other): p for p in pairs}
    renamed, unknown = {}, []
    for name, stored in bare.items():
        template, number = _template(name)
        pair = table.get(template)
        if pair is None:
            unknown.append(stored)
            continue
        turn, shape = pair.to_hf(), pair.to_hf(shapes=True)
        many = "{}" in pair.hf and "{}" not in pair.other
        shape_of = source.like[stored].shape
        if many and len(shape_of) <= STACKED:
            raise UserError(f"{source.ref}: {stored!r} has no axis of layers: {list(shape_of)}.")
        for layer in range(shape_of[STACKED]) if many else [number]:
            part = Part((stored,), layer if many else None, False, turn, shape)
            renamed[pair.hf.format(layer)] = part
    _refuse(source, unknown, library)
    return renamed


def _from_hf(
    source: Source, pairs: Iterable[Pair], heads: Heads, library: str
) -> dict[str, Part]:  # fmt: skip
    table = {p.hf: p for p in pairs}
    found: dict[str, dict[int, str]] = {}
    parts: dict[str, Pair] = {}
    unknown = []
    for name in source:
        template, number = _template(name)
        pair = table.get(template)
        if pair is None:
            unknown.append(name)
            continue
        other = pair.other.format(number)
        parts[other] = pair
        found.setdefault(other, {})[number or 0] = name
    _refuse(source, unknown, HUB)
    renamed = {}
    for other, pair in parts.items():
        stored = found[other]
        gaps = set(range(len(stored))) - set(stored) if "{}" not in pair.other else set()
        if len(stored) > 1 and gaps:
            raise UserError(f"{source.ref}: layer {min(gaps)} has no leaf for {other!r}.")
        names = tuple(stored[n] for n in sorted(stored))
        stack = "{}" in pair.hf and "{}" not in pair.other
        renamed[other] = Part(names, None, stack, pair.from_hf(heads), pair.from_hf(heads, True))
    return renamed


def _refuse(source: Source, unknown: Sequence[str], whose: str) -> None:
    if unknown:
        hint = ""
        if any(n.startswith(("opt_state", "step")) for n in unknown):
            hint = f" {source.ref}#params is the model without the optimiser."
        elif whose == HUB:
            hint = " Names of another library become these with --names hf."
        few = bounded([repr(n) for n in unknown])
        many = f"{len(unknown)} leaves have none of {whose}'s names"
        raise UserError(f"{source.ref}: {many}: {few}.{hint}")


class Relaid(Whole):
    """Leaves of another model, turned when they are read.

    A stored leaf that holds all layers is read once for all of them while they are asked for one
    after another.

    Args:
        parts: name -> where the leaf comes from.

    Raises:
        UserError: leaves of other shapes than such leaves have.
    """

    def __init__(self, source: Leaves, parts: Mapping[str, Part]):
        super().__init__()
        self.source, self.parts, self.stamps = source, dict(parts), source.stamps
        self._lock, self._last = threading.Lock(), ("", np.zeros(0))
        self.like, wrong = {}, []
        for name, part in self.parts.items():
            like = source.like[part.stored[0]]
            sizes = {source.like[n].shape for n in part.stored}
            try:
                if len(sizes) > 1:
                    raise ValueError
                one = lambda n: np.broadcast_to(np.int8(0), source.like[n].shape)
                shape = _assembled(part, part.shape, one).shape
            except ValueError:
                wrong.append(f"{part.stored[0]!r} has the shape {list(like.shape)}")
                continue
            self.like[name] = Like(shape, like.dtype, like.storage)
        if wrong:
            raise UserError(f"{bounded(wrong)}: not that of such a leaf.")

    def load(self, name: str) -> np.ndarray:
        part = self.parts[name]
        if part.layer is None:
            return _assembled(part, part.turn, self.source.__getitem__)
        with self._lock:
            if self._last[0] != part.stored[0]:
                self._last = ("", np.zeros(0))  # let go of the one before
                self._last = (part.stored[0], self.source[part.stored[0]])
            return _assembled(part, part.turn, lambda _: self._last[1])


def _assembled(
    part: Part, turn: Callable[[np.ndarray], np.ndarray], read: Callable[[str], np.ndarray]
) -> np.ndarray:
    """The leaf from what is stored: one layer of it, all of it, or several stacked."""
    if part.stack:
        return np.stack([turn(read(n)) for n in part.stored], axis=STACKED)
    x = read(part.stored[0])
    return turn(x if part.layer is None else np.take(x, part.layer, axis=STACKED))
