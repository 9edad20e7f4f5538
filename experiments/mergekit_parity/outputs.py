"""Two outputs compared: leaves by name and value, rows by token, counts of the config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from recipes import Case
from safetensors.numpy import load_file

TOLERANCE = 1e-6  # of entries of order 0.1
TABLES = ("lm_head.weight", "embed_tokens.weight", "shared.weight", "wte.weight", "embed_in.weight")
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "vocab_size")


def leaves_of(folder: Path) -> dict[str, np.ndarray]:
    """All leaves of a folder, floating and boolean ones in float32."""
    import ml_dtypes  # noqa: F401 - safetensors then reads bfloat16

    out: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        out |= load_file(path)
    return {n: np.asarray(x, np.float32) if x.dtype.kind in "fVb" else x for n, x in out.items()}


def compare(case: Case, theirs: Path, ours: Path, base: Path | None) -> tuple[str, str]:
    """A verdict and what was seen."""
    b = by_token(leaves_of(ours), ours, theirs)
    a = by_expert(leaves_of(theirs), b)
    known = case.differs
    alone = [n for n in sorted(a.keys() ^ b.keys()) if not _tied(n, a, b)]
    if any(known is None or not any(p in n for p in known.absent) for n in alone):
        return "differs", f"leaves of one only: {alone[:3]}"
    both = [n for n in a if n in b]
    for n in both:
        if a[n].shape != b[n].shape:
            return "differs", f"{n}: {a[n].shape} there, {b[n].shape} here"
    wrong = _counts(theirs, ours)
    if wrong:
        return "differs", "config.json: " + "; ".join(wrong)
    if case.random:
        return _same_law(a, b, leaves_of(base), both)
    gaps = {n: np.abs(a[n].astype(np.float32) - b[n].astype(np.float32)) for n in both}
    seen = f"largest difference {max(x.max(initial=0) for x in gaps.values()):.1e}"
    off = {n: int(np.sum(~(x <= TOLERANCE))) for n, x in gaps.items()}
    if not any(off.values()):
        seen += f", {len(alone)} leaves of one only" if alone else ""
        return "differs on purpose" if alone else "equal", seen
    first = next(n for n, count in off.items() if count)
    total = sum(x.size for x in gaps.values())
    seen = f"{sum(off.values())} of {total} entries, the first in {first}, {seen}"
    if known is None:
        return "differs", seen
    elsewhere = [n for n, k in off.items() if k and not any(p in n for p in known.leaves)]
    if elsewhere:
        return "differs", f"in {elsewhere[0]}, which is not said to; {seen}"
    if known.entries is not None and sum(off.values()) > known.entries:
        return "differs", f"more than {known.entries} entries; {seen}"
    if known.counted:
        start = leaves_of(base)
        changed = lambda leaves: [np.count_nonzero(leaves[n] != x) for n, x in start.items()]
        if changed(a) != changed(b):
            return "differs", f"another number of changed entries; {seen}"
    return "differs on purpose", seen


def by_expert(leaves: dict, like: dict) -> dict[str, np.ndarray]:
    """Leaves with experts apart, as published checkpoints and `like` have them.

    mergekit writes all experts of a layer in one array (gate and up in one), as transformers'
    modules hold them.
    """
    out = {}
    for n, x in leaves.items():
        layer, fused, part = n.rpartition(".mlp.experts.")
        mixtral = f"{layer or n.removesuffix('.mlp.gate.weight')}.block_sparse_moe"
        if n in like or not (fused or f"{mixtral}.gate.weight" in like):
            out[n] = x
            continue
        if not fused:
            out[f"{mixtral}.gate.weight"] = x
            continue
        old = f"{mixtral}.experts.0.w1.weight" in like
        at, (gate, up, down) = (mixtral, ("w1", "w3", "w2")) if old else (
            f"{layer}.mlp", ("gate_proj", "up_proj", "down_proj"))  # fmt: skip
        for e, w in enumerate(x):
            names = (gate, up) if part == "gate_up_proj" else (down,)
            for name, half in zip(names, np.split(w, len(names)), strict=True):
                out[f"{at}.experts.{e}.{name}.weight"] = half
    return out


def by_token(leaves: dict, folder: Path, like: Path) -> dict[str, np.ndarray]:
    """Leaves whose rows of tokens stand in the order of another folder's tokenizer.

    Rows that belong to no token stay behind the others; leaves stay as they are where the two
    tokenizers have other tokens.
    """
    have, want = tokens(folder), tokens(like)
    if have.keys() != want.keys() or have == want:
        return leaves
    rows = len(leaves["model.embed_tokens.weight"])
    order = [have[t] for t in sorted(want, key=want.get)]
    order += sorted(set(range(rows)) - set(order))
    is_table = lambda n, x: n.endswith(("embed_tokens.weight", "lm_head.weight")) and len(x) == rows
    return {n: x[order] if is_table(n, x) else x for n, x in leaves.items()}


def tokens(folder: Path) -> dict[str, int]:
    """Token -> row, of tokenizer.json; empty where there is none."""
    file = folder / "tokenizer.json"
    if not file.exists():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    added = {t["content"]: t["id"] for t in content["added_tokens"]}
    return content["model"]["vocab"] | added


def _counts(theirs: Path, ours: Path) -> list[str]:
    """Counts of config.json that differ."""
    files = [p / "config.json" for p in (theirs, ours)]
    if not all(f.exists() for f in files):
        return []
    x, y = (json.loads(f.read_text()) for f in files)
    return [f"{k}: {x[k]} there, {y[k]} here" for k in COUNTS if k in x and k in y and x[k] != y[k]]


def _tied(name: str, a: dict, b: dict) -> bool:
    """Whether a leaf of one output only is a copy of the embedding there, or the other way."""
    leaves = a if name in a else b
    same = (n for n in leaves if n != name and n.endswith(TABLES))
    return name.endswith(TABLES) and any(np.array_equal(leaves[n], leaves[name]) for n in same)


def _same_law(a, b, base, names) -> tuple[str, str]:
    """Random masks: the share of changed entries and the mean size of the change agree."""
    join = lambda x: np.concatenate([(x[n] - base[n]).ravel() for n in names if n in base])
    one, two = join(a), join(b)
    shares = [float(np.mean(x != 0)) for x in (one, two)]
    sizes = [float(np.abs(x).mean()) for x in (one, two)]
    squares = [float(np.square(x).mean()) for x in (one, two)]
    error = 4 * np.sqrt(2 / one.size)
    good = abs(shares[0] - shares[1]) < error * 0.5 + 1e-3
    good &= abs(sizes[0] - sizes[1]) < error * np.sqrt(squares[0])
    shown = [f"{a:.3f} of the entries by {b:.5f}" for a, b in zip(shares, sizes, strict=True)]
    seen = f"changed {shown[0]} there, {shown[1]} here, on average"
    return ("equal in law" if good else "differs"), seen
