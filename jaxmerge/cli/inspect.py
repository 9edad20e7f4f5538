"""`jaxmerge inspect REF`: what is in a model."""

from __future__ import annotations

import json as jsonlib
from typing import Any

import numpy as np

from jaxmerge.cli.bytesbar import BytesBar
from jaxmerge.io import architectures
from jaxmerge.io.architectures.description import as_table, in_words
from jaxmerge.io.architectures.names import template
from jaxmerge.io.opened_model import Source
from jaxmerge.io.sources import open_source

BLOCK = 1 << 22  # entries


def run(
    ref: str,
    *,
    norms: bool = False,
    architecture: bool = False,
    allow_pickle: bool = False,
    stored: bool = False,
    json: bool = False,
) -> None:
    """Print the leaves: names, shapes, dtypes, bytes; with `norms` also what their values are.

    Args:
        stored: the leaves as they are in the files, also of a quantised checkpoint.
        architecture: print instead what every leaf is taken for (`jaxmerge.io.architectures`).
    """
    source = open_source(ref, allow_pickle=allow_pickle, stored=stored, by_range=True)
    try:
        if architecture:
            _print_architecture(architectures.architecture(source), json)
            return
        table = describe(source, norms, quiet=json)
    finally:
        source.close()
    if json:
        print(jsonlib.dumps(table, indent=2))
    else:
        _print(table, norms)


def describe(source: Source, norms: bool, quiet: bool = True) -> dict[str, Any]:
    """The leaves of a model with their facts."""
    leaves = []
    total = sum(like.nbytes for like in source.like.values())
    done = 0
    with BytesBar(quiet) as bar:
        for name, like in source.like.items():
            row = {
                "name": name, "shape": list(like.shape), "dtype": like.dtype.name,
                "bytes": like.nbytes,
            }  # fmt: skip
            if norms:
                row |= values_of(source, name)
                done += like.nbytes
                bar("read", done, total)
            leaves.append(row)
    dtypes: dict[str, int] = {}
    for like in source.like.values():
        dtypes[like.dtype.name] = dtypes.get(like.dtype.name, 0) + like.size
    return {
        "ref": source.ref,
        "files": [f.name for f in source.files or source.stamps],
        "leaves": leaves,
        "parameters": sum(like.size for like in source.like.values()),
        "bytes": total,
        "dtypes": dtypes,
    }


def values_of(source: Source, name: str) -> dict[str, Any]:
    """Norm, extremes (of both parts of complex entries) and non-finite entries of one leaf, block
    by block in float64."""
    from jaxmerge.drivers.files.chunks import pieces

    size = source.like[name].size
    square, low, high, broken = 0.0, np.inf, -np.inf, 0
    for start, stop in pieces(size, BLOCK):
        block = source.read(name, start, stop)
        block = block.astype(np.complex64 if block.dtype.kind == "c" else np.float32)
        finite = np.isfinite(block)
        if not finite.all():
            broken += int(block.size - finite.sum())
            block = block[finite]
        block = block.view(np.float32)
        if block.size:
            square += float(np.dot(block.astype(np.float64), block))
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    return {
        "norm": square**0.5,
        "min": low if size > broken else None,
        "max": high if size > broken else None,
        "nonfinite": broken,
    }


def _print_architecture(made_of: architectures.Architecture, json: bool) -> None:
    from rich.table import Column, Table

    from jaxmerge.cli import terminal

    table = as_table(made_of)
    if json:
        print(jsonlib.dumps(table, indent=2))
        return
    shown = Table(Column("leaves", overflow="fold"), "count", "role", "layers", "stored", box=None)
    kinds: dict[tuple, list[str]] = {}
    for name, row in table["leaves"].items():
        key = template(name), row["role"], (row["layer"] or [""])[0], row["orientation"] or ""
        kinds.setdefault(key, []).append(name)
    for (name, role, stack, stored), members in kinds.items():
        shown.add_row(name, str(len(members)), role, stack, stored)
    console = terminal.console()
    console.print(shown)
    for line in in_words(made_of):
        console.print(line, markup=False, highlight=False)


def _print(table: dict[str, Any], norms: bool) -> None:
    from rich.table import Column, Table

    from jaxmerge.cli import terminal

    more = ["norm", "min", "max", "NaN, Inf"] if norms else []
    shown = Table(Column("leaf", overflow="fold"), "dtype", "shape", "bytes", *more, box=None)
    for row in table["leaves"]:
        values = []
        if norms:
            values = ["" if row[k] is None else f"{row[k]:.4g}" for k in ("norm", "min", "max")] + [
                str(row["nonfinite"] or "")
            ]
        shape = "x".join(map(str, row["shape"])) or "()"
        shown.add_row(row["name"], row["dtype"], shape, f"{row['bytes']:,}", *values)
    console = terminal.console()
    console.print(shown)
    kinds = ", ".join(f"{n:,} {d}" for d, n in table["dtypes"].items())
    console.print(
        f"{table['ref']}: {len(table['leaves'])} leaves, {table['parameters']:,} parameters "
        f"({kinds}), {table['bytes']:,} bytes in {len(table['files'])} files"
    )
