"""Key tables: our parameter names against those of a checkpoint, both directions.

An `Entry` says which of our leaves make up one tensor of a checkpoint and how: `same`, `dense`
(a torch linear weight `[out, in]`, transposed), `patch` (a convolution `[out, 3, h, w]`), `fused`
(several linear weights or biases one above the other, as query, key and value). `export` and
`absorb` run any table, so a layout is its table and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """One tensor of a checkpoint: its key, our leaves in order, the kind of the mapping."""

    key: str
    names: tuple[str, ...]
    kind: str


class Table:
    """A table while it is written; `entries` is the result."""

    def __init__(self):
        self.entries: list[Entry] = []

    def add(self, key: str, *names: str, kind: str = "same") -> None:
        """One tensor."""
        self.entries.append(Entry(key, names, kind))

    def norm(self, key: str, name: str) -> None:
        """A layer norm: weight and bias."""
        self.add(f"{key}.weight", f"{name}/scale")
        self.add(f"{key}.bias", f"{name}/bias")

    def dense(self, key: str, *names: str, bias: bool = True) -> None:
        """A torch linear layer, weight and bias; several of ours one above the other in it."""
        kernels = [f"{name}/kernel" for name in names]
        self.add(f"{key}.weight", *kernels, kind="dense" if len(names) == 1 else "fused")
        if bias:
            biases = [f"{name}/bias" for name in names]
            self.add(f"{key}.bias", *biases, kind="same" if len(names) == 1 else "fused")


def fits(params: Mapping, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises where parameters are not those of a config, name -> shape; all offenders at once.

    Raises:
      KeyError: parameters that are missing.
      ValueError: parameters that the config has not, or of another shape.
    """
    if missing := sorted(set(shapes) - set(params)):
        raise KeyError(f"these parameters are missing: {', '.join(missing)}")
    wrong = [f"{name}: not of this architecture" for name in sorted(set(params) - set(shapes))]
    wrong += [
        f"{name}: found {np.shape(params[name])}, expected {shape}"
        for name, shape in shapes.items()
        if np.shape(params[name]) != shape
    ]
    if wrong:
        raise ValueError(f"parameters that do not fit the config: {'; '.join(wrong)}")


def export(table: Iterable[Entry], params: Mapping) -> dict[str, np.ndarray]:
    """Our parameters in the layout of `table`; raises KeyError listing all that are missing."""
    table = list(table)
    names = {name for entry in table for name in entry.names}
    if missing := sorted(names - set(params)):
        raise KeyError(f"these parameters are missing: {', '.join(missing)}")
    return {
        entry.key: _to_theirs(entry.kind, [np.asarray(params[name]) for name in entry.names])
        for entry in table
    }


def absorb(
    table: Iterable[Entry],
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    ignore: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint under our names, in our layout, dtypes as they are.

    Args:
      table: the layout.
      tensors: key -> array, possibly lazy; every key must be in the table or in `ignore`.
      shapes: what the config says, name -> shape.
      ignore: keys that hold no parameter (position ids and other buffers).

    Raises:
      ValueError: keys missing, unexpected, or of another shape than the config says; all at once.
    """
    table = list(table)
    keys = {entry.key for entry in table}
    problems = []
    if missing := sorted(keys - set(tensors)):
        problems.append(f"missing: {_listed(missing)}")
    if unexpected := sorted(set(tensors) - keys - set(ignore)):
        problems.append(f"unexpected: {_listed(unexpected)}")
    leaves, wrong = {}, []
    for entry in table:
        if entry.key not in tensors:
            continue
        tensor = np.asarray(tensors[entry.key])
        ours = [shapes[name] for name in entry.names]
        expected = _their_shape(entry.kind, ours)
        if tensor.shape != expected:
            wrong.append(f"{entry.key}: found {tensor.shape}, expected {expected}")
            continue
        leaves |= zip(entry.names, _to_ours(entry.kind, tensor, ours), strict=True)
    if wrong:
        problems.append(f"of another shape than the config says: {_listed(wrong, '; ')}")
    if problems:
        raise ValueError(f"the checkpoint does not fit the config. {'. '.join(problems)}")
    return dict(sorted(leaves.items()))


def _listed(wrong: list[str], join: str = ", ", shown: int = 12) -> str:
    """All of them, or a screen's worth and how many more."""
    more = f"{join}and {len(wrong) - shown} more" if len(wrong) > shown else ""
    return join.join(wrong[:shown]) + more


def _to_theirs(kind: str, leaves: list[np.ndarray]) -> np.ndarray:
    if kind == "dense":
        return leaves[0].T
    if kind == "patch":
        return leaves[0].transpose(3, 2, 0, 1)
    if kind == "fused":
        return np.concatenate([leaf.T for leaf in leaves])
    return leaves[0]


def _to_ours(kind: str, tensor: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    if kind == "dense":
        return [tensor.T]
    if kind == "patch":
        return [tensor.transpose(2, 3, 1, 0)]
    if kind == "fused":
        rows = np.cumsum([shape[-1] for shape in shapes])[:-1]
        return [part.T for part in np.split(tensor, rows)]
    return [tensor]


def _their_shape(kind: str, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    if kind == "patch":
        height, width, channels, out = shapes[0]
        return (out, channels, height, width)
    if kind == "dense":
        return shapes[0][::-1]
    if kind == "fused":
        return (sum(shape[-1] for shape in shapes), *shapes[0][:-1])
    return shapes[0]
