"""Checkpoints of a stream: named arrays and a JSON record in one file, written atomically.

A file is complete or absent: it is written beside its place, flushed to the disk, then renamed.
A kill or a full disk leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmerge.core import names
from jaxmerge.errors import library_message, screen, writing
from jaxmerge.training import data_parallel

if TYPE_CHECKING:
    from jaxmerge.io.safetensors import File

RECORD = "record"
AGAIN = "delete it to begin again"


def save(path: str | Path, tree: Any, record: Any = None) -> None:
    """Write a pytree of arrays and a JSON-able record to `path` (safetensors), leaf by leaf.

    Memory: nothing on a CPU, where numpy reads the arrays in their place; else a copy on the host.

    Raises:
        OSError: the disk is full or the folder is not writable; an older file stays.
    """
    from jaxmerge.io.safetensors import save_file

    flat, _ = names.flatten(tree)
    arrays = {n: np.asarray(x) for n, x in flat.items()}
    if data_parallel.first():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file(Path(path), arrays, {RECORD: json.dumps(record)})


def load(
    path: str | Path,
    like: Any = None,
    place: Callable[[np.ndarray], Any] = np.asarray,
    again: str = AGAIN,
) -> tuple[Any, Any]:
    """Read ``(tree, record)``; with `like` in its structure, otherwise as a flat mapping.

    Args:
        path: of the file.
        like: what it holds: arrays, or their shapes and dtypes.
        place: what is made of a leaf as soon as it is read.
        again: what to do about a file that is damaged.

    Memory: what is read, and a leaf more where `place` copies.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is cut off or is no checkpoint, or leaves that do not fit `like`.
    """
    wanted = None if like is None else names.flatten(like)
    with _opened(path, like, again) as (file, noted):
        flat = {n: place(file[n]) for n in (file if wanted is None else wanted[0])}
        return (flat if wanted is None else wanted[1](flat)), noted


def record(path: str | Path, like: Any = None, again: str = AGAIN) -> Any:
    """The record of a checkpoint alone; no leaf is read, but they are compared with `like`.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    with _opened(path, like, again) as (_, noted):
        return noted


@contextlib.contextmanager
def _opened(path: str | Path, like: Any, again: str) -> Iterator[tuple[File, Any]]:
    """A checkpoint that is read, and its record."""
    from jaxmerge.io.safetensors import File

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint.")
    wrong = []
    try:
        with contextlib.closing(File(path)) as file:
            noted = json.loads(file.metadata[RECORD])
            wrong = [] if like is None else names.mismatches(names.flatten(like)[0], file.like)
            if not wrong:
                yield file, noted
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a complete checkpoint ({library_message(error)}); {again}."
        ) from None
    if wrong:
        lines = "\n  ".join(screen(wrong))
        raise ValueError(f"{path} is of another model or method:\n  {lines}")


def replace(path: str | Path, data: bytes | str) -> None:
    """Write a file so that it is either there as a whole or unchanged.

    In a distributed run the first process writes, the others do nothing.
    """
    if not data_parallel.first():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with writing(path), open(new, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
