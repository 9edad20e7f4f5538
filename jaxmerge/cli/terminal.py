"""Where commands print their tables."""

from __future__ import annotations

import os

from rich.console import Console

WIDE = 1000  # columns; a table takes no more of them than it needs


def console() -> Console:
    """The terminal; in a file or a pipe there is room for every name, so that `grep` finds it."""
    terminal = Console()
    return terminal if terminal.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE)
