"""The change of a fine-tune as an adapter: kernels in low rank, the rest of what changed whole.

Formula for a kernel W [out, in]: tau = W - W0 = U S V'; B = U_r sqrt(S_r), A = sqrt(S_r) V_r', with
alpha = r, so that B A is the best approximation of rank r (Eckart-Young).  Kernels stored [in, out]
are transposed first; of a table of tokens, A is [r, tokens] and B [width, r].  Only the leading
directions are computed, from the Gram matrix of the smaller side, in float64; stored in float32.

What is no such kernel and changed (norms, biases, tables of tokens, heads) is saved as PEFT saves
it: biases of adapted modules under ``.base_layer.bias``, other modules whole (`modules_to_save`).
Base and adapter together then are the fine-tune, up to the rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxmerge.core.names import is_float
from jaxmerge.io.adapters.adapter import PREFIX
from jaxmerge.io.architectures import architecture
from jaxmerge.io.opened_model import Source

END = ".weight"


@dataclasses.dataclass
class Extraction:
    """What of a fine-tune goes where.

    Attributes:
        kernels: leaf -> "linear", "transposed" or "embedding".
        biases: leaves beside kernels, all of them or none.
        saved: leaf of the adapter -> the model's leaf; of modules that are saved whole.
        modules: the modules saved whole.
        left: changed leaves that no module holds, and leaves that the base lacks.
    """

    kernels: dict[str, str]
    biases: list[str]
    saved: dict[str, str]
    modules: list[str]
    left: list[str]


def choose(
    base: Source, model: Source, wanted: Callable[[str], bool] | None, rest: bool
) -> Extraction:
    """Sort the leaves; reads both models where `rest` asks for what changed.

    Args:
        wanted: which matrices to factor; by default every dense kernel.
        rest: save what else changed.
    """
    arch = architecture(base)
    kernels = {}
    for n, like in base.like.items():
        if not n.endswith(END) or like.ndim != 2 or not is_float(like):
            continue
        role = arch.role(n)
        if wanted(n) if wanted else role in ("kernel", "router"):
            table = role in ("embedding", "position", "table")
            transposed = "transposed" if arch.transposed(n) else "linear"
            kernels[n] = "embedding" if table else transposed
    selection = Extraction(kernels, [], {}, [], [])
    if rest:
        _choose_rest(selection, base, model, arch)
    return selection


def _choose_rest(selection: Extraction, base: Source, model: Source, arch: Any) -> None:
    changed, twins = [], {}
    for n in model:
        twin = n if n in base else next((c for c in arch.copies(n) if c in base), None)
        if twin is None:
            selection.left += [n] if is_float(model.like[n]) else []
        elif n not in selection.kernels and is_float(model.like[n]):
            twins[n] = twin
            if not _same(base, twin, model, n):
                changed.append(n)
    beside = {k.removesuffix(END) + ".bias" for k in selection.kernels}
    if any(n in beside for n in changed):
        selection.biases = [n for n in model if n in beside and n in base]
    inside = set(selection.kernels) | beside
    modules = {}
    for n in changed:
        if n in beside:
            continue
        module = n.rpartition(".")[0]
        if not module or any(k.startswith(f"{module}.") for k in inside):
            selection.left.append(n)  # a parameter of a module that holds adapted ones
        else:
            modules[module] = None
    selection.modules = [m for m in modules if not any(m.startswith(f"{o}.") for o in modules)]
    for n in twins:
        if any(n.startswith(f"{m}.") for m in selection.modules):
            selection.saved[n] = n
    for n in list(selection.saved):  # PEFT replaces one of two tied modules only
        for head in arch.copies(n):
            if head not in base and head not in model:
                selection.saved[head] = n
                selection.modules.append(head.removesuffix(END))


def _same(base: Source, twin: str, model: Source, name: str) -> bool:
    if base.like[twin].shape != model.like[name].shape:
        return False
    return bool(np.array_equal(base[twin], model[name]))


def names_of(kernels: dict[str, str], leaf: str) -> tuple[str, str]:
    """The keys of A and B in the file."""
    module = PREFIX + leaf.removesuffix(END)
    if kernels[leaf] == "embedding":
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def change(base: Source, model: Source, leaf: str, kind: str) -> np.ndarray:
    """tau as [out, in] (of a table of tokens as [width, tokens]), in float32."""
    tau = model[leaf].astype(np.float32) - base[leaf].astype(np.float32)
    return tau if kind == "linear" else tau.T


def factor(
    tau: np.ndarray, rank: int, energy: float | None = None
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """B [out, r], A [r, in], the share of the squared norm that they keep, the squared norm.

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


def short_names(modules: list[str], all_modules: set[str], whole_part: bool) -> list[str]:
    """Modules by their last part, where PEFT would find no other module by it.

    Args:
        whole_part: PEFT matches whole parts (target_modules), else any end (modules_to_save).

    >>> everything = {"h.0.q", "h.1.q", "h.0.k", "h.1.k"}
    >>> short_names(["h.0.q", "h.1.q", "h.0.k"], everything, True)
    ['h.0.k', 'q']
    """
    out = set()
    for m in modules:
        last = m.rpartition(".")[2]
        end = f".{last}" if whole_part else last
        matches = [p for p in all_modules if p.endswith(end) or p == last]
        out.add(last if all(p in modules for p in matches) else m)
    return sorted(out)


def settings(selection: Extraction, base: Source, ranks: dict[str, int]) -> dict[str, Any]:
    """adapter_config.json of an extraction, by the rank of every kernel."""
    most = max(ranks.values(), default=1)
    short = {n.removesuffix(END): r for n, r in ranks.items() if r != most}
    short = {n: short[n] for n in sorted(short, key=len, reverse=True)}  # the first match decides
    parts = [n.split(".") for n in base]
    modules = {".".join(p[:i]) for p in parts for i in range(1, len(p))}
    chosen = [n.removesuffix(END) for n in ranks]
    return {
        "peft_type": "LORA", "base_model_name_or_path": base.ref, "r": most, "lora_alpha": most,
        "target_modules": short_names(chosen, modules, True), "rank_pattern": short,
        "alpha_pattern": short, "lora_dropout": 0.0,
        "bias": "lora_only" if selection.biases else "none",
        "modules_to_save": short_names(selection.modules, modules, False) or None,
        "fan_in_fan_out": any(selection.kernels[n] == "transposed" for n in ranks),
        "use_rslora": False, "inference_mode": True, "task_type": None,
    }  # fmt: skip
