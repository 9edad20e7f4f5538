"""Checkpoints in the middle of a task: weights, optimiser, position in the data, losses so far.

A task that takes hours is not begun again after a kill: every so many seconds the training state is
written by Orbax, which writes beside the last good checkpoint and renames when all is on the disk,
and each process of a distributed run writes its own shards.  The position in the data is the number
of steps, because batches depend on seed, task and step only; so a run that goes on ends with the
same figures, bit for bit on the same machine.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import jax

from jaxmerge.errors import library_message
from jaxmerge.io.orbax_failures import one_failure
from jaxmerge.training import data_parallel

EVERY = 60.0  # seconds


class Halfway:
    """The checkpoint of one task that is being learnt.

    Args:
        folder: of this task alone; it is gone when the task is done.
        every: seconds between checkpoints; 0 after every chunk of steps.
    """

    def __init__(self, folder: str | Path, every: float = EVERY):
        self.folder, self.every = Path(folder).absolute(), every
        self.last = self.began = time.monotonic()
        self.before = 0.0  # seconds of training in earlier attempts
        self._manager: Any = None

    def due(self) -> bool:
        """Whether it is time to save; the same answer in every process of a distributed run."""
        return data_parallel.agreed(time.monotonic() - self.last >= self.every)

    def save(self, state: Any, losses: list[float]) -> None:
        """Write the state after ``len(losses)`` steps.

        Raises:
            OSError: the disk is full; the checkpoint before this one stays.
        """
        import orbax.checkpoint as ocp

        record = {"losses": losses, "seconds": self.before + time.monotonic() - self.began}
        parts = ocp.args.Composite(
            state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
        )
        manager = self._open()
        try:
            with one_failure():
                manager.save(len(losses), args=parts)
                manager.wait_until_finished()
        except ValueError as error:  # so tensorstore reports what the disk refuses
            for left in self.folder.glob("*.orbax-checkpoint-tmp"):  # what it takes is needed
                shutil.rmtree(left, ignore_errors=True)
            why = "No space left on device" if "No space left" in str(error) else str(error)
            raise OSError(f"{self.folder}: {why}; the checkpoint before stays.") from None
        self.last = time.monotonic()

    def load(self, like: Any) -> tuple[Any, list[float]] | None:
        """The last state in the form and on the devices of `like`, and its losses; None if none.

        Raises:
            ValueError: a state of another model or training.
        """
        if not self.folder.exists():
            return None
        import orbax.checkpoint as ocp

        parts = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)),
            record=ocp.args.JsonRestore(),
        )
        try:
            manager = self._open()
            step = manager.latest_step()
            if step is None:
                return None
            with one_failure():
                restored = manager.restore(step, args=parts)
            record = restored["record"]
            self.before = float(record["seconds"])
            losses = [float(x) for x in record["losses"]]
        except OSError:
            raise
        except Exception as error:  # whatever Orbax says of files that are not its own
            raise ValueError(
                f"{self.folder} holds a state of another model or training, or a damaged one "
                f"({library_message(error)}); delete it to start the task again."
            ) from None
        return restored["state"], losses

    def clear(self) -> None:
        """The task is done: remove its checkpoint."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            options = ocp.CheckpointManagerOptions(
                max_to_keep=1, create=True, cleanup_tmp_directories=True
            )
            with one_failure():  # what a kill left half written is cleaned up, and not worth a word
                self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager
