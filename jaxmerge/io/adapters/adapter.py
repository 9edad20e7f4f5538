"""An adapter folder of PEFT: which modules it changes, by how much, and what it replaces.

Nothing but adapter_config.json and the header of adapter_model.safetensors is read, and both as if
an enemy had written them: what is wrong with them is one message.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmerge.core.patterns import Pattern, PatternError, compile_pattern
from jaxmerge.errors import UserError, bounded
from jaxmerge.io.header import HeaderError
from jaxmerge.io.safetensors import File, Like
from jaxmerge.io.untrusted import check_inside, read_json

PREFIX = "base_model.model."
KEY = re.compile(
    r"(?P<path>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.(?!weight$|bias$)[^.]+)?(?P<end>\.weight|\.bias)?"
)
TOKENS = re.compile(r"(?P<path>.+?)(\.token_adapter)?\.trainable_tokens_delta(\.[^.]+)?")
REPLACED = re.compile(r"\.modules_to_save(\.(?!weight$|bias$)[^.]+)?(?=\.)|\.base_layer(?=\.)")
UNREAD = {  # settings under which the weights of the base or the forward pass change otherwise
    "layer_replication": "copies layers",
    "target_parameters": "changes parameters that are no module",
    "use_qalora": "pools its inputs",
    "use_bdlora": "is block-diagonal",
    "kasa_config": "adds to singular values",
    "monteclora_config": "samples its weights",
    "alora_invocation_tokens": "is active behind some tokens only",
    "arrow_config": "chooses among adapters by the input",
}
MUTATED = ("pissa", "olora", "corda", "loftq", "lora_ga")  # ways to start that change the base


class Module(NamedTuple):
    """A module that the adapter changes.

    Attributes:
        path: its name in the model.
        down, up: keys of A and B in the file.
        embedding: whether A is [r, tokens] and B [width, r] of a table of tokens.
        rank, scale: r, and s of W + s B A.
        magnitude: key of DoRA's magnitudes, or None.
        bias: key of what is added, times s, to the bias, or None.
    """

    path: str
    down: str
    up: str
    embedding: bool
    rank: int
    scale: float
    magnitude: str | None = None
    bias: str | None = None


class Adapter:
    """A LoRA adapter.

    Attributes:
        folder: where it is.
        config: adapter_config.json.
        file: its leaves.
        modules: path -> `Module`.
        replaced: leaf of the model -> key of what takes its place (modules_to_save, biases).
        copies: leaf of the model -> key of the base's own leaf, saved with an adapted one.
        tokens: leaf of the model -> key of new rows, and their numbers.

    Raises:
        UserError: no LoRA adapter, one of a kind that is not read, or a damaged one; everything
            that is wrong with it in one message.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        paths = [self.folder / "adapter_config.json", self.folder / "adapter_model.safetensors"]
        missing = [p.name for p in paths if not os.path.lexists(p)]
        if missing:
            pickled = (self.folder / "adapter_model.bin").exists()
            why = "; its adapter_model.bin is a pickle: save it as safetensors" if pickled else ""
            raise UserError(f"{folder} is no adapter: it has no {' and no '.join(missing)}{why}.")
        check_inside(self.folder, [p.name for p in paths])
        self.config: dict[str, Any] = read_json(paths[0])
        self._check_config()
        try:
            self.file = File(paths[1])
        except HeaderError as error:
            raise UserError(f"{error} Download the adapter again.") from None
        self.files = tuple(paths)
        self.modules: dict[str, Module] = {}
        self.replaced: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        self.tokens: dict[str, tuple[str, list[int]]] = {}
        self._wrong: list[str] = []
        self._sort()
        if not self.file.like:
            self._wrong.append("it has no leaves")
        self._raise()

    # ------------------------------------------------------------ settings

    def _check_config(self) -> None:
        get, wrong = self.config.get, []
        kind = get("peft_type", "LORA")
        if kind != "LORA":
            raise UserError(f"{self.folder}: an adapter of type {kind!r}; only LORA is read.")
        for key in ("r", "lora_alpha"):
            value = get(key, 8)
            low = 1 if key == "r" else -1e30
            if not _number(value) or value < low or (key == "r" and value != int(value)):
                expected = "a whole number above 0" if key == "r" else "a number"
                wrong.append(f"{key} must be {expected}, got {value!r}")
        for key in ("rank_pattern", "alpha_pattern"):
            table = get(key) or {}
            sound = isinstance(table, Mapping) and all(_number(v) for v in table.values())
            if not sound or any(len(k) > 1000 or not _compiles(k) for k in table):
                wrong.append(f"{key} must map patterns of names to numbers")
        for key, why in UNREAD.items():
            if get(key):
                wrong.append(f"{key} is set: such an adapter {why}, which is not read")
        start = get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(MUTATED):
            wrong.append(
                f"init_lora_weights is {start!r}, which changes the base's own weights at the "
                "start; save it converted to LoRA (path_initial_model_for_weight_conversion)"
            )
        if wrong:
            raise UserError(f"{self.folder}/adapter_config.json: {'; '.join(wrong)}.")

    def _pattern(self, key: str, path: str, default: Any) -> Any:
        """The first pattern that matches the path or an end of it, as PEFT groups them."""
        for pattern, value in (self.config.get(key) or {}).items():
            if _compiled(pattern).search(path):
                return value
        return self.config.get(default, 8)

    def scale(self, path: str, rank: int) -> float:
        """s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
        alpha = self._pattern("alpha_pattern", path, "lora_alpha")
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    # ------------------------------------------------------------ leaves

    def _sort(self) -> None:
        modules: dict[str, dict[str, str]] = {}
        for key in self.file:
            name = key.removeprefix(PREFIX)
            if m := KEY.fullmatch(name):
                part = m["part"] + ("_bias" if m["end"] == ".bias" else "")
                where = modules.setdefault(REPLACED.sub("", m["path"]), {})
                if part in where:
                    self._wrong.append(f"{key!r} and {where[part]!r} are one part of one module")
                where[part] = key
            elif m := TOKENS.fullmatch(name):
                self.tokens[f"{m['path']}.weight"] = key, self._rows(m["path"], key)
            elif "lora_" in name.rpartition(".")[0].rpartition(".")[2]:
                self._wrong.append(f"{key!r} is a part of LoRA that is not read")
            elif ".original_module." not in name:
                self.replaced[REPLACED.sub("", name)] = key
        for path, parts in modules.items():
            self._module(path, parts)
        for leaf in [n for n in self.replaced if n.removesuffix(".weight") in self.modules]:
            self.copies[leaf] = self.replaced.pop(leaf)

    def _module(self, path: str, parts: dict[str, str]) -> None:
        like = {k: self.file.like[v] for k, v in parts.items()}
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        missing = [n for n in names if n not in parts]
        if missing or (embedding and "lora_A" in parts):
            self._wrong.append(f"module {path!r} has {_and(parts)} only")
            return
        down, up = (like[n] for n in names)
        if not _factors(down, up, embedding):
            self._wrong.append(
                f"module {path!r}: A {list(down.shape)} and B {list(up.shape)} make no product"
            )
            return
        rank = down.shape[0]
        stated = self._pattern("rank_pattern", path, "r")
        if rank != stated:
            self._wrong.append(f"module {path!r} has rank {rank}, the settings say {stated:g}")
            return
        self.modules[path] = Module(
            path, parts[names[0]], parts[names[1]], embedding, rank, self.scale(path, rank),
            parts.get("lora_magnitude_vector"), parts.get("lora_B_bias"),
        )  # fmt: skip

    def _rows(self, path: str, key: str) -> list[int]:
        setting = self.config.get("trainable_token_indices")
        if isinstance(setting, Mapping):
            ends = [v for k, v in setting.items() if path == k or path.endswith(f".{k}")]
            setting = ends[0] if len(ends) == 1 else None
        sound = isinstance(setting, list) and all(type(i) is int and i >= 0 for i in setting)
        if not sound or self.file.like[key].shape[:1] != (len(setting or ()),):
            self._wrong.append(f"{key!r} does not fit trainable_token_indices")
            return []
        assert isinstance(setting, list)  # it is sound
        return setting

    def _raise(self) -> None:
        if self._wrong:
            self.file.close()
            raise UserError(f"{self.folder} is damaged: {bounded(self._wrong)}.")

    # ------------------------------------------------------------ values

    def factors(self, module: Module) -> tuple[np.ndarray, np.ndarray]:
        """A as [r, ...] and B as [..., r], in float32."""
        down = self.file[module.down].astype(np.float32)
        return down, self.file[module.up].astype(np.float32)

    def product(self, module: Module) -> np.ndarray:
        """s B A as [out, in], of an embedding as [tokens, width], of a convolution in its axes."""
        down, up = self.factors(module)
        delta = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        delta *= np.float32(module.scale)
        return delta.T if module.embedding else delta.reshape(len(up), *down.shape[1:])


def _number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)


def _compiles(pattern: Any) -> bool:
    try:
        return isinstance(pattern, str) and _compiled(pattern) is not None
    except PatternError:
        return False


def _compiled(pattern: str) -> Pattern:
    return compile_pattern(rf"^(.*\.)?({pattern})$")


def _factors(down: Like, up: Like, embedding: bool) -> bool:
    """Whether A and B make a product: [r, in] and [out, r], of convolutions with axes behind."""
    if embedding or down.ndim == 2:
        fits = down.ndim == up.ndim == 2 and up.shape[1] == down.shape[0]
    else:
        fits = 2 < down.ndim == up.ndim and up.shape[1:] == (down.shape[0], *[1] * (up.ndim - 2))
    return fits and down.size > 0 and up.size > 0


def _and(parts: Mapping[str, str]) -> str:
    return " and ".join(sorted(parts))
