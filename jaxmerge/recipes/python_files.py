"""Python files of recipes: one that is a recipe, and those that a YAML recipe imports.

They are run, so nobody should run those of others: a YAML recipe may import only what lies beside
it, and only where the caller allows it.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from jaxmerge.errors import UserError


def variables(path: Path) -> dict[str, Any]:
    """The variables that a Python file sets; its folder is on the path, as of any script.

    Raises:
        UserError: what goes wrong in it, with its line.
    """
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return runpy.run_path(str(path))
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f.lineno for f in frames if f.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else own[-1] if own else 0
        reason = error.msg if isinstance(error, SyntaxError) else str(error).split("\n")[0]
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {reason}") from error


def run_imported(recipe: Path, names: Any, allowed: bool) -> None:
    """Runs the Python files that a YAML recipe imports, so that what they register is known."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{recipe}: import is a file or a list of files, got {names!r}.")
    folder = recipe.resolve().parent
    files = [(folder / name).resolve() for name in names]
    wrong = [
        name
        for name, file in zip(names, files, strict=True)
        if file.suffix != ".py" or not file.is_relative_to(folder)
    ]
    if wrong:
        raise UserError(
            f"{recipe} imports {', '.join(map(repr, wrong))}; expected Python files beside the "
            "recipe."
        )
    if missing := [n for n, f in zip(names, files, strict=True) if not f.is_file()]:
        raise UserError(f"{recipe} imports {', '.join(missing)}, which is not beside it.")
    if not allowed:
        raise UserError(
            f"{recipe} imports {', '.join(names)}, whose code would be run. Read it, then add "
            "--allow-import (in Python: allow_import=True)."
        )
    for file in files:
        variables(file)
