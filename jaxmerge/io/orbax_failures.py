"""One failure of Orbax is one exception, and nothing else is printed.

Where one of several leaves cannot be read or written, Orbax logs the trace of its thread, closes
its event loop and raises, while TensorStore is still at the other leaves.  Each of those ends in a
callback to the closed loop or in a coroutine that nobody awaits, and Python prints a trace or a
warning for every one, until the process ends.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

LATE = "Event loop is closed"
UNAWAITED = r"coroutine '\w+Handler\.\w+' was never awaited"


@contextlib.contextmanager
def one_failure(level: int = logging.CRITICAL) -> Iterator[None]:
    """Orbax reads or writes inside; it logs nothing below `level`, and a failure is the exception
    that leaves the block.  What comes late of it is not printed; everything else is.

    Args:
        level: of `logging`.
    """
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(level)
    _ignore_late()
    try:
        yield
    except Exception:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the other leaves fail, too
        raise
    finally:
        log.setLevel(before)


def _ignore_late() -> None:
    warnings.filterwarnings("ignore", UNAWAITED, RuntimeWarning)
    if not isinstance(sys.unraisablehook, _WithoutLate):
        sys.unraisablehook = _WithoutLate(sys.unraisablehook)


class _WithoutLate:
    """The hook that was there, of all but callbacks to a closed loop."""

    def __init__(self, shown: Callable[[Any], Any]):
        self.shown = shown

    def __call__(self, late: Any) -> None:
        if str(late.exc_value) != LATE:
            self.shown(late)
