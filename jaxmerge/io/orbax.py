"""An Orbax checkpoint as a lazy mapping: metadata first, then one leaf at a time."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import numpy as np

from jaxmerge.core import names
from jaxmerge.errors import UserError
from jaxmerge.io.safetensors import Like, Whole

ITEMS = ("default", "params")  # the first of several items of a step


def checkpoint_folder(path: Path) -> Path | None:
    """The folder that holds the arrays: the path, its only item, or that of its last step.

    Raises:
        UserError: a step has several items; names them.
    """
    if (path / "_METADATA").exists():
        return path
    if not path.is_dir():
        return None
    items = sorted(p.parent for p in path.glob("*/_METADATA"))
    usual = [p for p in items if p.name in ITEMS]
    if len(items) == 1 or len(usual) == 1:
        return (usual or items)[0]
    if items and not items[0].name.isdigit():
        raise UserError(f"{path} holds {len(items)} items; name one: {', '.join(map(str, items))}.")
    steps = [d for d in path.iterdir() if re.fullmatch(r"(\w+_)?\d+", d.name) and d.is_dir()]
    last = max(steps, key=lambda d: int(d.name.rpartition("_")[2]), default=None)
    return None if last is None else checkpoint_folder(last)


class Orbax(Whole):
    """The leaves of an Orbax checkpoint; names join the path with "/"."""

    def __init__(self, path: str | os.PathLike):
        import orbax.checkpoint as ocp

        super().__init__()
        folder = checkpoint_folder(Path(path))
        if folder is None:
            raise FileNotFoundError(f"{path} holds no Orbax checkpoint.")
        self.path, self._lock = folder.resolve(), threading.Lock()
        self._reader = ocp.PyTreeCheckpointer()
        found = self._reader.metadata(self.path)
        tree = getattr(getattr(found, "item_metadata", found), "tree", found)
        self._flat, self._rebuild = names.flatten(tree)
        self.like = {n: Like(tuple(m.shape), np.dtype(m.dtype)) for n, m in self._flat.items()}

    def load(self, name: str) -> np.ndarray:
        import jax
        import orbax.checkpoint as ocp

        rest = {n: ocp.PLACEHOLDER for n in self.like}
        item = self._rebuild(rest | {name: self._flat[name]})
        restore_args = self._rebuild(rest | {name: ocp.RestoreArgs(restore_type=np.ndarray)})
        with self._lock:
            tree = self._reader.restore(
                self.path, args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args)
            )
        leaves = jax.tree.leaves(tree)
        return np.asarray(next(x for x in leaves if x is not ocp.PLACEHOLDER))

    def close(self) -> None:
        self._reader.close()
