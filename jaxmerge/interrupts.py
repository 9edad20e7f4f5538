"""Ctrl-C while modules are imported: one line and exit code 130.

Nothing is begun then that could be kept, and compiled modules turn a KeyboardInterrupt into errors
of their own ("error while initializing the extension"), so the process ends at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Ctrl-C ends the process while modules are imported inside.

    A handler of somebody else's, and a process that is to ignore Ctrl-C, stay as they are.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    os.write(2, b"interrupted: nothing was begun or written\n")
    os._exit(130)
