"""Floats of four bits (e2m1), two a byte, the first in the low half: MXFP4 and NVFP4.

Formulas, v(c) the value of code c (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives):

    MXFP4   W = v(c) 2^(e - 127), e a byte for 32 entries
    NVFP4   W = v(c) s g, s an FP8 scale for 16 entries, g one number; compressed-tensors stores 1/g

gpt-oss stores `x_blocks` [experts, out, groups, 16] and `x_scales`; its kernels are
[experts, in, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmerge.io.quantised.recognised import Recognised, as_scale
from jaxmerge.io.safetensors import Leaves

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
VALUES = np.concatenate([VALUES, -VALUES])
BYTES = ("uint8", "int8")


def decode(codes: np.ndarray) -> np.ndarray:
    """Bytes [..., n] -> float32 [..., 2 n].

    >>> decode(np.uint8([0x2F]))
    array([-6.,  1.], dtype=float32)
    """
    codes = codes.view(np.uint8)
    pairs = np.stack([VALUES[codes & 15], VALUES[codes >> 4]], axis=-1)
    return pairs.reshape(*codes.shape[:-1], -1)


def find(stored: Leaves, setting: Mapping[str, Any], dtype: np.dtype) -> Recognised:
    """Recognise ``_blocks`` with ``_scales``, ``_packed`` bytes, and bytes with scales."""
    recognised = Recognised()
    for n, like in stored.like.items():
        if like.dtype.name not in BYTES or like.ndim < 2:
            continue
        if n.endswith("_blocks") and (scales := f"{n[:-7]}_scales") in stored:
            _experts(recognised, stored, n.removesuffix("_blocks"), n, scales, dtype)
        elif n.endswith("_packed"):
            name = n.removesuffix("_packed")
            _matrix(recognised, stored, name, n, f"{name}_global_scale", True, dtype)
        else:
            _matrix(recognised, stored, n, n, f"{n}_scale_2", False, dtype)
    return recognised


def _experts(
    recognised: Recognised, stored: Leaves, name: str, blocks: str, scales: str, dtype
) -> None:
    shape = stored.like[blocks].shape
    if len(shape) < 3 or stored.like[scales].shape != shape[:-1]:
        recognised.wrong.append(f"{blocks!r} does not fit its scales")
        return
    *lead, out, groups, width = shape

    def load() -> np.ndarray:
        w = decode(stored[blocks]) * as_scale(stored[scales])[..., None]
        return np.ascontiguousarray(np.swapaxes(w.reshape(*lead, out, -1), -1, -2))

    recognised.add(stored, name, (*lead, 2 * groups * width, out), dtype, load, [blocks, scales])


def _matrix(
    recognised: Recognised, stored: Leaves, name: str, codes: str, world: str, inverse: bool, dtype
) -> None:
    scale = next((s for e in ("_scale", "_scale_inv") if (s := name + e) in stored), None)
    if scale is None and codes == name and name.endswith(".weight"):
        scale = next((s for s in (f"{name[:-7]}.scale",) if s in stored), None)
    if scale is None:
        return
    like, kind = stored.like[scale], stored.like[scale].dtype.name
    if kind not in ("uint8", "float8_e8m0fnu") and world not in stored:
        return  # integers with scales, or no scheme that is known here
    shape = (*stored.like[codes].shape[:-1], 2 * stored.like[codes].shape[-1])
    if like.shape[:-1] != shape[:-1] or not like.shape[-1] or shape[-1] % like.shape[-1]:
        recognised.wrong.append(f"{codes!r} does not fit its scales {list(like.shape)}")
        return
    parts = [codes, scale, *([world] if world in stored else [])]

    def load() -> np.ndarray:
        w, s = decode(stored[codes]), as_scale(stored[scale])
        if world in stored:
            g = stored[world].astype(np.float32).reshape(())
            s = s / g if inverse else s * g
        w *= np.repeat(s, shape[-1] // s.shape[-1], axis=-1)
        return w

    recognised.add(stored, name, shape, dtype, load, parts)
