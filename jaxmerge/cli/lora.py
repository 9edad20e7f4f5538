"""`jaxmerge extract-lora BASE MODEL OUT`: the change of a fine-tune as a low-rank PEFT adapter.

Formula: tau = theta - theta_0 = U S V'; lora_B = U_r sqrt(S_r), lora_A = sqrt(S_r) V_r', with
lora_alpha = r, so that B A is the best approximation of rank r.  Only the leading directions are
computed, from the Gram matrix of the smaller side, in float64; stored in float32.
"""

from __future__ import annotations

import json as jsonlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.cli.bytesbar import BytesBar
from jaxmerge.core.patterns import PatternError, compile_pattern
from jaxmerge.errors import UserError
from jaxmerge.io.sources import Source, keep_apart, open_source
from jaxmerge.io.writer import Writer

EMBEDDINGS = re.compile(r"embed|wte|wpe|lm_head")


def run(
    base: str,
    model: str,
    out: Path,
    *,
    rank: int = 16,
    modules: str | None = None,
    energy: float | None = None,
    force: bool = False,
    quiet: bool = False,
    json: bool = False,
) -> None:
    """Write ``OUT/adapter_model.safetensors`` and ``adapter_config.json``.

    Args:
        rank: the greatest rank.
        modules: a regex; by default every matrix but embeddings and output heads.
        energy: in (0, 1], keep no more ranks than hold this share of the squared norm.
    """
    if rank < 1 or (energy is not None and not 0 < energy <= 1):
        raise UserError(f"rank must be at least 1 and energy in (0, 1]; got {rank}, {energy}.")
    first, second = open_source(base), open_source(model)
    keep_apart(out, (*first.files, *second.files))
    chosen = [n for n in first if _wanted(first, second, n, modules)]
    if not chosen:
        by = "is there" if modules is None else f"is chosen by {modules!r}"
        raise UserError(f"No matrix of {first.ref} {by}.")
    missing = [n for n in chosen if n not in second or second.like[n].shape != first.like[n].shape]
    if missing:
        raise UserError(f"{second.ref} has no {missing[:3]} in the base's shape.")
    report = extract(first, second, chosen, rank, energy, Path(out), force, quiet or json)
    if json:
        print(jsonlib.dumps(report, indent=2))
    elif not quiet:
        print(
            f"{report['out']}: {report['modules']} modules, rank up to {report['rank']}, "
            f"{report['share']:.1%} of the squared change kept"
        )


def extract(
    base: Source, model: Source, chosen: list[str], rank: int, energy: float | None, out: Path,
    force: bool, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Factor every chosen leaf and write the adapter."""
    ranks = {n: min(rank, *base.like[n].shape) for n in chosen}
    factors, kept, whole, done = {}, 0.0, 0.0, 0
    total = 2 * sum(base.like[n].nbytes for n in chosen)
    with BytesBar(quiet) as bar:
        for n in chosen:
            tau = model[n].astype(np.float32) - base[n].astype(np.float32)
            up, down, share, norm = factor(tau, ranks[n], energy)
            ranks[n] = up.shape[1]
            factors[n] = up, down
            kept, whole = kept + share * norm, whole + norm
            done += 2 * base.like[n].nbytes
            bar("read", done, total)
    tensors, arrays = {}, {}
    for n, (up, down) in factors.items():
        module = "base_model.model." + n.removesuffix(".weight")
        for part, x in (("lora_A", down), ("lora_B", up)):
            tensors[f"{module}.{part}.weight"] = ("F32", x.shape)
            arrays[f"{module}.{part}.weight"] = x
    writer = Writer(
        out, tensors, digest="", metadata={"format": "pt"}, shard_size=1 << 62, force=force,
        single="adapter_model.safetensors",
    )  # fmt: skip
    for n, x in arrays.items():
        writer.write(n, np.ascontiguousarray(x))
        writer.finish_leaf(n)
    most = max(ranks.values())
    short = {n.removesuffix(".weight"): r for n, r in ranks.items() if r != most}
    config = {
        "peft_type": "LORA", "base_model_name_or_path": base.ref, "r": most, "lora_alpha": most,
        "target_modules": sorted({n.removesuffix(".weight").rpartition(".")[2] for n in chosen}),
        "rank_pattern": short, "alpha_pattern": short, "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "use_rslora": False, "inference_mode": True, "task_type": None,
    }  # fmt: skip
    writer.commit({"adapter_config.json": (jsonlib.dumps(config, indent=2) + "\n").encode()})
    return {
        "out": str(out), "modules": len(chosen), "rank": most,
        "share": kept / whole if whole else 1.0,
    }  # fmt: skip


def factor(
    tau: np.ndarray, rank: int, energy: float | None = None
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Up [out, r], down [r, in], the share of the squared norm that they keep, the squared norm.

    >>> up, down, share, norm = factor(np.outer([1.0, 2.0], [3.0, 4.0]), 1)
    >>> (up @ down).round(3).tolist(), round(share, 6), round(norm)
    ([[3.0, 4.0], [6.0, 8.0]], 1.0, 125)
    """
    x = tau.astype(np.float64)
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    values, vectors = np.linalg.eigh(x @ x.T)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    norm = float(values.sum())
    if energy is not None and norm:
        rank = min(rank, int(np.searchsorted(np.cumsum(values) / norm, energy - 1e-12)) + 1)
    left = vectors[:, :rank]
    root = np.sqrt(np.sqrt(values[:rank]))
    up = left * root
    down = (left.T @ x) / np.where(root > 0, root, 1)[:, None]
    share = float(values[:rank].sum()) / norm if norm else 1.0
    up, down = (down.T, up.T) if flip else (up, down)
    return up.astype(np.float32), down.astype(np.float32), share, norm


def _wanted(first: Source, second: Source, name: str, modules: str | None) -> bool:
    if len(first.like[name].shape) != 2 or not name.endswith(".weight"):
        return False
    if modules is not None:
        try:
            return compile_pattern(modules).search(name) is not None
        except PatternError as error:
            raise UserError(f"--modules: {error}") from None
    return not EMBEDDINGS.search(name)
