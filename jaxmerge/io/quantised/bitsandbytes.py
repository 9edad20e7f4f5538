"""bitsandbytes: 8 bit by rows, 4 bit by blocks of a table.

Formulas:

    8 bit   W[o, i] = q[o, i] SCB[o] / 127
    4 bit   W = table[c] a[block], codes two a byte, the first in the high half; with nested scales
            a[b] = table2[a8[b]] a2[b // 256] + offset

Shape, block sizes and dtype stand in the leaf ``quant_state`` (JSON), which is read when the
checkpoint is opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmerge.io.quantised.recognised import FLOATS, Recognised
from jaxmerge.io.safetensors import Leaves

STATE = ".quant_state.bitsandbytes__"
MAX_BYTES = 1 << 16  # bytes of a quant_state


def find(stored: Leaves, setting: Mapping[str, Any], dtype: np.dtype) -> Recognised:
    """Recognise ``.weight`` with ``.SCB``, and bytes with a ``quant_state``."""
    recognised = Recognised()
    states = {n.partition(STATE)[0]: n for n in stored if STATE in n}
    for n in stored:
        if n.endswith(".SCB"):
            _rows(recognised, stored, n.removesuffix(".SCB"), dtype)
        elif n in states:
            _table(recognised, stored, n, states[n], dtype)
        elif f"{n}.absmax" in stored:
            recognised.wrong.append(f"{n!r} has .absmax and no quant_state")
            recognised.hidden |= {m for m in stored if m.startswith(f"{n}.")} | {n}
    return recognised


def _rows(recognised: Recognised, stored: Leaves, module: str, dtype: np.dtype) -> None:
    weight, scales, kind = f"{module}.weight", f"{module}.SCB", f"{module}.weight_format"
    like = stored.like.get(weight)
    if like is None or like.dtype != np.int8 or stored.like[scales].shape != like.shape[:1]:
        recognised.wrong.append(f"{scales!r} belongs to no int8 leaf of as many rows")
        return
    if kind in stored and stored[kind].reshape(-1)[0] != 0:
        recognised.wrong.append(f"{weight!r} is laid out in tiles of a GPU; save it by rows")
        return

    def load() -> np.ndarray:
        return (
            stored[weight].astype(np.float32) * (stored[scales].astype(np.float32) / 127)[:, None]
        )

    recognised.add(stored, weight, like.shape, dtype, load, [weight, scales])


def _table(recognised: Recognised, stored: Leaves, name: str, state: str, dtype: np.dtype) -> None:
    nested = [f"{name}.{p}" for p in ("nested_absmax", "nested_quant_map")]
    parts = [name, f"{name}.absmax", f"{name}.quant_map", state]
    about = _state(stored, state)
    missing = [p for p in parts if p not in stored]
    if about is None or missing:
        why = f"has no {missing[0]!r}" if missing else "has no readable quant_state"
        recognised.wrong.append(f"{name!r} {why}")
        recognised.hidden |= {m for m in stored if m.startswith(f"{name}.")} | {name}
        return
    shape, block = tuple(about["shape"]), about["blocksize"]
    size, two = math.prod(shape), all(n in stored for n in nested)
    blocks = math.ceil(size / block)
    fits = stored.like[name].size == math.ceil(size / 2)
    fits &= stored.like[parts[1]].size == blocks and stored.like[parts[2]].size == 16
    fits &= two or stored.like[parts[1]].dtype != np.uint8
    if not fits:
        recognised.wrong.append(
            f"{name!r} does not fit its shape {list(shape)} in blocks of {block}"
        )
        return

    def load() -> np.ndarray:
        scales = stored[parts[1]].reshape(-1)
        if two:
            above, table = (stored[n].reshape(-1).astype(np.float32) for n in nested)
            over = np.arange(blocks) // about.get("nested_blocksize", 256)
            scales = table[scales] * above[over] + np.float32(about.get("nested_offset", 0.0))
        codes = stored[name].reshape(-1).view(np.uint8)
        codes = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)[:size]
        w = stored[parts[2]].reshape(-1).astype(np.float32)[codes]
        w *= np.repeat(scales.astype(np.float32), block)[:size]
        return w.reshape(shape)

    kind = FLOATS.get(str(about.get("dtype")))
    more = [n for n in nested if n in stored]
    recognised.add(stored, name, shape, np.dtype(kind) if kind else dtype, load, parts + more)


def _state(stored: Leaves, state: str) -> dict[str, Any] | None:
    if stored.like[state].size > MAX_BYTES:
        return None
    try:
        about = json.loads(stored[state].tobytes().decode("utf-8"))
        shape, block = about["shape"], about["blocksize"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    sound = isinstance(shape, list) and 0 < len(shape) < 8 and type(block) is int and block > 0
    sound = sound and all(type(v) is int and 0 < v < 2**40 for v in shape)
    nested = about.get("nested_blocksize", 256)
    return about if sound and type(nested) is int and nested > 0 else None
