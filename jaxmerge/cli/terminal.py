"""Where commands print their tables, and commands as one types them."""

from __future__ import annotations

import os
import shlex

from rich.console import Console

WIDE = 1000  # columns; a table takes no more of them than it needs


def console() -> Console:
    """The terminal; in a file or a pipe there is room for every name, so that `grep` finds it."""
    terminal = Console(markup=False)  # names of files may hold "[red]"
    wide = not terminal.is_terminal and "COLUMNS" not in os.environ
    return Console(width=WIDE, markup=False) if wide else terminal


def typed(command: str, *arguments: object, **options: object) -> str:
    """A command line: options that are None, False or empty are not given, lists are repeated.

    >>> typed("jaxmerge run", "my file.py", set=["lr=0.1", "tasks=2"], out=None, quiet=True)
    "jaxmerge run 'my file.py' --set lr=0.1 --set tasks=2 --quiet"
    """
    words = [*command.split(), *map(str, arguments)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            for one in value if isinstance(value, list | tuple) else (value,):
                words += [flag, str(one)]
    return shlex.join(words)
