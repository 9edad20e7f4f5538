"""A folder of fine-tuned models, one a task: those at hand are merged, the others trained and kept.

Merging needs models, not their training: several orders of the same tasks, or several merges, share
one folder, and published checkpoints are put into it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxmerge.core.types import Leaves
from jaxmerge.training import checkpoint


class Finetuned:
    """``FOLDER/<task>.safetensors`` by leaf name, or ``FOLDER/<task>/``, read by `read`.

    Args:
        folder: made when the first model is kept.
        read: folder of one model -> its leaves by name; None where only files are read.
    """

    whole = False  # fine-tuned elsewhere: the hooks at a task's borders are to be called

    def __init__(self, folder: str | Path, read: Callable[[Path], Leaves] | None = None):
        self.folder, self.read = Path(folder), read

    def get(self, task: str, like: Leaves) -> Leaves | None:
        """The model of a task, or None where there is none.

        Args:
            like: theta_0, whose leaves it must have.

        Raises:
            ValueError: a model with other leaves or shapes.
        """
        place = self.folder / _name(task)
        file = self.file(task)
        if place.is_dir() and self.read is not None:
            model = self.read(place)
        elif file.exists():
            place, model = file, checkpoint.load(file)[0]
        else:
            return None
        wrong = [n for n in like if n not in model or np.shape(model[n]) != np.shape(like[n])]
        if wrong:
            raise ValueError(
                f"{place} is no fine-tuned model of this one: {len(wrong)} of {len(like)} leaves "
                f"are missing or of another shape, such as {wrong[0]}."
            )
        return {n: model[n] for n in like}

    def keep(self, task: str, model: Leaves) -> None:
        """Write the model of a task."""
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.file(task), dict(model))

    def file(self, task: str) -> Path:
        """Where the model of a task is kept."""
        return self.folder / f"{_name(task)}.safetensors"


def _name(task: str) -> str:
    return task.replace("/", "-")
