"""A bar of bytes on standard error: bytes a second, time left; shown after two seconds."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

NAMES = {
    "measure": "measuring",
    "close": "closing",
    "merge": "merging",
    "read": "reading",
    "write": "writing",
}


class BytesBar:
    """``with BytesBar(quiet) as bar: bar(phase, done, total)``, from any thread."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet or not sys.stderr.isatty()
        self.began, self.lock = time.monotonic(), threading.Lock()
        self.progress: Any = None
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> BytesBar:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.progress is not None:
            self.progress.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self.quiet or time.monotonic() - self.began < 2:
            return
        with self.lock:
            if self.progress is None:
                from rich.console import Console
                from rich.progress import (
                    BarColumn,
                    DownloadColumn,
                    Progress,
                    TextColumn,
                    TimeRemainingColumn,
                    TransferSpeedColumn,
                )

                self.progress = Progress(
                    TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                    TransferSpeedColumn(), TimeRemainingColumn(), console=Console(stderr=True),
                )  # fmt: skip
                self.progress.start()
            if phase not in self.tasks:
                name = NAMES.get(phase, phase)
                self.tasks[phase] = self.progress.add_task(name, total=total)
            self.progress.update(self.tasks[phase], completed=done, total=max(done, total))
