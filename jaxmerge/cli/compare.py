"""`jaxmerge compare MODEL... [--base REF]`: how the task vectors of models relate."""

from __future__ import annotations

import itertools
import json as jsonlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.cli.bytesbar import BytesBar
from jaxmerge.diagnostics import Diagnosis, Pairs, diagnose
from jaxmerge.errors import UserError, writing
from jaxmerge.io.architectures import Architecture, architecture
from jaxmerge.io.sources import open_source

DENSITY = 0.1
MAX_ROWS = 20  # leaves in the printed table
VIEWS = {
    "cosine": "Cosine of the task vectors",
    "conflict": "Share of entries with opposite signs",
    "overlap": f"Shared among the largest {DENSITY:.0%} of entries",
}

HEADINGS = {
    "cosine": "Cosine",
    "conflict": "Opposite signs",
    "overlap": f"Top {DENSITY:.0%} shared",
}


def run(
    models: Sequence[str],
    *,
    base: str | None = None,
    out: str | Path | None = None,
    allow_pickle: bool = False,
    json: bool = False,
) -> None:
    """Print the comparison; with `out`, write compare.json and heat maps there."""
    if base is None:
        base, models = models[0], models[1:]
    if not models:
        raise UserError("Give at least one model besides the base: jaxmerge compare BASE MODEL...")
    opened = []
    try:
        opened += [open_source(ref, allow_pickle=allow_pickle) for ref in (base, *models)]
        with BytesBar(json) as bar:
            step = lambda done, total: bar("compare", done, total)
            diagnosis = diagnose(opened[0], opened[1:], DENSITY, progress=step)
        layers = by_layer(diagnosis.leaves, architecture(opened[0]))
    finally:
        for source in opened:
            source.close()
    labels = short_names([*models])
    facts = {"base": base, "models": list(models), "density": DENSITY} | as_numbers(diagnosis)
    facts["layers"] = {label: _numbers(pairs) for label, pairs in layers.items()}
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        drawn = pictures(diagnosis, labels)
        with writing(folder):
            (folder / "compare.json").write_text(jsonlib.dumps(facts, indent=2) + "\n")
            for name, picture in drawn.items():
                (folder / name).write_bytes(picture)
    if json:
        print(jsonlib.dumps(facts, indent=2))
    else:
        _print(diagnosis, layers, labels, base)
        if out is not None:
            print(f"Written to {out}: compare.json, {', '.join(drawn)}")


def as_numbers(diagnosis: Diagnosis) -> dict[str, Any]:
    """A `Diagnosis` as JSON: None where a figure is not defined."""
    ranks = {n: {"effective_rank": _plain(r)} for n, r in diagnosis.ranks.items()}
    leaves = {n: _numbers(p) | ranks.get(n, {}) for n, p in diagnosis.leaves.items()}
    return {"whole": _numbers(diagnosis.whole), "leaves": leaves}


def _numbers(pairs: Pairs) -> dict[str, Any]:
    return {view: _plain(getattr(pairs, view)) for view in ("norms", *VIEWS)}


def by_layer(leaves: Mapping[str, Pairs], made_of: Architecture) -> dict[str, Pairs]:
    """What was counted in every layer, stack by stack, and outside of the layers by role.

    Example:
        >>> names = ["embed.weight", "layers.0.a.weight", "layers.0.b.weight", "layers.1.a.weight"]
        >>> one = Pairs(*4 * [np.ones((1, 1))], size=4)
        >>> like = {n: np.zeros((2, 2)) for n in names}
        >>> layers = by_layer(dict.fromkeys(names, one), architecture(like))
        >>> {label: pairs.size for label, pairs in layers.items()}
        {'table': 4, 'layers 0': 8, 'layers 1': 4}
    """
    out: dict[str, Pairs] = {}
    for n, pairs in leaves.items():
        place = made_of.layer(n)
        label = made_of.role(n) if place is None else f"{place.stack.path} {place.layer}"
        out[label] = out[label] + pairs if label in out else pairs
    return out


