"""Where the curves of a run go beside the terminal: TensorBoard, Weights & Biases, or nowhere.

A `Log` takes named numbers at a step; `opened` makes one by name.  Both packages are optional and
imported when they are asked for.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxmerge.errors import UserError, closest

LOGS = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # name, also of the extra -> package


class Log(Protocol):
    """Where numbers go.

    >>> class Printed:
    ...     def scalars(self, values, step):
    ...         print(step, dict(values))
    ...
    ...     def close(self): ...
    >>> log: Log = Printed()
    >>> log.scalars({"loss": 0.5}, step=1)
    1 {'loss': 0.5}
    """

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Named numbers after so many training steps of the whole run.

        Args:
            values: name -> number.
            step: training steps of the whole run so far.
        """
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def opened(name: str, folder: Path, settings: Mapping[str, Any]) -> Log:
    """A log by name.

    Args:
        folder: of the run.
        name: "tensorboard" (event files in ``folder/tensorboard``) or "wandb" (a run named as the
            folder; WANDB_PROJECT, WANDB_MODE=offline and the like are read by wandb itself).
        settings: of the experiment, shown beside the curves.

    Raises:
        UserError: an unknown name, or its package is not installed.

    >>> opened("tensorbord", Path("run"), {})
    Traceback (most recent call last):
    jaxmerge.errors.UserError: No log 'tensorbord': did you mean tensorboard?
    """
    module = package(name)
    return (_TensorBoard if name == "tensorboard" else _Wandb)(module, folder, settings)


def package(name: str) -> Any:
    """The module behind a log.

    Raises:
        UserError: an unknown name, or the package is not installed.
    """
    if name not in LOGS:
        raise UserError(f"No log {name!r}: {closest(name, LOGS)}")
    try:
        return importlib.import_module(LOGS[name])
    except ImportError:
        raise UserError(
            f'--log {name} needs {LOGS[name]}: pip install "jaxmerge[{name}]".'
        ) from None


class _TensorBoard:
    def __init__(self, module: Any, folder: Path, settings: Mapping[str, Any]):
        self.writer = module.SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, module: Any, folder: Path, settings: Mapping[str, Any]):
        self.run = module.init(
            project=None, name=folder.name, id=folder.name, resume="allow", dir=str(folder),
            config=dict(settings),
        )  # fmt: skip

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class Curves:
    """Losses and accuracies of a run, logged; nothing is done where `name` is None.

    ``with Curves(name, folder, settings) as curves``; `step` is a watch of `run_seed`.
    """

    def __init__(self, name: str | None, folder: Path, settings: Mapping[str, Any]):
        self.log = None if name is None else opened(name, folder, settings)
        self.batch = 0  # examples a step
        self.prefix, self.steps = "", 0
        self.last = time.monotonic()

    def __enter__(self) -> Curves:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.log is not None:
            self.log.close()

    def seed(self, seed: int, steps: int) -> None:
        """A seed begins after so many steps of the whole run."""
        self.prefix, self.steps = f"seed {seed}/", steps

    def step(self, stream: str, phase: str, steps: int, value: float) -> None:
        """Steps were taken with a loss, or a deployment was evaluated with an accuracy."""
        self.steps += steps
        now = time.monotonic()
        seconds, self.last = max(now - self.last, 1e-9), now
        if self.log is None or phase == "resumed":
            return
        where = f"{self.prefix}{stream}"
        values = {f"{where}/{phase} accuracy": value}
        if phase == "training":
            speed = steps * self.batch / seconds
            values = {f"{where}/loss": value, f"{where}/examples a second": speed}
        self.log.scalars(values, self.steps)
