"""Quantised checkpoints, read as the floating leaves that they stand for.

``dequantised(stored, config, who)`` recognises the schemes below by their leaves and returns a
`Computed` over the stored ones: each leaf is dequantised when it is read, in float32, and stored in
an output in the model's own dtype (`torch_dtype` of config.json).  A scheme that is not read here
is refused by its name with a way out; integers of a quantised leaf are never merged.

    ====================  ======================================================================
    bitsandbytes          8 bit (rows), 4 bit (nf4, fp4; nested scales): `bitsandbytes`
    GPTQ, AWQ             2, 3, 4, 8 bit; gemm layout: `packed`
    compressed-tensors    pack-quantized (`packed`); int, float, naive-quantized (`scaled`);
                          nvfp4 and mxfp4 (`fp4`)
    FP8                   blocks, rows, tensors; DeepSeek, transformers, fbgemm, ModelOpt, Mistral,
                          ComfyUI: `scaled`
    MXFP4, NVFP4          gpt-oss, ModelOpt: `fp4`
    ====================  ======================================================================

To add a scheme, write ``find(stored, setting, dtype) -> Recognised`` that looks at `stored.like`
(names, shapes, dtypes; small leaves may be read) and at the settings, and enter it in `SCHEMES`. A
format that is a file of its own (GGUF) returns a `Computed` from its reader in the same way and
needs nothing else: sources, merges, `--check` and outputs see the computed leaves only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmerge.errors import UserError
from jaxmerge.io.architectures.configs import walk
from jaxmerge.io.computed import Computed
from jaxmerge.io.quantised import bitsandbytes, fp4, packed, scaled
from jaxmerge.io.quantised.recognised import Recognised, float_dtype
from jaxmerge.io.safetensors import Leaves

SETTINGS = ("quantization_config", "compression_config")
SCHEMES = (bitsandbytes.find, packed.find, fp4.find, scaled.find)

READ = {
    "bitsandbytes": "", "gptq": "", "awq": "", "fp8": "", "fbgemm_fp8": "", "mxfp4": "",
    "compressed-tensors": "", "modelopt": "", "nvfp4": "", "bitsandbytes_4bit": "",
    "bitsandbytes_8bit": "",
}  # fmt: skip
UNREAD_FORMATS = ("marlin", "sparse", "bitblas", "gemv", "ipex", "exllama", "mxfp6")
WAY_OUT = (
    "take the checkpoint that it was made from, or write a dequantised copy with the library that "
    "made it (transformers: from_pretrained, model.dequantize(), save_pretrained)"
)


def setting_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The quantization settings of a config.json, wherever they stand; empty if there are none.

    >>> setting_of({"thinker_config": {"text_config": {"quantization_config": {"bits": 4}}}})
    {'bits': 4}
    """
    values = (v for p, v in walk(config) if p[-1] in SETTINGS and isinstance(v, Mapping) and v)
    return dict(next(values, {}))


def without_setting(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the dequantised model."""
    return {
        k: without_setting(v) if isinstance(v, dict) else v
        for k, v in config.items()
        if k not in SETTINGS
    }


def dequantised(stored: Leaves, config: Mapping[str, Any], who: str) -> Leaves:
    """The model behind a quantised checkpoint; `stored` itself if nothing in it is quantised.

    Args:
        config: config.json, or an empty mapping; schemes are recognised without it too.
        who: the checkpoint, for messages.

    Raises:
        UserError: a scheme that is not read, or leaves that do not fit their scheme (all named).
    """
    setting = setting_of(config)
    _refuse_unread(setting, who)
    dtype = float_dtype(config, stored)
    computed, hidden, wrong = {}, set(), []
    for find in SCHEMES:
        recognised: Recognised = find(stored, setting, dtype)
        computed |= recognised.computed
        hidden |= recognised.hidden
        wrong += recognised.wrong
    used = hidden.union(*(c.parts for c in computed.values()))
    left = [n for n in stored if n not in used and _looks_packed(n, stored)]
    if wrong or left:
        lines = wrong + [f"{n!r} holds packed integers of no scheme that is read" for n in left]
        method = setting.get("quant_method")
        more = f" (and {len(lines) - 3} leaves more)" if len(lines) > 3 else ""
        raise UserError(
            f"{who} is quantised{f' ({method})' if method else ''} and cannot be dequantised: "
            f"{'; '.join(lines[:3])}{more}. {WAY_OUT[0].upper()}{WAY_OUT[1:]}."
        )
    return Computed(stored, computed, hidden) if computed else stored


def _refuse_unread(setting: Mapping[str, Any], who: str) -> None:
    if not setting:
        return
    method = str(setting.get("quant_method", "")).lower()
    if not method and (setting.get("load_in_4bit") or setting.get("load_in_8bit")):
        method = "bitsandbytes"
    groups = setting.get("config_groups")
    inner = groups.values() if isinstance(groups, Mapping) else ()
    formats = [setting, *(g for g in inner if isinstance(g, Mapping))]
    kinds = [str(f.get(k, "")).lower() for f in formats for k in ("format", "checkpoint_format")]
    kinds.append(str(setting.get("version", "")).lower())
    sparse = setting.get("sparsity_config") or {}
    kinds.append(str(sparse.get("format", "")).lower() if isinstance(sparse, Mapping) else "")
    name = method or "an unnamed scheme"
    unread = [k for k in kinds if any(u in k for u in UNREAD_FORMATS)]
    if unread:
        name = f"{name}, format {unread[0]}"
    elif setting.get("transform_config"):
        name = f"{name} with rotations (transform_config)"
    elif method in READ or not method:
        return
    raise UserError(f"{who} is quantised with {name}, which is not read: {WAY_OUT}.")


def _looks_packed(name: str, stored: Leaves) -> bool:
    """A kernel of integers: no model computes with one, so it is a quantised leaf."""
    like = stored.like[name]
    ends = ("weight", "qweight", "_packed", "_blocks", "_proj")
    return like.ndim >= 2 and np.dtype(like.dtype).kind in "iu" and name.endswith(ends)


__all__ = ["Recognised", "dequantised", "setting_of", "without_setting"]
