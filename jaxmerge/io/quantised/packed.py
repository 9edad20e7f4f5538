"""Integers of a few bits packed into int32 words: GPTQ, AWQ, compressed-tensors' pack-quantized.

Formulas, with q the unpacked integers, s scales, z zero points, g(i) the group of input i:

    GPTQ        W[o, i] = s[g(i), o] (q[i, o] - z[g(i), o]);  z is stored minus one (format v1)
    AWQ         the same, eight 4-bit columns a word in the order 0 2 4 6 1 3 5 7
    packed      W[o, i] = s[o, g(i)] (q[o, i] - 2^(b-1) - z[o, g(i)])

A word holds the integers one after the other from its lowest bit, and goes on in the next word
where a width does not divide 32.  g is stored (`g_idx`), or i // group size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmerge.io.quantised.recognised import Recognised
from jaxmerge.io.safetensors import Leaves

AWQ_PLACE = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # column c of eight lies in nibble AWQ_PLACE[c]
BITS = (2, 3, 4, 5, 6, 8)


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` integers of each row of int32 words, as int32.

    >>> unpack(np.int32([[0x00000021]]), 4, 3).tolist()
    [[1, 2, 0]]
    """
    wide = words.astype(np.int32).view(np.uint32).astype(np.uint64)
    wide = np.concatenate([wide, np.zeros((*wide.shape[:-1], 1), np.uint64)], axis=-1)
    at = np.arange(count, dtype=np.int64) * bits
    word, shift = at // 32, (at % 32).astype(np.uint64)
    pair = wide[..., word] | wide[..., word + 1] << np.uint64(32)
    return ((pair >> shift) & np.uint64((1 << bits) - 1)).astype(np.int32)


def find(stored: Leaves, setting: Mapping[str, Any], dtype: np.dtype) -> Recognised:
    """Recognise ``.qweight`` with ``.qzeros`` and ``.scales``, and ``_packed`` of int32."""
    recognised = Recognised()
    for n, like in stored.like.items():
        if n.endswith(".qweight") and like.dtype == np.int32 and like.ndim == 2:
            _columns(recognised, stored, n.removesuffix(".qweight"), setting, dtype)
        elif n.endswith("_packed") and like.dtype == np.int32:
            _rows(recognised, stored, n.removesuffix("_packed"), dtype)
    return recognised


def _columns(recognised: Recognised, stored: Leaves, module: str, setting, dtype: np.dtype) -> None:
    """GPTQ and AWQ."""
    parts = [f"{module}.{p}" for p in ("qweight", "qzeros", "scales")]
    missing = [p for p in parts if p not in stored]
    if missing:
        recognised.wrong.append(f"{parts[0]!r} has no {missing[0]!r}")
        return
    words, zeros, scales = (stored.like[p].shape for p in parts)
    order = f"{module}.g_idx"
    more = [order] if order in stored else []
    if len(scales) != 2 or len(zeros) != 2 or not zeros[1] or zeros[0] != scales[0]:
        recognised.wrong.append(f"{parts[0]!r} does not fit its zeros and scales")
        return
    bits, rest = divmod(32 * zeros[1], scales[1])
    gptq, awq = words[1] == scales[1], bits == 4 and 8 * words[1] == scales[1]
    inputs = words[0] if awq else words[0] * 32 // bits if bits else 0
    if rest or bits not in BITS or not (gptq or awq):
        recognised.wrong.append(f"{parts[0]!r} is laid out neither as GPTQ nor as AWQ (gemm)")
        return
    if more and stored.like[order].shape != (inputs,):
        recognised.wrong.append(f"{order!r} does not have {inputs} entries")
        return
    second = str(setting.get("checkpoint_format", "")).lower() == "gptq_v2"

    def load() -> np.ndarray:
        q, z, s = (stored[p] for p in parts)
        if awq:
            q, z = _awq(q), _awq(z)
        else:
            q, z = unpack(q.T, bits, inputs).T, unpack(z, bits, scales[1])
            z = z if second else (z + 1) & ((1 << bits) - 1)
        group = _groups(stored, order, inputs, scales[0])
        s = s.astype(np.float32)
        w = (q - z[group]).astype(np.float32) * s[group]
        return np.ascontiguousarray(w.T)

    shape = (scales[1], inputs)
    recognised.add(stored, f"{module}.weight", shape, dtype, load, [*parts, *more])


def _awq(words: np.ndarray) -> np.ndarray:
    plain = unpack(words, 4, 8 * words.shape[1]).reshape(len(words), -1, 8)
    return plain[..., AWQ_PLACE].reshape(len(words), -1)


def _groups(stored: Leaves, order: str, inputs: int, groups: int) -> np.ndarray:
    if order in stored and (index := stored[order]).min(initial=0) >= 0:
        return index.astype(np.int64)
    return np.arange(inputs) // math.ceil(inputs / groups)


def _rows(recognised: Recognised, stored: Leaves, name: str, dtype: np.dtype) -> None:
    """compressed-tensors, pack-quantized."""
    packed, scale, shape_, zero, order = (
        name + end for end in ("_packed", "_scale", "_shape", "_zero_point", "_g_idx")
    )
    missing = [p for p in (scale, shape_) if p not in stored]
    if missing:
        recognised.wrong.append(f"{packed!r} has no {missing[0]!r}")
        return
    shape = tuple(int(v) for v in stored[shape_].reshape(-1)[:8])
    words, scales = stored.like[packed].shape, stored.like[scale].shape
    bits = [b for b in BITS if shape and words == (*shape[:-1], math.ceil(shape[-1] * b / 32))]
    if len(bits) != 1 or scales[:-1] != shape[:-1] or not 0 < scales[-1] <= shape[-1]:
        recognised.wrong.append(f"{packed!r} does not fit its shape {list(shape)} and its scales")
        return
    (width,) = bits
    parts = [packed, *(p for p in (scale, shape_, zero, order) if p in stored)]

    def load() -> np.ndarray:
        q = unpack(stored[packed], width, shape[-1]) - (1 << (width - 1))
        group = _groups(stored, order, shape[-1], scales[-1])
        s = stored[scale].astype(np.float32)
        if zero in stored:
            z = stored[zero]
            if z.dtype == np.int32:  # packed along the rows
                z = np.swapaxes(unpack(np.swapaxes(z, -1, -2), width, shape[-2]), -1, -2)
                z = z - (1 << (width - 1))
            q = q - z.astype(np.int32)[..., group]
        return q.astype(np.float32) * s[..., group]

    recognised.add(stored, name, shape, dtype, load, parts)
