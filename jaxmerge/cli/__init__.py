"""The command line: `command_line` parses, the other modules do what a command says."""

from jaxmerge.cli.command_line import app, main

__all__ = ["app", "main"]
