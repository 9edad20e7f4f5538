"""What is known of families: a table generated from the modules of transformers, and one by hand.

``families.json`` is written by `experiments/architecture_table.py`, which builds every architecture
of transformers on the meta device, changes its config key by key and notes which leaves come, go
and change their shape.  ``by_hand.json`` says what modules do not show.  Both are read when a model
is first asked about, and cost a merge a few milliseconds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple


class Known(NamedTuple):
    """What is known of one family.

    Attributes:
        stacks: container -> path of the count in the config, as "text_config.num_hidden_layers".
        others: containers whose numbers count something else (experts, sublayers, a sequence).
        roles: template -> role, where it is not what the rules say.
        ties: groups of templates that may hold one array.
        transposed: templates of kernels stored [in, out].
        early: templates before the layers besides tables; late: after them.
        grows: templates whose shape depends on the number of layers.
        frozen: templates of modules that the family never trains.
        multi_query: how a config says that all queries share keys, `flag` and its `default`; `keys`
            is then the number of heads of keys if the config does not say it, `unless` a flag with
            which none of this holds.  Fused leaves then hold queries, keys and values one behind
            the other, and otherwise by head.
        renames: prefix of names in the module -> prefix in a checkpoint, where they differ.
    """

    stacks: Mapping[str, str] = MappingProxyType({})
    others: tuple[str, ...] = ()
    roles: Mapping[str, str] = MappingProxyType({})
    ties: tuple[tuple[str, ...], ...] = ()
    transposed: tuple[str, ...] = ()
    early: tuple[str, ...] = ()
    grows: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    multi_query: Mapping[str, Any] = MappingProxyType({})
    renames: Mapping[str, str] = MappingProxyType({})


@functools.cache
def _tables() -> list[dict[str, Any]]:
    folder = resources.files("jaxmerge.io.architectures")
    out = []
    for name in ("families.json", "by_hand.json"):
        file = folder / name
        out.append(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})
    return out


@functools.cache
def known(model_type: str) -> Known | None:
    """What is known of a model type (config.json's ``model_type``), or None."""
    entries: dict[str, Any] = {}
    there = False
    for table in _tables():
        entry = table.get("families", {}).get(model_type)
        if entry is not None:
            there = True
            entry = table["entries"][entry] if isinstance(entry, int) else entry
            for key, value in entry.items():
                if isinstance(value, dict):
                    entries[key] = {**entries.get(key, {}), **value}
                else:
                    entries[key] = (*entries.get(key, ()), *map(_frozen, value))
    return Known(**entries) if there else None


def families() -> list[str]:
    """Every model type of the tables."""
    return sorted({name for table in _tables() for name in table.get("families", {})})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
