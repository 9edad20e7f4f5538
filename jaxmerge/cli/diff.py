"""`jaxmerge diff A B`: what differs between two models, bit for bit and by how much."""

from __future__ import annotations

import json as jsonlib
from typing import Any

import numpy as np

from jaxmerge.cli.bytesbar import BytesBar
from jaxmerge.core import names
from jaxmerge.drivers.files.chunks import pieces
from jaxmerge.io.opened_model import Source
from jaxmerge.io.sources import open_source

BLOCK = 1 << 22  # entries


def run(a: str, b: str, *, top: int = 20, allow_pickle: bool = False, json: bool = False) -> int:
    """Print the differences; 0 if the models are equal bit for bit, 1 if not."""
    first, second = (open_source(ref, allow_pickle=allow_pickle) for ref in (a, b))
    try:
        table = compare(first, second, quiet=json)
    finally:
        first.close()
        second.close()
    if json:
        print(jsonlib.dumps(table, indent=2))
    else:
        _print(table, top)
    return 0 if table["equal"] else 1


def compare(a: Source, b: Source, quiet: bool = True) -> dict[str, Any]:
    """Leaves of only one model, leaves of another kind, and differences of values."""
    shared = [n for n in a if n in b]
    other = [
        {"name": n, "a": names.kind(a.like[n]), "b": names.kind(b.like[n])}
        for n in shared
        if a.like[n] != b.like[n]
    ]
    changed, done = [], 0
    total = sum(a.like[n].nbytes for n in shared)
    with BytesBar(quiet) as bar:
        for n in shared:
            if a.like[n].shape == b.like[n].shape:
                row = difference(a, b, n)
                if row is not None:
                    changed.append(row)
            done += a.like[n].nbytes
            bar("read", done, total)
    changed.sort(key=lambda row: -row["largest"] if np.isfinite(row["largest"]) else -np.inf)
    only_a, only_b = [n for n in a if n not in b], [n for n in b if n not in a]
    return {
        "equal": not (only_a or only_b or other or changed),
        "leaves": len(shared),
        "only_a": only_a,
        "only_b": only_b,
        "kinds": other,
        "changed": changed,
    }


def difference(a: Source, b: Source, name: str) -> dict[str, Any] | None:
    """How far one leaf differs, or None where it is equal bit for bit."""
    size, same_type = a.like[name].size, a.like[name].dtype == b.like[name].dtype
    largest, square, base, count = 0.0, 0.0, 0.0, 0
    for start, stop in pieces(size, BLOCK):
        x, y = a.read(name, start, stop), b.read(name, start, stop)
        if same_type and np.array_equal(x.view(np.uint8), y.view(np.uint8)):
            base += float(np.square(np.abs(wide(x))).sum())
            continue
        x, y = wide(x), wide(y)
        d = y - x
        off = (d != 0) & ~(np.isnan(x) & np.isnan(y))
        count += int(off.sum())
        if off.any():
            top = np.abs(d[off]).max()
            largest = max(largest, float(top)) if np.isfinite(top) else float("inf")
        square += float(np.square(np.abs(d)).sum())
        base += float(np.square(np.abs(x)).sum())
    if count == 0:
        return None
    relative = (square / base) ** 0.5 if base else float("inf")
    return {
        "name": name, "largest": largest, "relative": relative, "entries": count, "size": size,
    }  # fmt: skip


def wide(x: np.ndarray) -> np.ndarray:
    """Values in double precision, both parts of complex ones."""
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def _print(table: dict[str, Any], top: int) -> None:
    from rich.table import Column, Table

    from jaxmerge.cli import terminal

    console = terminal.console()
    for key, title in (("only_a", "only in the first"), ("only_b", "only in the second")):
        if table[key]:
            console.print(f"{len(table[key])} leaves {title}:")
            for n in table[key][:top]:
                console.print(f"  {n}")
    for row in table["kinds"][:top]:
        console.print(f"{row['name']}: {row['a']} and {row['b']}")
    if table["changed"]:
        leaf = Column("leaf", overflow="fold")
        shown = Table(leaf, "largest difference", "relative norm", "entries", box=None)
        for row in table["changed"][:top]:
            share = f"{row['entries']:,} of {row['size']:,}"
            shown.add_row(row["name"], f"{row['largest']:.3e}", f"{row['relative']:.3e}", share)
        console.print(shown)
    if table["equal"]:
        console.print(f"equal bit for bit: {table['leaves']} leaves")
    else:
        console.print(f"{len(table['changed'])} of {table['leaves']} shared leaves differ")
