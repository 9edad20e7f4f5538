"""Dataclasses of results as plain JSON and back; what comes from a file is checked by its types."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any, TypeVar

from jaxmerge.errors import UserError, bounded
from jaxmerge.io.untrusted import check_printable

Kind = TypeVar("Kind")


def checked(kind: type[Kind]) -> type[Kind]:
    """Class decorator: a dataclass that `from_plain` reads strictly.

    Unknown fields, NaN and infinities, and numbers given as text are refused.
    """
    strict = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
    kind.__pydantic_config__ = strict  # pyright: ignore[reportAttributeAccessIssue]
    return kind


def to_plain(x: Any) -> Any:
    """Dataclasses become dicts, NaN None, arrays lists: what strict JSON can hold.

    >>> to_plain({1: (float("nan"), 2)})
    {'1': [None, 2]}
    """
    if hasattr(x, "tolist"):
        x = x.tolist()
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        x = dataclasses.asdict(x)
    if isinstance(x, dict):
        return {str(k): to_plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [to_plain(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


def from_plain(kind: type[Kind], x: Any, where: str) -> Kind:
    """JSON back into a dataclass.

    Args:
        kind: a dataclass of `checked` ones.
        where: the name of the file, for messages.

    Raises:
        UserError: fields that are missing, unknown, or of another kind, all of them named.

    >>> @checked
    ... @dataclasses.dataclass
    ... class Pair:
    ...     a: int
    ...     b: list[float]
    >>> from_plain(Pair, {"a": 1, "b": [0.5, 2]}, "pair.json")
    Pair(a=1, b=[0.5, 2.0])
    >>> from_plain(Pair, {"a": "1"}, "pair.json")
    Traceback (most recent call last):
    jaxmerge.errors.UserError: pair.json does not fit: a: input should be a valid integer,
    got '1'; b: field required.
    >>> from_plain(Pair, {"a": 1, "b": [], "c": 2}, "pair.json")
    Traceback (most recent call last):
    jaxmerge.errors.UserError: pair.json does not fit: c: there is no such field.
    """
    from pydantic import ValidationError

    check_printable(x, where)
    try:
        return _adapter(kind).validate_json(json.dumps(x))
    except ValidationError as error:
        lines = [_line(e) for e in error.errors(include_url=False)]
        raise UserError(f"{where} does not fit: {bounded(lines)}.") from None


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _line(error: Any) -> str:
    """One offender: where it is, what was expected, what is there."""
    path = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in error["loc"])
    unknown = error["type"] == "unexpected_keyword_argument"
    message = "there is no such field" if unknown else error["msg"]
    text = f"{path.removeprefix('.')}: {message[:1].lower()}{message[1:]}"
    plain = isinstance(error["input"], str | int | float) and "keyword" not in error["type"]
    return f"{text}, got {str(error['input'])[:60]!r}" if plain else text
