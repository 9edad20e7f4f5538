"""The command line: all commands, and how their errors are shown.

What a user can mend (a wrong path, an unknown method, a broken file) ends with one line on standard
error and exit code 2; `JAXMERGE_TRACEBACK=1` shows where it came from.  Ctrl-C ends with 130.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Protocol, runtime_checkable

import typer

from jaxmerge.cli import experiment_commands, model_commands
from jaxmerge.cli.typer_app import app
from jaxmerge.errors import message
from jaxmerge.io.untrusted import printable

COMMANDS = (experiment_commands, model_commands)  # in the order of the help


def main() -> None:
    """Parse, do, explain what went wrong, exit."""
    # a cache that cannot be read or written is no matter of the user's
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    warnings.formatwarning = lambda text, *where, **line: f"warning: {printable(text)}\n"
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


@runtime_checkable
class _Usage(Protocol):
    """A usage error of the parser, whichever package of typer's it comes from."""

    exit_code: int

    def show(self) -> None: ...


def _explain(error: Exception) -> int:
    if isinstance(error, _Usage):
        error.show()
        return error.exit_code
    if os.environ.get("JAXMERGE_TRACEBACK") or not isinstance(
        error, ValueError | TypeError | KeyError | OSError | ImportError | MemoryError
    ):
        raise error
    if isinstance(error, MemoryError):
        more = f" ({printable(error)})" if str(error) else ""
        print(f"error: there is not enough memory{more}.", file=sys.stderr)
        return 2
    print(f"error: {printable(message(error))}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
