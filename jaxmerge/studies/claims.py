"""Who trains what, where several processes fill one store: a unit of a sweep is claimed by a lock.

The lock is of the training (experiment, settings, seed, order), so that sweeps with other merges of
the same models wait for them too instead of training them again.  It goes with the process that
holds it; what is claimed on another machine that has gone is freed by deleting the file.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from jaxmerge.io.places import Lock, Occupied
from jaxmerge.studies import result_store
from jaxmerge.studies.kept_models import trained
from jaxmerge.studies.sweep import Unit

STATE = "state"


class Claims:
    """What this process has claimed in a store.

    Args:
        store: the folder.

    Attributes:
        reason: who has the unit that was asked for last and is not free.
    """

    def __init__(self, store: Path):
        self.store, self.locks, self.reason = store, {}, ""
        self._read: dict[Path, set[str]] = {}

    def take(self, unit: Unit) -> bool:
        """Claim a unit; False where another process has it."""
        path = self._path(unit)
        if path in self.locks:
            return True
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.locks[path] = Lock(path, self.store)
                return True
            except FileNotFoundError:  # another process was tidying up
                continue
            except Occupied as error:
                self.reason = str(error)
                return False

    def release(self, units: Sequence[Unit]) -> None:
        """Give units back, done or not."""
        for path in {self._path(unit) for unit in units}:
            if path in self.locks:
                self.locks.pop(path).release()

    def done(self) -> set[str]:
        """The keys of the cells that the store holds now."""
        for path in self.store.glob("*.parquet"):
            if path not in self._read:
                self._read[path] = {row["key"] for row in result_store.read(path)}
        return set().union(*self._read.values())

    def tidy(self) -> None:
        """Remove what interrupted units left, unless somebody is at work."""
        for path in (self.store / STATE).glob(".*.lock"):
            try:
                Lock(path, self.store).release()
            except Occupied:
                return
        shutil.rmtree(self.store / STATE, ignore_errors=True)

    def _path(self, unit: Unit) -> Path:
        return self.store / STATE / f".{trained(unit.experiment, '')}.lock"

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        for path in list(self.locks):
            self.locks.pop(path).release()
