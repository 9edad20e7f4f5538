"""LoRA of a decoder as a folder of PEFT, both ways, through the table of its keys.

Ours is `<kernel>/lora_a` [1, in, rank] and `<kernel>/lora_b` [1, rank, out] (and `/lora_m` [1, out]
of DoRA); PEFT's are `lora_A.weight` [rank, in], `lora_B.weight` [out, rank] and
`lora_magnitude_vector` of the module that the kernel is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmerge.continual.wraps.lora import A, B, M, Patterns, pattern
from jaxmerge.core.types import Leaves
from jaxmerge.errors import UserError
from jaxmerge.io.adapters.adapter import PREFIX, Adapter
from jaxmerge.models.decoder.config import Config
from jaxmerge.models.decoder.modeling import param_shapes
from jaxmerge.models.decoder.params import hf_table


def modules_of(config: Config) -> dict[str, str]:
    """Our kernels -> the modules of transformers that they are; not those that are fused there."""
    return {
        entry.names[0]: entry.key.removesuffix(".weight")
        for entry in hf_table(config)
        if entry.kind == "dense"
    }


def save_adapter(
    config: Config,
    params: Leaves,
    folder: str | os.PathLike,
    *,
    alpha: float,
    alphas: Patterns = (),
    rslora: bool = False,
    base: str = "",
) -> None:
    """Writes the pairs among `params` as a folder that PEFT loads.

    Args:
      config: of the decoder.
      params: with `.../lora_a` and `.../lora_b` of one slot; other leaves are left out.
      folder: made when it does not exist.
      alpha, alphas, rslora: as they were trained with.
      base: name or folder of the model that the adapter belongs to.

    Raises:
      UserError: no pair, pairs of several tasks, kernels that are a part of a module there.
    """
    from safetensors.numpy import save_file

    modules = modules_of(config)
    names = sorted(n.removesuffix(A) for n in params if n.endswith(A))
    wrong = [n for n in names if n not in modules]
    if not names or wrong:
        listed = ", ".join(wrong[:5]) if wrong else "none"
        raise UserError(
            f"An adapter needs pairs at kernels that are modules of {config.family}; "
            f"found {listed}."
        )
    if several := [n for n in names if len(params[n + A]) != 1]:
        raise UserError(
            f"{several[0]} has {len(params[several[0] + A])} pairs, an adapter one; take one slot."
        )
    tensors, ranks, scales = {}, {}, {}
    for n in names:
        path = f"{PREFIX}{modules[n]}"
        tensors[f"{path}.lora_A.weight"] = np.asarray(params[n + A])[0].T
        tensors[f"{path}.lora_B.weight"] = np.asarray(params[n + B])[0].T
        if n + M in params:
            tensors[f"{path}.lora_magnitude_vector"] = np.asarray(params[n + M])[0]
        ranks[modules[n]] = int(params[n + A].shape[2])
        scales[modules[n]] = float(pattern(alphas, n, alpha))
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base or None,
        "r": rank, "lora_alpha": alpha, "target_modules": sorted(ranks), "bias": "none",
        "lora_dropout": 0.0, "fan_in_fan_out": False, "inference_mode": True,
        "use_rslora": rslora, "use_dora": any(n + M in params for n in names),
        "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: a for m, a in scales.items() if a != alpha},
    }  # fmt: skip
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: np.ascontiguousarray(t, np.float32) for key, t in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(settings, indent=1)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def load_adapter(config: Config, folder: str | os.PathLike) -> tuple[Leaves, dict[str, Any]]:
    """The pairs of an adapter under our names, and the settings of `lora` that they go with.

    Raises:
      UserError: no adapter; one that changes what is no kernel of this decoder, or of other
        shapes; one that replaces whole leaves (put it on its base: `BASE+ADAPTER`).
    """
    adapter = Adapter(folder)
    shapes = param_shapes(config)
    kernels = {module: name for name, module in modules_of(config).items()}
    wrong = [*adapter.replaced, *adapter.tokens]
    leaves: dict[str, Any] = {}
    ranks, alphas = [], []
    for path, module in adapter.modules.items():
        name = kernels.get(path)
        down, up = (np.asarray(x) for x in adapter.factors(module))
        if name is None or module.embedding or (down.shape[1], up.shape[0]) != shapes[name]:
            wrong.append(path)
            continue
        leaves[name + A], leaves[name + B] = jnp.asarray(down.T)[None], jnp.asarray(up.T)[None]
        if module.magnitude is not None:
            magnitude = adapter.file[module.magnitude].reshape(-1)
            leaves[name + M] = jnp.asarray(magnitude, jnp.float32)[None]
        ranks.append((f"^{name}$", module.rank))
        root = module.rank**0.5 if adapter.config.get("use_rslora") else module.rank
        alphas.append((f"^{name}$", module.scale * root))
    adapter.file.close()
    if wrong:
        raise UserError(
            f"{folder} does not fit this decoder: {', '.join(wrong[:5])} "
            f"({len(wrong)} in all) are no kernels of its shapes."
        )
    settings = {
        "rank": max((r for _, r in ranks), default=1), "use": "shared",
        "target": "|".join(pattern for pattern, _ in ranks), "ranks": ranks, "alphas": alphas,
        "rslora": bool(adapter.config.get("use_rslora")),
        "dora": any(n.endswith(M) for n in leaves),
    }  # fmt: skip
    return leaves, settings
