"""Which axis of a kernel has an entry for every output, where only shapes can say."""

from __future__ import annotations

from collections.abc import Mapping


def by_bias(shapes: Mapping[str, tuple[int, ...]], name: str) -> bool | None:
    """Whether a kernel is [in, out], as the bias beside it says; None where it does not.

    >>> shapes = {"a.weight": (4, 8), "a.bias": (8,), "b.weight": (4, 8), "b.bias": (4,)}
    >>> by_bias(shapes, "a.weight"), by_bias(shapes, "b.weight"), by_bias(shapes, "a.bias")
    (True, False, None)
    """
    bias = shapes.get(f"{name.removesuffix('weight')}bias", ())
    if not name.endswith(".weight") or len(bias) != 1 or len(shapes[name]) != 2:
        return None
    rows, columns = shapes[name]
    if rows == columns or bias[0] not in (rows, columns):
        return None
    return bias[0] == columns


def all_in_out(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether every kernel whose bias says so is [in, out]; False where none says anything.

    >>> all_in_out({"a.weight": (4, 8), "a.bias": (8,), "b.weight": (4, 4), "b.bias": (4,)})
    True
    """
    votes = [v for n in shapes if (v := by_bias(shapes, n)) is not None]
    return bool(votes) and all(votes)
