"""Leaves that hold several matrices: how they split, and models in each other's layout.

Queries, keys and values, and the two halves of a gated MLP, are stored by some families as one leaf
and by others apart (Phi-3 and its copies in Llama's layout, say).  Along the axis of outputs a
fused leaf holds

    one behind the other    q of all heads, k of all heads, v of all heads; gate, up
    by groups               for every head of keys its queries, its key, its value (GPT-NeoX, BLOOM,
                            Falcon, InternLM2; without multi-query attention ChatGLM
                            and GPT-BigCode)

`in_layout` presents a model with the leaves that another one has: fused ones split, split ones
joined, each computed when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.io.architectures import Architecture, configs
from jaxmerge.io.computed import Computation, Computed
from jaxmerge.io.safetensors import Leaves, Like

QKV = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("q", "k", "v"),
       ("wq", "wk", "wv"), ("to_q", "to_k", "to_v"))  # fmt: skip
GATED = (("gate_proj", "up_proj"), ("w1", "w3"))
FUSED = {
    "qkv_proj": QKV, "qkv": QKV, "Wqkv": QKV, "W_pack": QKV, "in_proj": QKV, "c_attn": QKV,
    "query_key_value": QKV, "wqkv": QKV, "gate_up_proj": GATED,
}  # fmt: skip
GROUPED = ("query_key_value", "wqkv")
HEAD_COUNTS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
KEYS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")


class Split(NamedTuple):
    """How a fused leaf is made of its parts.

    Attributes:
        axis: along which they lie.
        places: of every part, where its entries stand along that axis.
    """

    axis: int
    places: tuple[np.ndarray, ...]

    def part(self, fused: np.ndarray, i: int) -> np.ndarray:
        """One part of a fused array."""
        return np.take(fused, self.places[i], self.axis)

    def read(self, leaves: Leaves, name: str, i: int) -> np.ndarray:
        """One part of a leaf, from a file: of rows one behind the other nothing else is read."""
        first, last, shape = self.places[i][0], self.places[i][-1] + 1, leaves.like[name].shape
        if self.axis or last - first != len(self.places[i]):
            return self.part(leaves[name], i)
        row = math.prod(shape[1:])
        return leaves.read(name, first * row, last * row).reshape(-1, *shape[1:])

    def join(self, parts: Collection[np.ndarray]) -> np.ndarray:
        """The array of all parts."""
        order = np.argsort(np.concatenate(self.places))
        return np.take(np.concatenate(list(parts), self.axis), order, self.axis)


def split_of(made_of: Architecture, name: str, shape: tuple[int, ...]) -> Split | None:
    """How a leaf of that name and shape splits in such a model; None for one that does not.

    >>> from jaxmerge.io.architectures import architecture
    >>> config = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2}
    >>> split = split_of(architecture({}, config), "layers.0.self_attn.qkv_proj.weight", (16, 8))
    >>> [x.tolist() for x in split.places]
    [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    """
    word = _word(name)
    if word is None or not 1 <= len(shape) <= 2:
        return None
    axis = 1 if len(shape) == 2 and made_of.transposed(name) else 0
    if FUSED[word] is GATED:
        sizes, groups = [shape[axis] // 2] * 2, 1
    else:
        heads, keys, grouped = _heads(made_of, name, word)
        if not heads or not keys or heads % keys or shape[axis] % (heads + 2 * keys):
            return None
        width = shape[axis] // (heads + 2 * keys)
        sizes = [heads * width, keys * width, keys * width]
        groups = keys if grouped else 1
    return _split(axis, sizes, groups) if sum(sizes) == shape[axis] else None


def in_layout(leaves: Leaves, made_of: Architecture, wanted: Collection[str]) -> Leaves:
    """A model with fused leaves split, or split ones joined, where `wanted` names those.

    Args:
        made_of: what it is made of.
        wanted: names of leaves, as another model has them.
    """
    computed: dict[str, Computation] = {}
    for n in [n for n in leaves if n not in wanted and _word(n)]:
        split, like = split_of(made_of, n, leaves.like[n].shape), leaves.like[n]
        parts = next((p for p in parts_of(n) if all(m in wanted for m in p)), ())
        if split is not None and not any(m in leaves for m in parts):
            for i, m in enumerate(parts):
                load = lambda n=n, split=split, i=i: split.read(leaves, n, i)
                computed[m] = Computation(_like(like, split.axis, len(split.places[i])), load, [n])
    for n in [n for n in wanted if n not in leaves and _word(n)]:
        parts = next((p for p in parts_of(n) if all(m in leaves for m in p)), ())
        if not parts:
            continue
        widest = max((leaves.like[m] for m in parts), key=lambda like: like.dtype.itemsize)
        axis = 1 if widest.ndim == 2 and made_of.transposed(n) else 0
        like = _like(widest, axis, sum(leaves.like[m].shape[axis] for m in parts))
        split = split_of(made_of, n, like.shape)
        if split is not None:
            load = lambda parts=parts, split=split, dtype=like.dtype: split.join(
                [leaves[m].astype(dtype) for m in parts]
            )
            computed[n] = Computation(like, load, parts)
    return Computed(leaves, computed) if computed else leaves


def layout_for(leaves: Leaves, names: Collection[str]) -> set[str]:
    """The names of a model in a layout that has the leaves `names` (those of an adapter)."""
    out = set(leaves)
    for n in filter(_word, leaves):
        for parts in parts_of(n):
            if any(m in names for m in parts):
                out = out - {n} | set(parts)
    for n in (n for n in names if n not in leaves):
        for parts in parts_of(n):
            if all(m in leaves for m in parts):
                out = out - set(parts) | {n}
    return out


def parts_of(name: str) -> list[tuple[str, ...]]:
    """How the parts of a fused leaf may be called where they are apart.

    >>> parts_of("layers.0.mlp.gate_up_proj.weight")[0]
    ('layers.0.mlp.gate_proj.weight', 'layers.0.mlp.up_proj.weight')
    """
    word = _word(name)
    if word is None:
        return []
    before, _, end = name.rpartition(word)
    return [tuple(f"{before}{w}.{end[1:]}" for w in words) for words in FUSED[word]]


def _word(name: str) -> str | None:
    """The word of a fused leaf in its name, as in ``x.qkv_proj.weight`` or ``x.in_proj_bias``."""
    module, _, end = name.rpartition(".")
    word = module.rpartition(".")[2]
    if end in ("weight", "bias") and word in FUSED:
        return word
    return "in_proj" if end in ("in_proj_weight", "in_proj_bias") else None


def _heads(made_of: Architecture, name: str, word: str) -> tuple[int, int, bool]:
    """Heads of queries and of keys in the layers where a leaf lies, 0 if it is not said; whether
    it holds them by groups."""
    place, config = made_of.layer(name) if name in made_of.like else None, made_of.config
    near = configs.get(config, place.stack.count[:-1], {}) if place and place.stack.count else {}
    texts = (near, config, config.get("text_config") or {})
    heads = next((v for c in texts for k in HEAD_COUNTS if (v := _number(c, k))), 0)
    keys = next((v for c in texts for k in KEYS if (v := _number(c, k))), heads)
    rule = made_of.known.multi_query if made_of.known else {}
    if not rule or config.get(rule.get("unless", "")):
        return heads, keys, word in GROUPED
    if config.get(rule["flag"], rule["default"]):
        return heads, rule.get("keys", keys), False
    return heads, heads, True


def _number(config: Any, key: str) -> int:
    value = config.get(key) if isinstance(config, Mapping) else None
    return value if type(value) is int and value > 0 else 0


def _like(like: Like, axis: int, size: int) -> Like:
    shape = (*like.shape[:axis], size, *like.shape[axis + 1 :])
    return like._replace(shape=shape)


def _split(axis: int, sizes: list[int], groups: int) -> Split:
    per_group = [size // groups for size in sizes]
    starts = np.cumsum([0, *per_group])
    offsets = np.arange(groups)[:, None] * starts[-1]
    places = tuple(
        (offsets + np.arange(s, s + n)).ravel() for s, n in zip(starts, per_group, strict=False)
    )
    return Split(axis, places)
