"""`jaxmerge extract-lora BASE MODEL OUT`: the change of a fine-tune as a PEFT adapter."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.cli.bytesbar import BytesBar
from jaxmerge.core.patterns import PatternError, compile_pattern
from jaxmerge.errors import UserError, bounded
from jaxmerge.io.adapters.adapter import PREFIX
from jaxmerge.io.adapters.extract import (
    Extraction,
    change,
    choose,
    factor,
    names_of,
    settings,
)
from jaxmerge.io.header import CODES
from jaxmerge.io.install import keep_apart
from jaxmerge.io.opened_model import Source
from jaxmerge.io.sources import open_source
from jaxmerge.io.writer import Writer


def run(
    base: str,
    model: str,
    out: Path,
    *,
    rank: int = 16,
    modules: str | None = None,
    energy: float | None = None,
    save_rest: bool = True,
    force: bool = False,
    allow_pickle: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Write ``OUT/adapter_model.safetensors`` and ``adapter_config.json``.

    Args:
        rank: the greatest rank.
        modules: a regex of the matrices to factor; by default every dense kernel, without tables
            of tokens and output heads.
        energy: in (0, 1], keep no more ranks than hold this share of the squared norm.
        save_rest: what else changed (norms, biases, embeddings, heads) is saved whole.
    """
    if rank < 1 or (energy is not None and not 0 < energy <= 1):
        raise UserError(f"rank must be at least 1 and energy in (0, 1]; got {rank}, {energy}.")
    first, second = (open_source(ref, allow_pickle=allow_pickle) for ref in (base, model))
    keep_apart(out, (*first.files, *second.files))
    selection = choose(first, second, _wanted(modules), save_rest)
    if not selection.kernels:
        by = "is there" if modules is None else f"is chosen by {modules!r}"
        raise UserError(f"No matrix of {first.ref} {by}.")
    missing = [
        repr(n)
        for n in selection.kernels
        if n not in second or second.like[n].shape != first.like[n].shape
    ]
    if missing:
        raise UserError(f"{second.ref} lacks, in the base's shape, {bounded(missing)}.")
    report = extract(first, second, selection, rank, energy, Path(out), force, quiet or json)
    if json:
        print(jsonlib.dumps(report, indent=2))
    elif not quiet:
        print(
            f"{report['out']}: {report['modules']} modules, rank up to {report['rank']}, "
            f"{report['share']:.1%} of the squared change kept; {report['saved']} leaves saved "
            "whole"
        )
        if selection.left:
            print(f"  left out, no module of the base holds them: {bounded(selection.left, 3)}")


def _wanted(modules: str | None) -> Callable[[str], bool] | None:
    if modules is None:
        return None
    try:
        pattern = compile_pattern(modules)
    except PatternError as error:
        raise UserError(f"--modules: {error}") from None
    return lambda name: pattern.search(name) is not None


def extract(
    base: Source, model: Source, selection: Extraction, rank: int, energy: float | None, out: Path,
    force: bool, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Factor every chosen kernel and write the adapter.

    Memory: one kernel of both models, and the adapter.
    """
    arrays, ranks, captured, whole, done = {}, {}, 0.0, 0.0, 0
    total = 2 * sum(base.like[n].nbytes for n in selection.kernels)
    with BytesBar(quiet) as bar:
        for n, kind in selection.kernels.items():
            tau = change(base, model, n, kind)
            up, down, share, norm = factor(tau, min(rank, *tau.shape), energy)
            ranks[n] = up.shape[1]
            arrays |= zip(names_of(selection.kernels, n), (down, up), strict=True)
            captured, whole = captured + share * norm, whole + norm
            done += 2 * base.like[n].nbytes
            bar("read", done, total)
    rest = {PREFIX + key: n for key, n in selection.saved.items()}
    rest |= {f"{PREFIX}{n.removesuffix('.bias')}.base_layer.bias": n for n in selection.biases}
    tensors = {n: ("F32", x.shape) for n, x in arrays.items()}
    tensors |= {k: (CODES[model.like[n].stored], model.like[n].shape) for k, n in rest.items()}
    writer = Writer(
        out, tensors, digest="", metadata={"format": "pt"}, shard_size=1 << 62, force=force,
        once=True, single="adapter_model.safetensors",
    )  # fmt: skip
    config = settings(selection, base, ranks)
    try:
        for n in tensors:
            x = arrays[n] if n in arrays else model[rest[n]].astype(model.like[rest[n]].stored)
            writer.write(n, np.ascontiguousarray(x))
            writer.finish_leaf(n)
        writer.commit({"adapter_config.json": (jsonlib.dumps(config, indent=2) + "\n").encode()})
    except BaseException:
        writer.discard()
        raise
    return {
        "out": str(out), "modules": len(ranks), "rank": config["r"], "saved": len(rest),
        "left": selection.left, "share": captured / whole if whole else 1.0,
    }  # fmt: skip
