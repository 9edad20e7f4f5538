"""A model with a PEFT LoRA adapter on it, the sum computed leaf by leaf when a leaf is read.

Formula: W + s B A with s = alpha / r (alpha / sqrt(r) for rank-stabilised LoRA), in float32; for
embeddings W + s (B A)', for convolutions the sum over the rank; DoRA scales the rows of the sum
to the stored magnitudes.  Modules saved whole replace the leaf, biases saved with the adapter too.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.core.patterns import compile_pattern
from jaxmerge.io.safetensors import File, Leaves, Like, Whole
from jaxmerge.io.untrusted import check_inside, read_json

PREFIX = "base_model.model."
PARTS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")


class Adapted(Whole):
    """`base` with the adapter in `folder` applied.

    Raises:
        ValueError: not a LoRA adapter, or adapter leaves that fit no leaf of the base (all named).
    """

    def __init__(self, base: Leaves, folder: str | os.PathLike):
        super().__init__()
        self.base, folder = base, Path(folder)
        config_path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        for path in (config_path, weights):
            if not path.exists():
                raise FileNotFoundError(f"{folder} is no adapter: it has no {path.name}.")
        check_inside(folder, [config_path.name, weights.name])
        self.config = read_json(config_path)
        kind = self.config.get("peft_type", "LORA")
        if kind != "LORA":
            raise ValueError(f"{folder}: an adapter of type {kind}; only LORA is read.")
        self.file = File(weights)
        self.stamps = base.stamps | self.file.stamps
        self.parts: dict[str, dict[str, str]] = {}
        self.whole: dict[str, str] = {}
        wrong = []
        for key in self.file:
            where, part = _split(key)
            leaf = _find(base, where, part)
            if leaf is None:
                wrong.append(key)
            elif part is None:
                self.whole[leaf] = key
            else:
                self.parts.setdefault(leaf, {})[part] = key
        if wrong:
            raise ValueError(
                f"{folder} does not fit its base: {len(wrong)} adapter leaves have no leaf there, "
                f"for example {wrong[:5]}."
            )
        self.like = dict(base.like)
        for leaf in [*self.parts, *self.whole]:
            shape = base.like[leaf].shape
            key = self.whole.get(leaf)
            if key is not None and self.file.like[key].shape != shape:
                raise ValueError(
                    f"{folder}: {key!r} has shape {list(self.file.like[key].shape)}, the base's "
                    f"leaf {leaf!r} {list(shape)}."
                )
            self.like[leaf] = Like(shape, np.dtype(np.float32))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        if name not in self.parts and name not in self.whole:
            return self.base.read(name, start, stop)
        return super().read(name, start, stop)

    def load(self, name: str) -> np.ndarray:
        if name in self.whole:
            return self.file[self.whole[name]].astype(np.float32)
        part = {k: self.file[v].astype(np.float32) for k, v in self.parts[name].items()}
        w = self.base[name].astype(np.float32)
        down = part.get("lora_A", part.get("lora_embedding_A"))
        up = part.get("lora_B", part.get("lora_embedding_B"))
        if down is None or up is None:
            raise ValueError(f"The adapter has one half of leaf {name!r} only: {sorted(part)}.")
        r = down.shape[0]
        delta = up.reshape(len(up), r) @ down.reshape(r, -1)
        if "lora_embedding_A" in part or self.config.get("fan_in_fan_out"):
            delta = delta.T
        if delta.size != w.size:
            raise ValueError(
                f"The adapter's product for leaf {name!r} has {list(delta.shape)} entries, the "
                f"leaf {list(w.shape)}."
            )
        w = w + self._scale(name, r) * delta.reshape(w.shape)
        if "lora_magnitude_vector" in part:
            rows = w.reshape(len(w), -1)
            norm = np.linalg.norm(rows, axis=1)
            factor = part["lora_magnitude_vector"].reshape(-1) / norm
            w = (rows * factor[:, None]).reshape(w.shape)
        return w

    def _scale(self, name: str, r: int) -> float:
        module = name.removesuffix(".weight")
        alpha = _pattern(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", r))
        return alpha / (math.sqrt(r) if self.config.get("use_rslora") else r)

    def close(self) -> None:
        self.base.close()
        self.file.close()


def _split(key: str) -> tuple[str, str | None]:
    key = key.removeprefix(PREFIX)
    for part in PARTS:
        where, found, rest = key.partition(f".{part}")
        if found and rest in ("", ".weight", ".default", ".default.weight"):
            return where, part
    return key, None


def _find(base: Leaves, where: str, part: str | None) -> str | None:
    tries = [where] if part is None else [f"{where}.weight", where]
    found = [n for n in tries if n in base]
    return found[0] if found else None


def _pattern(table: dict[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (table or {}).items():
        if compile_pattern(rf"(^|\.){pattern}$").search(module):
            return value
    return default
