"""``jaxmerge`` and ``python -m jaxmerge``: the command line."""

from jaxmerge.interrupts import importing


def main() -> None:
    """Entry point of the `jaxmerge` command."""
    with importing():
        from jaxmerge.cli import main as command_line
    command_line()


if __name__ == "__main__":
    main()
