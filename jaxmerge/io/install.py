"""A finished folder put in the place of an output: in one step, whole or not at all.

    out/            the output, the old one until the new one is complete
    .out.partial/   the new one while it is being written
    .out.old        the old one on its way out

A process that is killed at any moment leaves a whole output, the old one or the new one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from jaxmerge.errors import UserError
from jaxmerge.io.places import delete


def partial_folder(out: Path) -> Path:
    """Where an output is while it is being written."""
    return out.parent / f".{out.name}.partial"


def old_folder(out: Path) -> Path:
    """Where an output that is replaced goes before it is deleted."""
    return out.parent / f".{out.name}.old"


def install(folder: Path, out: Path, force: bool) -> None:
    """Put a folder that is complete in the place of an output; an older one is there until then.

    Raises:
        UserError: something is there, without `force`.
    """
    old = old_folder(out)
    delete(old)
    if not os.path.lexists(out):
        os.rename(folder, out)
    elif not force and occupied(out):
        raise UserError(f"{out} appeared meanwhile; --resume --force replaces it.")
    elif _exchange(folder, out):
        os.rename(folder, old)
    else:  # for a moment there is no output; both are whole
        os.rename(out, old)
        os.rename(folder, out)
    _fsync(out.parent)
    delete(old)


def occupied(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return any(path.iterdir())
    return os.path.lexists(path)


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot (it is Linux's)."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and not rename(here, os.fsencode(a), here, os.fsencode(b), swap)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def keep_apart(out: str | os.PathLike, inputs: Iterable[str | os.PathLike]) -> None:
    """Raise if an input lies where the output, or what is written and deleted on the way, goes."""
    where = Path(os.path.abspath(out))
    places = [where, partial_folder(where), old_folder(where)]
    for path in inputs:
        for place in places:
            named = Path(os.path.abspath(path)).is_relative_to(place)
            if named or Path(path).resolve().is_relative_to(place.resolve()):
                raise UserError(
                    f"{place} would take the place of an input, {path}; write elsewhere."
                    if place == where
                    else f"an input, {path}, lies in {place}, which writing {where} deletes; move "
                    "it, or write elsewhere."
                )
