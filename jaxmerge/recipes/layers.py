"""Layers placed anew: which layer of which model becomes which layer of the output.

Mergekit's ``slices`` stack ranges of layers of different models.  A slice is merged from its
sources under the output's names, so a stack costs a renaming (`jaxmerge.io.sources.View`).
Leaves outside of the layers come from the first slice (embeddings) or from the last (norm, head).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxmerge.errors import UserError
from jaxmerge.io.safetensors import Leaves
from jaxmerge.io.sources import Source, View
from jaxmerge.recipes.parse import mapping
from jaxmerge.recipes.values import LAYER

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def ref_of(value: Any) -> str:
    """A reference: a string, or mergekit's mapping of model, revision and adapter."""
    if isinstance(value, Mapping):
        value = mapping(value, "a model", ("model", "lora", "override_architecture"))
        inner, lora = value.get("model"), value.get("lora")
        parts = []
        for part in (inner, lora):
            if isinstance(part, Mapping):
                part = mapping(part, "a model", ("path", "revision"))
                part = part["path"] + (f"@{part['revision']}" if part.get("revision") else "")
            parts.append(part)
        value = parts[0] if parts[1] is None else f"{parts[0]}+{parts[1]}"
    if not isinstance(value, str):
        raise UserError(f"a model must be a reference, got {value!r}.")
    return value


class Layout:
    """Which layer of which model becomes which layer of the output."""

    def __init__(self, sources, slices, base_ref, pattern: str | None):
        self.sources, self.slices, self.base_ref = sources, slices, base_ref
        self.inside = re.compile(pattern).search if pattern else lambda name: True
        self.prefix = _layer_prefix(n for n in next(iter(sources.values())) if self.inside(n))
        self.placed: list[tuple[Source, int]] = []
        self.offsets = []
        for piece in slices:
            self.offsets.append(len(self.placed))
            first = piece["sources"][0]
            source = sources[ref_of(first["model"])]
            for layer in range(*self._range(first, source)):
                self.placed.append((source, layer))
        self.total = len(self.placed)

    def _range(self, source: Mapping[str, Any], leaves: Source) -> tuple[int, int]:
        have = self._count(leaves)
        start, stop = source.get("layer_range") or (0, have)
        if not 0 <= start <= stop <= have:
            raise UserError(
                f"layer_range [{start}, {stop}] does not fit {leaves.ref}, which has {have} "
                "layers; it is written [first, behind the last]."
            )
        return start, stop

    def _count(self, leaves: Source) -> int:
        found = [self._layer(n) for n in leaves]
        return max((i for i in found if i is not None), default=-1) + 1

    def _layer(self, name: str) -> int | None:
        m = LAYER.match(name)
        return int(m["index"]) if m and m["prefix"] == self.prefix else None

    def depth(self, name: str) -> float:
        layer = self._layer(name)
        return 0.0 if layer is None or self.total < 2 else layer / (self.total - 1)

    def views(self, i: int) -> tuple[list[tuple[dict, Leaves]], Leaves | None]:
        """The sources of slice i under the output's names, and the base likewise."""
        piece = self.slices[i]
        base_ref = ref_of(piece["base_model"]) if piece.get("base_model") else self.base_ref
        views, base = [], None
        for s in piece["sources"]:
            ref = ref_of(s["model"])
            view = self._view(i, self.sources[ref], self._range(s, self.sources[ref]))
            views.append((s, view))
            base = view if ref == base_ref else base
        if base is None and base_ref is not None:
            source, first = self.sources[base_ref], piece["sources"][0]
            base = self._view(i, source, self._range(first, source))
        return views, base

    def _view(self, i: int, source: Source, span: tuple[int, int]) -> Leaves:
        names, offset = {}, self.offsets[i]
        last = len(self.slices) - 1
        for n in source:
            if not self.inside(n):
                continue
            layer = self._layer(n)
            if layer is None:
                early = bool(re.search(r"embed|wte|wpe", n))
                if i == (0 if early else last):
                    names[n] = n
            elif span[0] <= layer < span[1]:
                new = offset + layer - span[0]
                names[self._renumber(n, new)] = n
        return View(source, names, source.ref)

    def _renumber(self, name: str, new: int) -> str:
        m = LAYER.match(name)
        assert m is not None, name  # only numbered leaves come here
        width = len(m["index"]) if m["index"].startswith("0") and len(m["index"]) > 1 else 0
        return f"{m['prefix']}{new:0{width}d}{name[m.end('index') :]}"


def _layer_prefix(names: Iterable[str]) -> str | None:
    """The prefix that most numbered leaves share."""
    count: dict[str, int] = {}
    for n in names:
        if m := LAYER.match(n):
            count[m["prefix"]] = count.get(m["prefix"], 0) + 1
    return max(count, key=lambda p: count[p], default=None)


def config_of(first: Source, layers: Sequence[tuple[Source, int]]) -> dict[str, Any]:
    """Changes of config.json where layers were placed anew."""
    config = first.config()
    key = next((k for k in LAYERS if k in config), None)
    if key is None or not layers or config[key] == len(layers):
        return {}
    out: dict[str, Any] = {key: len(layers)}
    for k, v in config.items():
        if isinstance(v, list) and len(v) == config[key]:  # one entry a layer, such as layer_types
            out[k] = [source.config().get(k, v)[i] for source, i in layers]
    return out