def short_names(refs: Sequence[str]) -> list[str]:
    """The shortest endings of the paths that tell the models apart.

    >>> short_names(["runs/a/model", "runs/b/model"]), short_names(["x/cars", "x/dtd"])
    (['a/model', 'b/model'], ['cars', 'dtd'])
    """
    parts = [Path(ref).parts or (ref,) for ref in refs]
    for n in range(1, max(map(len, parts)) + 1):
        short = ["/".join(p[-n:]) for p in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{i + 1}: {ref}" for i, ref in enumerate(refs)]


def own_parts(names: Sequence[str]) -> list[str]:
    """Names of leaves without the leading parts that all of them share.

    >>> own_parts(["vision.layers.0.w", "vision.layers.1.w", "vision.norm"])
    ['layers.0.w', 'layers.1.w', 'norm']
    """
    parts = [re.split(r"(?<=[./])", n) for n in names]
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    shared = sum(1 for _ in alike)
    return ["".join(p[shared:]) or n for p, n in zip(parts, names, strict=True)]


def pictures(diagnosis: Diagnosis, labels: Sequence[str]) -> dict[str, bytes]:
    """Heat maps as PNG, by file name: the whole model pair by pair, and every leaf."""
    from jaxmerge.report.canvas import png
    from jaxmerge.report.heatmaps import heatmaps

    numbered = ", ".join(f"{i + 1}\N{NO-BREAK SPACE}{label}" for i, label in enumerate(labels))
    out = {"layers.png": png(_layers(diagnosis, numbered))}
    if len(labels) > 1:
        show = lambda *views: {HEADINGS[v]: _plain(getattr(diagnosis.whole, v)) for v in views}
        signed = {"low": -1, "high": 1, "percent": False, "diverging": True}
        out["cosines.png"] = png(heatmaps(show("cosine"), "Task vectors", numbered, **signed))
        entries = heatmaps(show("conflict", "overlap"), "Entries of task vectors, %", numbered)
        out["entries.png"] = png(entries)
    return out


def _layers(diagnosis: Diagnosis, numbered: str) -> Any:
    """Leaves from top to bottom: how far each model moved, and the cosine of every pair."""
    from jaxmerge.report.canvas import SMALL, WIDTH, axes, canvas, drawing, shorten, text_width
    from jaxmerge.report.style import LIGHT, ramp

    count, models = len(diagnosis.leaves), len(diagnosis.whole.norms)
    pairs = np.triu_indices(models, 1)
    rms = [p.norms / math.sqrt(max(1, p.size)) for p in diagnosis.leaves.values()]
    moved = np.array(rms) / max(np.max(rms), np.finfo(float).tiny)
    panels: list[tuple[str, Any, int, bool, Sequence[Any]]] = [
        ("RMS change", moved, 0, False, range(1, models + 1))
    ]
    if models > 1:
        cosines = np.array([p.cosine[pairs] for p in diagnosis.leaves.values()])
        ticks = [f"{i + 1}·{j + 1}" for i, j in zip(*pairs, strict=True)]
        panels.append(("Cosine", cosines, -1, True, ticks))
    row = min(0.17, max(0.02, 6 / count))
    leaves = own_parts(list(diagnosis.leaves))
    height, names = row * count, min(2.6, 0.2 + max(text_width(n, SMALL) for n in leaves))
    ending = lambda n: shorten(n[::-1], names - 0.15, SMALL)[::-1]  # what tells leaves apart
    width = (WIDTH - names - 0.1 - 0.2 * (len(panels) - 1)) / len(panels)
    with drawing(LIGHT):
        figure = canvas(
            LIGHT,
            height + 0.75,
            "Leaf by leaf",
            f"RMS changes are relative to the largest.  {numbered}",
        )
        for k, (title, values, low, diverging, ticks) in enumerate(panels):
            ax = axes(figure, names + k * (width + 0.2), 0.35, width, height)
            ax.pcolormesh(
                np.ma.masked_invalid(values), cmap=ramp(LIGHT, diverging), vmin=low, vmax=1
            )
            ax.set_ylim(count, 0)
            ax.spines[:].set_visible(False)
            ax.set_title(title, loc="left", size=SMALL, pad=4)
            every = max(1, math.ceil(len(ticks) * 0.3 / width))
            ax.set_xticks([i + 0.5 for i in range(0, len(ticks), every)], list(ticks)[::every])
            step = max(1, math.ceil(0.15 / row))
            shown = [ending(n) for n in leaves[::step]] if k == 0 else []
            ax.set_yticks([i + 0.5 for i in range(0, count, step)], shown)
    return figure


def _print(
    diagnosis: Diagnosis, layers: Mapping[str, Pairs], labels: Sequence[str], base: str
) -> None:
    from rich.box import SIMPLE
    from rich.table import Column, Table

    from jaxmerge.cli import terminal

    console = terminal.console()
    console.print(f"Task vectors against {base}, {diagnosis.whole.size:,} entries", highlight=False)
    norms = Table("", "model", "norm")
    for i, (label, norm) in enumerate(zip(labels, diagnosis.whole.norms, strict=True)):
        norms.add_row(str(i + 1), label, f"{norm:.4g}")
    console.print(norms)
    numbers = [str(i + 1) for i in range(len(labels))]
    for view, title in VIEWS.items() if len(labels) > 1 else ():
        console.print(f"\n{title}", style="bold")
        table = Table("", *numbers)
        for i, values in enumerate(getattr(diagnosis.whole, view)):
            table.add_row(str(i + 1), *map(_figure, values))
        console.print(table)
    pairs = np.triu_indices(len(labels), 1)
    mean = lambda x: np.mean(x[np.isfinite(x)]) if np.isfinite(x).any() else np.nan
    cells = lambda layer_pairs: [
        f"{layer_pairs.norms.mean():.4g}",
        *(_figure(mean(getattr(layer_pairs, view)[pairs])) for view in VIEWS),
    ]
    columns = ("norm", "cosine", "opposite", "shared")
    new_table = lambda *more: Table(*columns, *more, box=SIMPLE, pad_edge=False)
    if 1 < len(layers) < len(diagnosis.leaves):
        console.print("\nLayers (means over models and pairs)", style="bold")
        table = new_table(Column("layer", overflow="fold"))
        for label, layer_pairs in layers.items():
            table.add_row(*cells(layer_pairs), label)
        console.print(table)
    order = sorted(diagnosis.leaves, key=lambda n: -diagnosis.leaves[n].norms.max())
    title = "Leaves that change most" if len(order) > MAX_ROWS else "Leaves"
    console.print(f"\n{title} (means over models and pairs)", style="bold")
    table = new_table("rank", Column("leaf", overflow="fold"))
    own = dict(zip(diagnosis.leaves, own_parts(list(diagnosis.leaves)), strict=True))
    for n in order[:MAX_ROWS]:
        rank = mean(diagnosis.ranks[n]) if n in diagnosis.ranks else np.nan
        table.add_row(*cells(diagnosis.leaves[n]), _figure(rank, 1), own[n])
    console.print(table)


def _figure(x: float, digits: int = 3) -> str:
    return f"{x:.{digits}f}" if np.isfinite(x) else "-"


def _plain(x: np.ndarray) -> Any:
    if x.ndim:
        return [_plain(row) for row in x]
    return float(x) if math.isfinite(x) else None
