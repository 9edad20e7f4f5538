"""Recipes as text: YAML that can neither build objects nor explode, and mappings with known keys.

Only plain YAML is read (mappings, lists, strings, numbers, booleans).  Tags that would build Python
objects, keys written twice, aliases whose expansion exceeds a bound and documents over a megabyte
are refused, each with the line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxmerge.errors import UserError, not_known
from jaxmerge.io.untrusted import read_text

MAX_BYTES = 1 << 20
MAX_NODES = 200_000  # after every alias is expanded
MAX_DEPTH = 60  # of lists and mappings in each other
MAX_DIGITS = 1000  # of an integer
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, some five times faster


def load_yaml(path: str | Path) -> list[Any]:
    """The documents of a YAML file (one, unless it is divided by ``---``).

    Raises:
        UserError: it is not plain YAML; says where.
    """
    text = read_text(path, MAX_BYTES, "a recipe")
    try:
        return parse_documents(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_documents(text: str) -> list[Any]:
    """Parse plain YAML, every document of it that is not empty.

    >>> parse_documents("{a: 1, b: [x, 0.5]}")
    [{'a': 1, 'b': ['x', 0.5]}]
    >>> parse_documents("a: !!python/object/apply:os.system [ls]")
    Traceback (most recent call last):
    jaxmerge.errors.UserError: line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' ...
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{len(text)} characters; a recipe has at most {MAX_BYTES}.")
    out = []
    try:
        _count(text)
        loader = LOADER(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                assert node is not None  # check_node said so
                _check(node, {}, ())
                content = loader.construct_document(node)
                if content is not None:
                    out.append(content)
        finally:
            loader.dispose()
    except UserError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"this is not YAML ({' '.join(str(error).split())[:200]}).") from None
    return out


def _count(text: str) -> None:
    """Raise where there are more values than a recipe has, before any of them is built."""
    values = depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        values += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if values > MAX_NODES:
            raise UserError(f"line {line}: more than {MAX_NODES:,} values.")
        if depth > MAX_DEPTH:
            raise UserError(f"line {line}: nested more than {MAX_DEPTH} levels deep.")


PLAIN = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "timestamp")
}


def _check(node: yaml.Node, sizes: dict[int, int], above: tuple[int, ...]) -> int:
    """The number of nodes with all aliases expanded; raises on tags, cycles and explosions."""
    line = f"line {node.start_mark.line + 1}"
    if id(node) in above:
        raise UserError(f"{line}: an alias that contains itself.")
    if id(node) in sizes:
        return sizes[id(node)]
    if node.tag not in PLAIN:
        raise UserError(f"{line}: the tag {node.tag!r} is refused; recipes are plain YAML.")
    if node.tag.endswith(":int") and len(str(node.value)) > MAX_DIGITS:
        raise UserError(f"{line}: a number of {len(str(node.value)):,} digits.")
    total, here = 1, (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{line}: a key must be a plain word.")
            if key.value in seen:
                raise UserError(f"line {key.start_mark.line + 1}: the key {key.value!r} twice.")
            seen.add(key.value)
            total += _check(key, sizes, here) + _check(value, sizes, here)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_check(value, sizes, here) for value in node.value)
    if total > MAX_NODES:
        raise UserError(f"{line}: its aliases expand to more than {MAX_NODES} values.")
    sizes[id(node)] = total
    return total


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
