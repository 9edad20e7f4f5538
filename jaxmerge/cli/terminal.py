"""Where commands print their tables."""

from __future__ import annotations

import os

from rich.console import Console

WIDE = 1000  # columns; a table takes no more of them than it needs


def console() -> Console:
    """The terminal; in a file or a pipe there is room for every name, so that `grep` finds it."""
    terminal = Console(markup=False)  # names of files may hold "[red]"
    wide = not terminal.is_terminal and "COLUMNS" not in os.environ
    return Console(width=WIDE, markup=False) if wide else terminal
