"""The command line: `command_line` parses, the other modules do what a command says."""

from jaxmerge.cli.command_line import main
from jaxmerge.cli.typer_app import app

__all__ = ["app", "main"]
