"""What commands share: the application, options that several take, how a command is declared.

Each command imports what it needs when it is called.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from jaxmerge.errors import UserError
from jaxmerge.interrupts import importing

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
AllowPickle = Annotated[
    bool, Option("--allow-pickle", help="Read tensors from .bin and .pt, restricted.")
]
Json = Annotated[bool, Option("--json", help="Print machine-readable JSON and nothing else.")]
Profile = Annotated[
    Path | None, Option(help="Write a trace of devices and host (jax.profiler) into this folder.")
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress bars.")]
Refs = Annotated[
    list[str],
    Argument(
        help="Folder, .safetensors or .gguf file, run folder, Orbax checkpoint, org/name@revision."
    ),
]


def _version(asked: bool) -> None:
    if asked:
        from jaxmerge import __version__

        print(f"jaxmerge {__version__}")
        raise typer.Exit


def command(module: str, name: str | None = None) -> Callable[[Callable], Callable]:
    """A command whose options are a function's signature; `run` of a module gets them.

    The module is imported when the command is called.  An option that is not given (None) takes the
    default of `run`.
    """

    def register(signature: Callable) -> Callable:
        @functools.wraps(signature)
        def call(**options: Any) -> None:
            run = _module(f"jaxmerge.cli.{module}").run
            given = {name: value for name, value in options.items() if value is not None}
            with profiled(given.pop("profile", None)):
                code = run(**given)
            raise typer.Exit(code if isinstance(code, int) else 0)

        return app.command(name)(call)

    return register


def _module(name: str) -> Any:
    """A module, imported without a look for garbage.

    JAX makes a million objects that stay, and to go through them again and again takes a third of
    the time of a short command: that is not done while they are made, nor later or at the end.
    """
    new = name not in sys.modules
    gc.disable()
    try:
        with importing():
            return importlib.import_module(name)
    finally:
        if new:
            gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)


@contextlib.contextmanager
def profiled(folder: Path | None) -> Iterator[None]:
    """Writes a trace of what runs inside into a folder; without one nothing."""
    if folder is None:
        yield
        return
    import jax

    folder.mkdir(parents=True, exist_ok=True)  # what cannot be one is refused before any work
    jax.profiler.start_trace(folder)
    try:
        yield
    finally:
        try:
            jax.profiler.stop_trace()
        except jax.errors.JaxRuntimeError as error:
            text = str(error).splitlines()[0][:160]
            raise UserError(f"--profile {folder}: no trace was written ({text}).") from None
    print(
        f"trace: {folder} (tensorboard --logdir {folder}, or its .trace.json.gz in "
        "https://ui.perfetto.dev)",
        file=sys.stderr,
    )


@app.callback()
def options(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Merge models, and learn task after task by merging, in JAX."""
