"""``jaxmerge`` and ``python -m jaxmerge``: the command line."""

import gc

from jaxmerge.interrupts import importing


def main() -> None:
    """Entry point of the `jaxmerge` command."""
    gc.disable()  # until the modules of the command are there, see `jaxmerge.cli.typer_app`
    with importing():
        from jaxmerge.cli import main as command_line
    command_line()


if __name__ == "__main__":
    main()
