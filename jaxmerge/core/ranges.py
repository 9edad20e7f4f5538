"""What a setting may be: the annotations of a factory's signature, read as a schema.

    def ewc(strength: NonNegative = 1.0, labels: Literal["data", "sampled"] = "data"): ...

A value that does not fit is refused with what was expected in words.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import jax

from jaxmerge.core.specs import Spec, Static


class Range(NamedTuple):
    """What a number may be; said in words where it is refused.

    Attributes:
        words: such as "a number from 0 on".
        fits: whether a concrete value does.
        whole: the value is an int and decides a shape or a count, so that it is static.
    """

    words: str
    fits: Callable[[Any], bool]
    whole: bool = False


NonNegative = Annotated[float, Range("a number from 0 on", lambda v: v >= 0)]
Positive = Annotated[float, Range("a positive number", lambda v: v > 0)]
Share = Annotated[float, Range("a number in [0, 1]", lambda v: 0 <= v <= 1)]
Count = Annotated[int, Range("a whole number from 1 on", lambda v: v >= 1, whole=True)]

# Hyperparameters that jit, vmap or grad may trace; their values are checked by whoever uses them.
Number = Annotated[float | jax.Array, Range("a number", lambda v: True)]
Numbers = Annotated[
    float | jax.Array | Sequence[float | jax.Array],
    Range("a number, or one for each model", lambda v: True),
]


def checked(value: Any, hint: Any) -> tuple[str | None, Any]:
    """(what it should be, where it does not fit; the value, ints as floats where floats go).

    >>> checked(3, NonNegative), checked(-1, NonNegative)
    ((None, 3.0), ('a number from 0 on', -1))
    """
    if hasattr(value, "dtype") or isinstance(value, Spec | Static):
        return None, value  # traced, or checked before
    options = get_args(hint) if get_origin(hint) in (typing.Union, type(int | None)) else (hint,)
    if value is None:
        allowed = hint is None or type(None) in options or hint is Any
        return (None if allowed else _words(options[0])), value
    options = [o for o in options if o is not type(None)]
    for option in options:
        base, ranges = _split(option)
        if base is Literal:
            if value in get_args(option):
                return None, value
        elif base is float and isinstance(value, int | float) and not isinstance(value, bool):
            if all(r.fits(value) for r in ranges):
                return None, float(value)
        elif base is int and type(value) is int:
            if all(r.fits(value) for r in ranges):
                return None, value
        elif (base is bool and isinstance(value, bool)) or base not in (float, int, bool):
            return None, value
    none = ["None"] if type(None) in get_args(hint) else []
    return " or ".join([*map(_words, options), *none]), value


def _split(option: Any) -> tuple[Any, list[Range]]:
    if get_origin(option) is Annotated:
        base, *extra = get_args(option)
        return base, [r for r in extra if isinstance(r, Range)]
    return (Literal if get_origin(option) is Literal else option), []


def _words(option: Any) -> str:
    base, ranges = _split(option)
    if base is Literal:
        return "one of " + ", ".join(map(repr, get_args(option)))
    if ranges:
        return ranges[0].words
    return {float: "a number", int: "a whole number", bool: "true or false"}.get(base, str(base))
