"""Which kernels of a model a wrap changes."""

from __future__ import annotations

import math
import re

from jaxmerge.core.types import Array, Leaves


def chosen(params: Leaves, target: str, axes: tuple[int, ...] = (2,)) -> list[str]:
    """Names of kernels that match a regular expression and have so many axes.

    Raises:
        ValueError: there is none.
    """
    known = [n for n, p in params.items() if p.ndim in axes and n.endswith("kernel")]
    found = [n for n in known if re.search(target, n)]
    if not found:
        shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise ValueError(f"No kernel matches {target!r}; the model has: {shown or 'none'}.")
    return found


def fan_in(kernel: Array) -> int:
    """Inputs of a kernel [in, out] or [height, width, in, out]."""
    return math.prod(kernel.shape[:-1])
