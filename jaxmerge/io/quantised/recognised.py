"""What a scheme finds among the stored leaves, and what all schemes need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxmerge.io.architectures import configs
from jaxmerge.io.computed import Computation
from jaxmerge.io.safetensors import Leaves, Like

FLOATS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
UNUSED = (  # of activations and caches, beside the kernel that they belong to
    "input_scale", "activation_scale", "input_activation_scale", "input_zero_point",
    "input_global_scale", "output_scale", "scale_input", "qscale_act", "weight_format",
    "input_scale_ub", "qweight_bits",
)  # fmt: skip
CACHE = ("k_scale", "v_scale", "q_scale", "prob_scale", "k_zero_point", "v_zero_point")


@dataclasses.dataclass
class Recognised:
    """What a scheme recognises.

    Attributes:
        computed: leaf of the model -> how it is computed.
        hidden: stored leaves that are no part of the model.
        wrong: a line for every leaf that belongs to the scheme and does not fit it.
    """

    computed: dict[str, Computation] = dataclasses.field(default_factory=dict)
    hidden: set[str] = dataclasses.field(default_factory=set)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def add(
        self, stored: Leaves, name: str, shape: tuple[int, ...], dtype: np.dtype,
        load: Callable[[], np.ndarray], parts: Collection[str],
    ) -> None:  # fmt: skip
        """Enter a leaf that is computed in float32 and stored as `dtype`."""
        like = Like(tuple(shape), np.dtype(np.float32), np.dtype(dtype))
        self.computed[name] = Computation(like, load, list(parts))
        module = name.rpartition(".")[0]
        self.hidden |= {n for s in UNUSED if (n := f"{module}.{s}") in stored}
        around = (module, module.rpartition(".")[0], f"{module.rpartition('.')[0]}.attn")
        self.hidden |= {n for m in around for s in CACHE if (n := f"{m}.{s}") in stored}


def float_dtype(config: Mapping[str, Any], stored: Leaves) -> np.dtype:
    """In which dtype the model computes: config.json's, else that of its unquantised matrices."""
    for path, value in configs.walk(config):
        name = str(value).removeprefix("torch.")
        if path[-1] in configs.DTYPES and name in FLOATS:
            return np.dtype(FLOATS[name])
    sizes: dict[np.dtype, int] = {}
    for like in stored.like.values():
        if like.dtype.name in FLOATS and like.ndim >= 2:
            sizes[like.dtype] = sizes.get(like.dtype, 0) + like.size
    return max(sizes, key=lambda d: sizes[d], default=np.dtype(ml_dtypes.bfloat16))


def as_scale(x: np.ndarray) -> np.ndarray:
    """A scale in float32; a byte is an exponent, 2^(byte - 127)."""
    if x.dtype == np.uint8:
        return np.exp2(x.astype(np.float32) - 127)
    return x.astype(np.float32)
