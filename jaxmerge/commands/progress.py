"""Progress of training runs on standard error: steps done, images a second, time left."""

from __future__ import annotations

from typing import Any


class Bars:
    """One bar for a whole run; ``with Bars(quiet) as bars``.  Quiet bars draw nothing."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.progress: Any = None
        self.bar: Any = None
        self.prefix = ""

    def __enter__(self) -> Bars:
        if not self.quiet:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self.progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("steps"), TimeElapsedColumn(), TimeRemainingColumn(),
                console=Console(stderr=True),
            )  # fmt: skip
            self.progress.start()
            self.bar = self.progress.add_task("compiling", total=None)
        return self

    def __exit__(self, *_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()

    def total(self, steps: int) -> None:
        """How many steps there will be in all."""
        self._update(total=steps)

    def seed(self, number: int, of: int) -> None:
        """A new seed begins."""
        self.prefix = f"seed {number}/{of}"
        self.note("compiling" if number == 1 else "")

    def reach(self, steps: int) -> None:
        """So many steps are done by now, in this attempt or in an earlier one."""
        self._update(completed=steps)

    def step(self, stream: str, phase: str, steps: int, loss: float | None) -> None:
        """Steps were taken, or a phase of the stream was finished."""
        what = f"loss {loss:.3f}" if loss is not None else phase
        self._update(advance=steps, description=f"{self.prefix} {stream}: {what}")

    def note(self, text: str) -> None:
        """Say what is going on."""
        self._update(description=f"{self.prefix} {text}")

    def _update(self, **changes: Any) -> None:
        if self.progress is not None:
            self.progress.update(self.bar, **changes)
