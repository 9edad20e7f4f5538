"""Entries of 8 bits with scales beside them: FP8 and INT8 of many makers.

Formula: W = s (w - z), with s one number, one a row, one a block of the matrix, or one an expert;
z (INT8 only) is zero where it is not stored.  Scales are found by name:

    x.weight_scale_inv      DeepSeek, transformers' fp8 (blocks; the name says inverse, it is not)
    x.weight_scale          compressed-tensors, ModelOpt, fbgemm
    x.scale                 DeepSeek (exponents in blocks)
    x.qscale_weight         Mistral
    x.scale_weight          ComfyUI, beside a marker `scaled_fp8`

Which entries a block covers is `weight_block_size`, else what divides the matrix evenly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmerge.io.quantised.recognised import Recognised, as_scale
from jaxmerge.io.safetensors import Leaves

FP8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


def scale_of(stored: Leaves, name: str) -> str | None:
    """The leaf that holds the scales of another."""
    module, _, last = name.rpartition(".")
    tries = [f"{name}_scale_inv", f"{name}_scale"]
    if last == "weight":
        tries += [f"{module}.scale", f"{module}.qscale_weight", f"{module}.scale_weight"]
    return next((t for t in tries if t in stored), None)


def find(stored: Leaves, setting: Mapping[str, Any], dtype: np.dtype) -> Recognised:
    """Recognise 8-bit leaves with scales."""
    recognised = Recognised(hidden={n for n in ("scaled_fp8",) if n in stored})
    block = _block_size(setting)
    for n, like in stored.like.items():
        if like.dtype.name not in (*FP8, "int8") or like.ndim < 1:
            continue
        scale, zero = scale_of(stored, n), f"{n}_zero_point"
        if scale is None or (like.dtype.name == "int8" and _four_bits(stored, scale)):
            continue
        cut = blocks(like.shape, stored.like[scale].shape, block)
        if cut is None:
            recognised.wrong.append(
                f"{n!r} {list(like.shape)} does not fit its scales {list(stored.like[scale].shape)}"
            )
            continue
        parts = [n, scale, *([zero] if zero in stored else [])]

        def load(n=n, scale=scale, zero=zero, cut=cut) -> np.ndarray:
            w = stored[n].astype(np.float32)
            if zero in stored:
                w -= spread(stored[zero].astype(np.float32), w.shape, cut)
            w *= spread(as_scale(stored[scale]), w.shape, cut)
            return w

        recognised.add(stored, n, like.shape, dtype, load, parts)
    return recognised


def _four_bits(stored: Leaves, scale: str) -> bool:
    """Whether bytes hold two 4-bit floats each: their scales are exponents."""
    return stored.like[scale].dtype.name in ("float8_e8m0fnu", "uint8")


def _block_size(setting: Mapping[str, Any]) -> tuple[int, int] | None:
    sizes = [setting.get("weight_block_size")]
    groups = setting.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        sizes.append(weights.get("block_structure") if isinstance(weights, Mapping) else None)
    for size in sizes:
        pair = size if isinstance(size, list | tuple) and len(size) == 2 else (0, 0)
        if all(type(v) is int and v > 0 for v in pair):
            return pair[0], pair[1]
    return None


def blocks(
    shape: tuple[int, ...], scales: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, ...] | None:
    """How many entries of each axis share a scale; None where the shapes do not fit.

    >>> blocks((300, 256), (3, 2), (128, 128)), blocks((300, 256), (300, 1), None)
    ((128, 128), (1, 256))
    >>> blocks((4, 300, 256), (4,), None), blocks((300, 256), (7, 2), (128, 128))
    ((1, 300, 256), None)
    """
    if math.prod(scales) == 1:
        return shape
    if len(scales) < len(shape) and shape[: len(scales)] == scales:
        return (1,) * len(scales) + shape[len(scales) :]
    if len(scales) != len(shape):
        return None
    out = []
    for axis, (n, s) in enumerate(zip(shape, scales, strict=True)):
        size = None if block is None or axis < len(shape) - 2 else block[axis - len(shape)]
        if size is None or math.ceil(n / size) != s:
            size = n // s if s and n % s == 0 else 128
        if math.ceil(n / size) != s:
            return None
        out.append(size)
    return tuple(out)


def spread(scale: np.ndarray, shape: tuple[int, ...], cut: tuple[int, ...]) -> np.ndarray:
    """The scale of every entry, as an array that broadcasts against the leaf."""
    if scale.size == 1:
        return scale.reshape(())
    scale = scale.reshape(scale.shape + (1,) * (len(shape) - scale.ndim))
    for axis, (n, size) in enumerate(zip(shape, cut, strict=True)):
        if size < n and size > 1:
            scale = np.repeat(scale, size, axis).take(np.arange(n), axis)
    return scale
