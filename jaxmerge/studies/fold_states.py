"""The states of a stream's folds: in memory, or one file each beside the checkpoint.

With a folder none is held while a task is learnt and one while its merge is evaluated: a dozen take
more than the training.  A task's files are new ones; those of the task before are removed once the
checkpoint is written that belongs to them, so that a kill at any moment leaves a whole set.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxmerge.continual.deploys import Deploy
from jaxmerge.core.types import Leaves, Slots
from jaxmerge.drivers import memory
from jaxmerge.drivers.memory import MergeState
from jaxmerge.training import checkpoint, data_parallel

FOLDER = "folds"


class FoldStates:
    """``states[label]`` is the state of a fold: made, held, or read from its file.

    Args:
        folds: what is folded.
        base: theta_0 as merges see it.
        key: fold -> its key, or None.
        store: folder of the checkpoint; None: all states stay in memory.

    Reading raises ValueError for a file that is gone, damaged or another fold's.
    """

    def __init__(
        self, folds: Sequence[Deploy], base: Leaves, key: Callable[[Deploy], Any],
        store: Path | None,
    ):  # fmt: skip
        self._folds = {fold.label: fold for fold in folds}
        self._base, self._key = base, key
        self._folder = None if store is None else store / FOLDER
        self._held: dict[str, MergeState] = {}
        self._models = dict.fromkeys(self._folds, 0)  # in the state of each
        self._unwritten: dict[str, OSError] = {}

    def __getitem__(self, label: str) -> MergeState:
        fold = self._folds[label]
        if label in self._held:
            return self._held[label]
        if not self._models[label]:
            return memory.init(fold.merge(), self._base, key=self._key(fold))
        form = self._form(fold)
        tree = self._read(label, {"step": form.step, "cells": form.cells})
        return dataclasses.replace(form, key=self._key(fold), **tree)

    def update(self, label: str, model: Leaves) -> None:
        """Fold a model; the new state is held."""
        self.release()
        fold = self._folds[label]
        self._held[label] = memory.update(fold.merge(), self[label], self._base, model)
        self._models[label] += 1

    def write(self, label: str) -> None:
        """Write a held state to the disk, if there is a folder, and let go of the others.

        One that cannot be written stays in memory; `check_written` says so.
        """
        if self._folder is None:
            return
        state, failed = self._held[label], None
        try:
            tree = {"step": state.step, "cells": state.cells}
            checkpoint.save(self._path(label), tree, label)
        except OSError as error:
            failed = error.with_traceback(None)  # which would hold the state
        if not data_parallel.agreed(failed is None):
            self._unwritten[label] = failed or OSError(f"{self._path(label)} was not written.")
            return
        self._unwritten.pop(label, None)
        self.release()
        self._held[label] = state

    def release(self) -> None:
        """Hold none of those that are on the disk."""
        if self._folder is not None:
            self._held = {k: s for k, s in self._held.items() if k in self._unwritten}

    def check_written(self) -> None:
        """Raise OSError if a state could not be written."""
        for error in self._unwritten.values():
            raise OSError(*error.args, *[error.filename] * (error.filename is not None))

    def commit(self) -> None:
        """Remove the files of other tasks: the checkpoint is of these."""
        if self._folder is None or not self._folder.is_dir() or not data_parallel.first():
            return
        own = {self._path(label) for label in self._folds}
        for path in self._folder.iterdir():
            if path not in own:
                path.unlink(missing_ok=True)

    def restore(self, models: int) -> None:
        """Begin where the files are of so many models.

        Raises:
            ValueError: one that is gone, damaged, or of another fold.
        """
        self._held, self._models = {}, dict.fromkeys(self._folds, models)
        for label, fold in self._folds.items() if models else ():
            form = self._form(fold)
            self._read(label, {"step": form.step, "cells": form.cells}, compare=True)

    def _read(self, label: str, like: Any, compare: bool = False) -> Any:
        """What the file of a fold holds, in the structure of `like`, or only whether it fits."""
        assert self._folder is not None  # where there is none all are held
        path, again = self._path(label), f"delete {self._folder.parent} to begin again"
        try:
            if compare:
                tree, whose = None, checkpoint.record(path, like, again)
            else:
                tree, whose = checkpoint.load(path, like, jnp.asarray, again)
        except FileNotFoundError:
            raise ValueError(
                f"{path} is gone: another run has written into this folder, or it was cleared; "
                f"{again}."
            ) from None
        if whose != label:
            raise ValueError(f"{path} is of {whose!r}, not of {label!r}; {again}.")
        return tree

    def _path(self, label: str) -> Path:
        assert self._folder is not None
        name = hashlib.sha256(label.encode()).hexdigest()[:16]
        return self._folder / f"{self._models[label]:02d}_{name}.safetensors"

    def _form(self, fold: Deploy) -> MergeState:
        """The form of the state now, of shapes and dtypes."""
        models = self._models[fold.label]
        start = lambda base: memory.init(fold.merge(), base, key=self._key(fold), models=models)
        state = jax.eval_shape(start, dict(self._base))
        rows = lambda c: isinstance(c, Slots)
        plain = lambda c: tuple(c) if rows(c) else c  # a stream's states grow with every model
        return dataclasses.replace(state, cells=jax.tree.map(plain, state.cells, is_leaf=rows))
