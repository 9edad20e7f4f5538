"""Damage to a sound input, drawn by a seed: bits, lengths, numbers, and values of JSON and YAML."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from typing import Any

import yaml

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, "", "x", "../x",
    "/etc/passwd", "a\x1b[2Jb", "\x00", "é" * 50, "a" * 5000, [], {}, [[]], [None], {"": 0},
    {"a": {"b": []}}, [1] * 300, "([a-z.0-9_]+)+Z", float("inf"), "NaN", "model", 7, 3.5,
]  # fmt: skip


INTS = (0, 1, 127, 128, 255, 256, 2**15, 2**31 - 1, 2**32 - 1)


def damage(data: bytes, name: str, rng: random.Random) -> bytes:
    """Some damage to a file: to its structure where it can be parsed, else to bytes."""
    if name.endswith((".json", "_METADATA")) and rng.random() < 0.75:
        with contextlib.suppress(ValueError):
            tree = json.loads(data)
            for _ in range(rng.choice((1, 1, 2, 4))):
                tree = bend(tree, rng)
            return json.dumps(tree).encode(errors="surrogatepass")
    if name.endswith(".yaml") and rng.random() < 0.75:
        tree = yaml.safe_load(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            tree = bend(tree, rng)
        with contextlib.suppress(yaml.YAMLError):
            return yaml.safe_dump(tree).encode(errors="surrogatepass")
    if name.endswith(".safetensors") and rng.random() < 0.6:
        return bend_header(data, rng)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        out = bend_bytes(out, rng)
    return bytes(out)


def bend(tree: Any, rng: random.Random) -> Any:
    """One value of a tree replaced, removed, doubled or renamed."""
    places = [((), tree)]
    for path, value in places:
        if isinstance(value, dict):
            places += [((*path, k), v) for k, v in value.items()]
        elif isinstance(value, list):
            places += [((*path, i), v) for i, v in enumerate(value[:20])]
    path, _ = rng.choice(places)
    if not path:
        return odd(rng) if rng.random() < 0.2 else tree
    parent = tree
    for k in path[:-1]:
        parent = parent[k]
    how, last = rng.random(), path[-1]
    if how < 0.15:
        del parent[last]
    elif how < 0.25 and isinstance(parent, dict):
        parent[str(odd(rng))[:100]] = parent.pop(last)
    elif how < 0.35 and isinstance(parent, list):
        parent.append(parent[last])
    elif how < 0.5 and isinstance(parent[last], int | float):
        parent[last] = parent[last] + rng.choice((-1, 1, 1000, -(10**9)))
    else:
        parent[last] = odd(rng)
    return tree


def odd(rng: random.Random) -> Any:
    """One of `ODD`, as an object of its own: damage may go on inside it."""
    return copy.deepcopy(rng.choice(ODD))


def bend_header(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    tree = bend(json.loads(data[8 : 8 + length]), rng)
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def bend_bytes(data: bytearray, rng: random.Random) -> bytearray:
    if not data:
        return bytearray(rng.randbytes(8))
    at, how = rng.randrange(len(data)), rng.randrange(7)
    if how == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif how == 1:
        data[at] = rng.randrange(256)
    elif how == 2:
        del data[at:]
    elif how == 3:
        del data[at : at + rng.choice((1, 4, 64))]
    elif how == 4:
        data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
    elif how == 5:
        width = rng.choice((1, 2, 4, 8))
        data[at : at + width] = rng.choice(INTS).to_bytes(8, "little")[:width]
    else:
        other = rng.randrange(len(data))
        data[at : at + 16] = data[other : other + 16]
    return data
