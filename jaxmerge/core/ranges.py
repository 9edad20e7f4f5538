"""What a setting may be: the annotations of a factory's signature, read as a schema.

    def ewc(strength: NonNegative = 1.0, labels: Literal["data", "sampled"] = "data"): ...

A value that does not fit is refused with what was expected in words.
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmerge.core.specs import Spec, Static

MOST = 4096  # elements of an array that are looked at


class Range(NamedTuple):
    """What a number or a text may be; said in words where it is refused.

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
Correlation = Annotated[float, Range("a number in [-1, 1]", lambda v: -1 <= v <= 1)]
Count = Annotated[int, Range("a whole number from 1 on", lambda v: v >= 1, whole=True)]


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression.

    >>> is_pattern("^(?!head/)"), is_pattern("(")
    (True, False)
    """
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


Pattern = Annotated[str, Range("a regular expression", is_pattern)]


def is_number(value: Any) -> bool:
    """Whether a value is one number, NaN and texts excepted, or is traced.

    >>> is_number(2), is_number("2"), is_number(float("nan"))
    (True, False, False)
    """
    found = _elements(value)
    return found is None or all(_is(v, float) and not math.isnan(v) for v in found)


def are_numbers(value: Any) -> bool:
    """Whether a value is a number or a list of them, see `is_number`.

    >>> are_numbers((0.5, 2)), are_numbers((0.5, "2"))
    (True, False)
    """
    many = value if isinstance(value, list | tuple) else (value,)
    return all(map(is_number, many))


# Hyperparameters that jit, vmap or grad may trace; their ranges are checked by whoever uses them.
Number = Annotated[float | jax.Array, Range("a number", are_numbers)]  # who takes one says so
Numbers = Annotated[
    float | jax.Array | Sequence[float | jax.Array],
    Range("a number, or one for each model", are_numbers),
]


def checked(value: Any, hint: Any) -> tuple[str | None, Any]:
    """(what it should be, where it does not fit; the value, ints as floats where floats go).

    A scalar of numpy or jax is read as the number that it is; of an array, such as the stacked
    settings that `vmap` maps over, every element must fit.  What is traced is not looked at.

    >>> import numpy as np
    >>> checked(3, NonNegative), checked(-1, NonNegative)
    ((None, 3.0), ('a number from 0 on', -1))
    >>> checked(np.int64(3), Count), checked(np.float32([1, -1]), NonNegative)[0]
    ((None, 3), 'a number from 0 on')
    >>> checked(float("inf"), NonNegative)[0], checked("(", Pattern)[0]
    ('a finite number', 'a regular expression')
    """
    if isinstance(value, Static) or (isinstance(value, Spec) and not _plain_kind(hint)):
        return None, value  # checked before
    options = get_args(hint) if get_origin(hint) in (typing.Union, type(int | None)) else (hint,)
    if value is None:
        allowed = hint is None or type(None) in options or hint is Any
        return (None if allowed else _words(options[0])), value
    options = [o for o in options if o is not type(None)]
    elements = _elements(value)
    if elements is None:
        return None, value
    infinite = False
    for option in options:
        base, ranges = _split(option)
        if base is Literal:
            if len(elements) == 1 and elements[0] in get_args(option):
                return None, value
        elif (inner := _inner(base)) is not None:
            values = elements if getattr(value, "ndim", 0) == 1 else value
            if isinstance(values, list | tuple) and not any(checked(v, inner)[0] for v in values):
                return None, value
        elif places := _places(base):
            values = elements if getattr(value, "ndim", 0) == 1 else value
            if (
                isinstance(values, list | tuple)
                and len(values) == len(places)
                and not any(checked(v, p)[0] for v, p in zip(values, places, strict=True))
            ):
                return None, value
        elif base is str and ranges:
            if isinstance(value, str) and all(r.fits(value) for r in ranges):
                return None, value
        elif base in (float, int, bool):
            one = not getattr(value, "ndim", 0) or not any(r.whole for r in ranges)
            if one and all(_is(e, base) and all(r.fits(e) for r in ranges) for e in elements):
                if base is float and not all(map(math.isfinite, elements)):
                    infinite = True
                    continue
                return None, _plain(value, elements, base)
        elif get_origin(base) not in (typing.Union, type(int | None)) or all(
            r.fits(value) for r in ranges
        ):
            return None, value
    none = ["None"] if type(None) in get_args(hint) else []
    words = ["a finite number"] if infinite else [*map(_words, options), *none]
    return " or ".join(words), value


def _plain_kind(hint: Any) -> bool:
    """Whether a hint says numbers, texts or choices alone, for which no spec can stand."""
    base, _ = _split(hint)
    if get_origin(base) in (typing.Union, type(int | None)):
        return all(map(_plain_kind, get_args(base)))
    if (inner := _inner(base)) is not None:
        return _plain_kind(inner)
    of_places = _places(base)
    return base in (float, int, bool, str, type(None), Literal, jax.Array) or bool(of_places)


def unfit(hint: Any, **values: Any) -> list[str]:
    """What does not fit a hint, in words.

    >>> unfit(Count, batch=10, epochs=0)
    ['epochs must be a whole number from 1 on, got 0']
    """
    expected = {n: checked(v, hint)[0] for n, v in values.items()}
    line = lambda v: " ".join(repr(v).split())  # arrays have several
    return [f"{n} must be {w}, got {line(values[n])}" for n, w in expected.items() if w]


def _elements(value: Any) -> Sequence[Any] | None:
    """What is to be checked: the numbers of an array; None where they are not known or many."""
    if not hasattr(value, "dtype"):
        return [value]
    concrete = isinstance(value, np.ndarray | np.generic | jax.Array)
    if not concrete or isinstance(value, Tracer) or np.size(value) > MOST:
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):  # a random key
        return [value]
    return np.asarray(value).ravel().tolist()


def _inner(hint: Any) -> Any:
    """What each element is, where a hint says a list of any length."""
    args = get_args(hint)
    homogeneous = get_origin(hint) in (list, Sequence) or args[1:] == (...,)
    return args[0] if args and homogeneous else None


def _places(hint: Any) -> tuple[Any, ...]:
    """What stands at each place, where a hint says a tuple of so many numbers or texts."""
    args = get_args(hint) if get_origin(hint) is tuple else ()
    named = all(a in (float, int, bool, str) or get_origin(a) is Annotated for a in args)
    return args if named else ()  # of other kinds whoever uses them says what they are


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _plain(value: Any, elements: Sequence[Any], kind: type) -> Any:
    """Whole numbers as floats where floats go, and as Python's where a count is asked for."""
    if not hasattr(value, "dtype"):
        return float(value) if kind is float else value
    if value.ndim == 0 and isinstance(elements[0], int):
        return kind(elements[0])
    return value


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
    if (inner := _inner(base)) is not None:
        return f"a list, each {_words(inner)}"
    if places := _places(base):
        return f"({', '.join(map(_words, places))})"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    return (words | {Any: "given"}).get(base, str(base))
