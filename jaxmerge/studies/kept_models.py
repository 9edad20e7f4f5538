"""Models that a sweep has trained, kept in its store for methods that are added later.

    STORE/models/<what was trained>/<task>.safetensors

What was trained is named by all that decides it: experiment, settings, stream, seed and order.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxmerge.core.types import Leaves
from jaxmerge.data.streams.scenario import Scenario
from jaxmerge.studies import cells
from jaxmerge.studies.conversion import to_plain
from jaxmerge.studies.finetuned import Finetuned
from jaxmerge.studies.seed import Plan

FOLDER = "models"


class Kept(Finetuned):
    """The models of one stream: all of them, or, while one is missing, none.

    A method may carry something from task to task that only training makes, so a stream is trained
    as a whole or not at all.
    """

    whole = True  # each as the hooks at its task's end left it

    def __init__(self, folder: Path, tasks: list[str]):
        super().__init__(folder)
        self.complete = all(self.file(task).exists() for task in tasks)

    def get(self, task: str, like: Leaves) -> Leaves | None:
        return super().get(task, like) if self.complete else None


def trained(experiment: Any, stream: str) -> str:
    """Names what a stream of an experiment with one seed trains."""
    recipe = to_plain(experiment)
    parts = [experiment.name, cells.settings_of(recipe, stream), stream]
    parts += [recipe.get("seed"), recipe.get("order")]
    return hashlib.sha256(json.dumps(to_plain(parts), sort_keys=True).encode()).hexdigest()[:16]


def kept(store: Path, experiment: Any, plan: Plan, scenario: Scenario) -> Kept | None:
    """The models of a plan; None where they are elsewhere or a method changes the network."""
    names = [task.name for task in scenario]
    if plan.models is not None or len(set(names)) < len(names):
        return None
    if any(m.build().wrap for m in plan.methods):
        return None
    return Kept(store / FOLDER / trained(experiment, plan.name), names)


def keep_all(place: Kept, models: Mapping[str, Leaves]) -> None:
    """Write models that were trained together."""
    for task, model in models.items():
        place.keep(task, model)


def room(store: Path, params: Leaves, scenario: Scenario, streams: int) -> bool:
    """Whether the models of one unit take less than a quarter of the disk that is free; says so
    where they do not.

    Args:
        params: of one model.
    """
    model = sum(math.prod(p.shape) * p.dtype.itemsize for p in params.values())
    need = streams * len(scenario) * model
    free = shutil.disk_usage(store).free
    if 4 * need <= free:
        return True
    print(
        f"The models of a unit would take {need / 1e9:.3g} of {free / 1e9:.3g} GB that are free in "
        f"{store}: they are not kept, and a method that is added later trains them again.",
        file=sys.stderr,
    )
    return False


def size(store: Path) -> int:
    """Bytes of all models that a store keeps."""
    files = (store / FOLDER).rglob("*.safetensors") if (store / FOLDER).is_dir() else ()
    return sum(p.stat().st_size for p in files)
