"""Progress of training runs on standard error: steps, loss, examples a second, time left.

At a terminal a bar; where standard error is a file a line every half minute.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

LINE = 30.0  # seconds between lines
WINDOW = 60.0  # seconds over which speed is measured


class Bars:
    """One bar for a whole run; ``with Bars(quiet) as bars``.  Quiet bars draw nothing."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.bar: Any = None
        self.prefix = ""
        self.batch = 0  # examples a step
        self.done, self.steps = 0, 0
        self.speed = Speed()
        self._line = time.monotonic()

    def __enter__(self) -> Bars:
        if not self.quiet:
            from rich.console import Console

            console = Console(stderr=True)
            if console.is_terminal:
                self.bar = _bar(console)
                self.bar.start()
                self.bar.add_task("compiling", total=None, speed="", left="")
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def total(self, steps: int) -> None:
        """How many steps there will be in all."""
        self.steps = steps
        self._show(total=steps)

    def seed(self, number: int, of: int) -> None:
        """A new seed begins."""
        self.prefix = f"seed {number}/{of}"
        self._show(description=f"{self.prefix} compiling" if number == 1 else self.prefix)

    def reach(self, steps: int) -> None:
        """So many steps are done by now, in this attempt or in an earlier one."""
        self.done = steps
        self._show(completed=steps)

    def step(self, stream: str, phase: str, steps: int, value: float) -> None:
        """Steps were taken with a loss, or a deployment was evaluated with an accuracy."""
        self.done += steps
        if phase == "resumed":
            self._show(completed=self.done)
            return
        self.speed.add(steps)
        what = f"loss {value:.3f}" if phase == "training" else f"{phase} {100 * value:.1f} %"
        text = f"{self.prefix} {stream}: {what}"
        rate, left = self.speed(), self.speed.left(self.steps - self.done)
        speed = f"{rate * self.batch:,.0f} examples/s" if rate else ""
        self._show(completed=self.done, description=text, speed=speed, left=left)
        now = time.monotonic()
        if not self.quiet and self.bar is None and now - self._line >= LINE:
            self._line = now
            parts = [text, f"{self.done}/{self.steps} steps", speed, left]
            print(", ".join(p for p in parts if p), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Say what is going on."""
        self._show(description=f"{self.prefix} {text}")

    def _show(self, **changes: Any) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], **changes)


class Speed:
    """Steps a second of the last minute, evaluation and merging included."""

    def __init__(self):
        self.seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def add(self, steps: int) -> None:
        """Steps were taken just now."""
        now = time.monotonic()
        self.seen.append((now, self.seen[-1][1] + steps))
        while len(self.seen) > 2 and now - self.seen[0][0] > WINDOW:
            self.seen.popleft()

    def __call__(self) -> float:
        (first, before), (last, all_) = self.seen[0], self.seen[-1]
        return (all_ - before) / max(last - first, 1e-9)

    def left(self, steps: int) -> str:
        """ "1:05 left" for that many steps more; "" where nothing is known."""
        rate = self()
        if rate <= 0 or steps <= 0:
            return ""
        minutes, seconds = divmod(round(steps / rate), 60)
        hours, minutes = divmod(minutes, 60)
        whole = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
        return f"{whole}:{seconds:02d} left"


def _bar(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
        TextColumn("steps"), TextColumn("{task.fields[speed]}"), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"), console=console,
    )  # fmt: skip
