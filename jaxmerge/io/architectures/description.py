"""An architecture in words, and as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxmerge.io.architectures.names import template

if TYPE_CHECKING:
    from jaxmerge.io.architectures.architecture import Architecture


def in_words(made_of: Architecture) -> list[str]:
    """What was taken for what, a line for each kind."""
    family = f"model_type {made_of.family!r}" if made_of.family else "a config without model_type"
    source = "known" if made_of.known else "taken from names, shapes and config"
    out = [f"{family}: {source}"]
    out += [
        f"{s.path}: {s.layers} layers"
        + (f" ({'.'.join(map(str, s.count))})" if s.count else " (no key in config.json)")
        + (f" and {len(s.extra)} beyond" if s.extra else "")
        for s in made_of.stacks
    ] or ["no stack of layers"]
    by_role: dict[str, list[str]] = {}
    for n in made_of.like:
        by_role.setdefault(made_of.role(n), []).append(n)
    for role in ("embedding", "head", "position", "router", "experts", "buffer"):
        if role in by_role:
            templates = list(dict.fromkeys(map(template, by_role[role])))
            more = f" and {len(templates) - 3} more" if len(templates) > 3 else ""
            out.append(f"{role}: {', '.join(templates[:3])}{more}")
    frozen = [n for n in made_of.like if made_of.frozen(n)]
    if frozen:
        modules = sorted({m for n in frozen if (m := made_of.frozen(n))})
        out.append(f"frozen, not merged: {', '.join(modules)} ({len(frozen)} leaves)")
    for group in made_of.tied:
        there = [n for n in group if n in made_of._names]
        if made_of.known and 0 < len(there) < len(group):
            out.append(f"tied: {', '.join(group)}")
    return out


def as_table(made_of: Architecture) -> dict[str, Any]:
    """The same as data."""
    return {
        "family": made_of.family,
        "known": made_of.known is not None,
        "stacks": {s.path: {"layers": s.layers, "count": list(s.count)} for s in made_of.stacks},
        "tied": [list(g) for g in made_of.tied],
        "vocabulary": {".".join(map(str, p)): v for p, v in made_of.vocabularies.items()},
        "leaves": {
            n: {
                "role": made_of.role(n),
                "layer": None if (p := made_of.layer(n)) is None else [p.stack.path, p.layer],
                "tower": made_of.tower(n),
                "frozen": made_of.frozen(n) is not None,
                "part": made_of.part(n),
                "orientation": ("in, out" if made_of.transposed(n) else "out, in")
                if made_of.kernel(n)
                else None,
            }
            for n in made_of.like
        },
    }
