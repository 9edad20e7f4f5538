"""Names of leaves taken apart: segments, the numbers among them, templates.

A name is a path with "." or "/" between its segments; a segment that is a number, alone
(``layers.3``) or behind a word (``block_03``), counts something: layers, experts, stages.
The *template* of a name has a star for every number, its *container* is what stands before one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

NUMBER = re.compile(r"(?:^|(?<=[./]))(?P<word>(?:[A-Za-z][A-Za-z0-9]*_)*)(?P<digits>\d+)(?=[./])")


class Number(NamedTuple):
    """One number in a name.

    Attributes:
        container: what stands before it, with stars for the numbers in there.
        value: the number.
        start, stop: where its digits are.
    """

    container: str
    value: int
    start: int
    stop: int


@functools.lru_cache(1 << 16)
def numbers(name: str) -> tuple[Number, ...]:
    """The numbers in a name, outermost first.

    >>> [(n.container, n.value) for n in numbers("encoder.block.3.layer.0.q.weight")]
    [('encoder.block', 3), ('encoder.block.*.layer', 0)]
    >>> [(n.container, n.value) for n in numbers("vision/block_03/kernel")]
    [('vision/block_', 3)]
    """
    out, container, last = [], "", 0
    for m in NUMBER.finditer(name):
        container += name[last : m.start("digits")]
        out.append(
            Number(container.rstrip("./"), int(m["digits"]), m.start("digits"), m.end("digits"))
        )
        container, last = container + "*", m.end("digits")
    return tuple(out)


@functools.lru_cache(1 << 16)
def template(name: str) -> str:
    """The name with a star for every number.

    >>> template("h.11.attn.c_attn.weight")
    'h.*.attn.c_attn.weight'
    """
    return NUMBER.sub(lambda m: m["word"] + "*", name)


def renumber(name: str, number: Number, new: int) -> str:
    """The name with another number in that place, as wide as it was if it was padded with zeros.

    >>> name = "vision/block_03/kernel"
    >>> renumber(name, numbers(name)[0], 11)
    'vision/block_11/kernel'
    """
    digits = name[number.start : number.stop]
    width = len(digits) if digits.startswith("0") and len(digits) > 1 else 0
    return f"{name[: number.start]}{new:0{width}d}{name[number.stop :]}"


def segments(text: str) -> list[str]:
    """The segments of a name or a template."""
    return re.split(r"[./]", text)


def alike(a: str, b: str) -> int:
    """How many segments two paths share at their ends.

    >>> alike("model.language_model.layers", "language_model.layers"), alike("a.b", "b.a")
    (2, 0)
    """
    count = 0
    for x, y in zip(reversed(segments(a)), reversed(segments(b)), strict=False):
        if x != y:
            break
        count += 1
    return count


def ends_alike(path: str, known: str) -> bool:
    """Whether two templates name one leaf, one of them perhaps with a prefix.

    >>> ends_alike("model.layers.*.q.weight", "layers.*.q.weight"), ends_alike("xq", "q")
    (True, False)
    """
    if path == known:
        return True
    long, short = (path, known) if len(path) > len(known) else (known, path)
    return long.endswith(short) and long[-len(short) - 1] in "./"


def renamed(name: str, renames: Mapping[str, str], there: Collection[str]) -> str:
    """What a checkpoint calls a leaf of a module; the name itself where it has none.

    Args:
        renames: prefix in the module -> prefix in the checkpoint, with stars for numbers.
        there: the names in the checkpoint.

    >>> renamed("model.layers.3.k.weight", {"model.layers.*.k": "h.*.key"}, {"h.3.key.weight"})
    'h.3.key.weight'
    """
    parts = name.split(".")
    for prefix in sorted(renames, key=len, reverse=True):
        known = prefix.split(".") if prefix else []
        here = parts[: len(known)]
        if not (len(here) == len(known) and all(map(_matches, here, known))):
            continue
        digits = iter([p for p, k in zip(here, known, strict=True) if k == "*"])
        new = renames[prefix].split(".") if renames[prefix] else []
        head = [next(digits, "") if p == "*" else p for p in new]
        candidate = ".".join([*head, *parts[len(known) :]])
        if candidate in there:
            return candidate
    return name


def _matches(segment: str, known: str) -> bool:
    """Whether a segment of a name is this one of a template."""
    return segment == known or (known == "*" and segment.isdigit())
