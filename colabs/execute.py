"""Run notebooks from top to bottom and keep their outputs.

    python colabs/execute.py [NAME ...]        # all of them without a name; prints the seconds

Needs the extra `colabs`.  Times of cells and colours are not kept.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
COLOUR = re.compile("\x1b\\[[0-9;]*m")


def execute(path: Path) -> Any:
    """The notebook with fresh outputs, run by this Python in the folder of the notebooks."""
    import nbclient
    import nbformat

    commands = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": commands, "COLUMNS": "100"}
    where = {"metadata": {"path": str(FOLDER)}}
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=where, record_timing=False
    )
    client.execute(env=env)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = COLOUR.sub("", output["text"])
    return notebook


if __name__ == "__main__":
    import nbformat

    for name in sys.argv[1:] or sorted(p.stem for p in FOLDER.glob("*.ipynb")):
        path = FOLDER / f"{name}.ipynb"
        start = time.perf_counter()
        nbformat.write(execute(path), path)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
