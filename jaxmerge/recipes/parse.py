"""Recipes as data: mappings with known keys, values of known kinds, numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxmerge.errors import UserError, not_known


def mapping(value: Any, what: str, known: Iterable[str]) -> dict[str, Any]:
    """A mapping with known keys; refuses others with the closest known one."""
    known = list(known)
    if not isinstance(value, Mapping):
        raise UserError(f"{what} must be a mapping with some of {', '.join(known)}; got {value!r}.")
    unknown = [k for k in value if k not in known]
    if unknown:
        hints = not_known(unknown, known)
        raise UserError(f"{what} has unknown key{'s' * (len(unknown) > 1)} {hints}")
    return dict(value)


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise unless every value is of one of its kinds, or None."""
    words = {str: "text", list: "a list", dict: "a mapping", int: "an integer"}
    for key, value in values.items():
        if value is None or key not in kinds:
            continue
        if not isinstance(value, kinds[key]) or (isinstance(value, bool)):
            expected = " or ".join(words[k] for k in kinds[key])
            raise UserError(f"{key} must be {expected}, got {value!r}.")


def number_of(value: Any, what: str) -> float | int:
    """A finite number that may be written as text: YAML takes 1e-10, without a point, for text.

    >>> number_of("1e-10", "tol"), number_of(" 0.3", "weight")
    (1e-10, 0.3)
    """
    if isinstance(value, str) and re.fullmatch(
        r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", value, re.I
    ):
        value = float(value)
    return number(int(value) if isinstance(value, bool) else value, what)


def number(value: Any, what: str) -> float | int:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise UserError(f"{what} must be a number, got {value!r}.")
    return value


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
