"""Plain YAML: it can neither build objects nor explode.

Only plain YAML is read (mappings, lists, strings, numbers, booleans).  Tags that would build Python
objects, keys written twice, aliases whose expansion exceeds a bound and documents over a megabyte
are refused, each with the line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from jaxmerge.errors import UserError
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
