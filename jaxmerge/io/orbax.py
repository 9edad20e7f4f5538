"""An Orbax checkpoint as a lazy mapping: metadata first, then one leaf at a time."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxmerge.errors import UserError, library_message, writing
from jaxmerge.io.free_memory import refuse_too_large
from jaxmerge.io.orbax_failures import one_failure
from jaxmerge.io.safetensors import Like, Stamp, Whole
from jaxmerge.io.untrusted import read_bytes

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
        from jaxmerge.core.names import flatten

        super().__init__()
        folder = checkpoint_folder(Path(path))
        if folder is None:
            raise FileNotFoundError(f"{path} holds no Orbax checkpoint.")
        self.path, self._lock = folder.resolve(), threading.Lock()
        self.stamps = {p: Stamp.of(p) for p in self.path.rglob("*") if p.is_file()}
        for path in self.stamps:
            if path.suffix == ".json" or path.name in ("_METADATA", "_sharding"):
                read_bytes(path)  # no larger than what describes a checkpoint
        self._reader = _reader()
        try:
            with one_failure(logging.ERROR):
                metadata = self._reader.metadata(self.path)
            tree = getattr(getattr(metadata, "item_metadata", metadata), "tree", metadata)
            self._flat, self._rebuild = flatten(tree)
            self.like = {n: Like(tuple(m.shape), np.dtype(m.dtype)) for n, m in self._flat.items()}
        except Exception as error:
            raise _damaged(self.path, "its metadata", error) from None
        if not self.like:
            raise UserError(f"{self.path} describes no arrays: no Orbax checkpoint of a model.")

    def load(self, name: str) -> np.ndarray:
        import jax
        import orbax.checkpoint as ocp

        refuse_too_large(name, self.like[name], self.path)
        rest = {n: ocp.PLACEHOLDER for n in self.like}
        item = self._rebuild(rest | {name: self._flat[name]})
        restore_args = self._rebuild(rest | {name: ocp.RestoreArgs(restore_type=np.ndarray)})
        try:
            with self._lock, one_failure(logging.ERROR):
                tree = self._reader.restore(
                    self.path, args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args)
                )
            leaves = jax.tree.leaves(tree)
            leaf = np.asarray(next(x for x in leaves if x is not ocp.PLACEHOLDER))
        except Exception as error:
            raise _damaged(self.path, f"leaf {name!r}", error) from None
        like = self.like[name]
        if leaf.shape != like.shape or leaf.dtype != like.dtype:
            from jaxmerge.core.names import kind

            raise UserError(
                f"{self.path}: leaf {name!r} holds {kind(leaf)}, its metadata say "
                f"{kind(like)}; the checkpoint is damaged."
            )
        return leaf

    def nested(self, leaves: Mapping[str, Any]) -> Any:
        """Leaves of this checkpoint in the form that it has: nested as it was written."""
        return self._rebuild(leaves)

    def close(self) -> None:
        self._reader.close()


def _reader() -> Any:
    """Reads for this process alone: others read other leaves, and none waits for another."""
    import jax
    import orbax.checkpoint as ocp

    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"jaxmerge{me}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def nested(source: Any, leaves: Mapping[str, Any]) -> Any:
    """Leaves of a model as the tree that goes into an Orbax checkpoint.

    Those of an Orbax checkpoint get the form that they came in; other names are nested at "/",
    as Flax nests them, unless one name is the beginning of another.

    >>> nested(None, {"a/b": 1, "a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    >>> nested(None, {"a": 1, "a/c": 2})
    {'a': 1, 'a/c': 2}
    """
    if isinstance(source, Orbax) and set(source.like) == set(leaves):
        return source.nested(leaves)
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *outer, last = name.split("/")
        place: Any = tree
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                return dict(leaves)
        if last in place:
            return dict(leaves)
        place[last] = leaf
    return tree


@contextlib.contextmanager
def one_error(out: Path) -> Iterator[None]:
    """A checkpoint is written inside; a failure is the one exception that leaves the block.

    Raises:
        OSError: what the system said, of `out`, where TensorStore names its number.
        UserError: else, with the words of the library.
    """
    try:
        with writing(out), one_failure():
            yield
    except OSError:
        raise
    except Exception as error:
        message = f"{out} could not be written by Orbax ({library_message(error)})."
        raise UserError(message) from None


def _damaged(path: Path, what: str, error: Exception) -> UserError:
    return UserError(
        f"{path}: {what} cannot be read by Orbax ({library_message(error)}); it is damaged."
    )
