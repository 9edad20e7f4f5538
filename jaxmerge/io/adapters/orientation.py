"""Which way round a kernel is stored: [out, in] as torch's Linear, or [in, out] as a Conv1D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxmerge.io.architectures import Architecture


def stored_in_out(arch: Architecture, like: Mapping[str, Any], leaf: str) -> bool:
    """Whether a kernel is [in, out]: as its family has it; of an unknown family, as its bias or
    those of the other kernels say, which have an entry for every output.

    >>> from jaxmerge.io.architectures import architecture
    >>> from jaxmerge.io.safetensors import Like
    >>> like = {"a.weight": Like((4, 4), float), "b.weight": Like((4, 8), float)}
    >>> like["b.bias"] = Like((8,), float)
    >>> [stored_in_out(architecture(like, {}), like, n) for n in ("a.weight", "b.weight")]
    [True, True]
    """
    if arch.known is not None or arch.transposed(leaf):
        return arch.transposed(leaf)
    own = _by_bias(like, leaf)
    if own is not None:
        return own
    votes = [v for n in like if (v := _by_bias(like, n)) is not None]
    return bool(votes) and all(votes)


def _by_bias(like: Mapping[str, Any], leaf: str) -> bool | None:
    """None where shapes do not say."""
    bias = f"{leaf.removesuffix('weight')}bias"
    if not leaf.endswith(".weight") or bias not in like or len(like[leaf].shape) != 2:
        return None
    out, (first, second) = like[bias].shape, like[leaf].shape
    if first == second or out not in ((first,), (second,)):
        return None
    return out == (second,)
