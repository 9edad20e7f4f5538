"""The largest difference from every golden file, written where JAXMERGE_ORACLES says."""

from __future__ import annotations

import atexit
import json
import os
from pathlib import Path

SYSTEMS: dict[str, dict[str, tuple[float, int]]] = {}  # system -> file -> largest, comparisons


def note(system: str, file: str, apart: float) -> float:
    """Take up one comparison with a file; the difference again."""
    files = SYSTEMS.setdefault(system, {})
    most, count = files.get(file, (0.0, 0))
    files[file] = max(most, float(apart)), count + 1
    return apart


def store() -> None:
    """Put what was compared into the file, beside what other tests compared before."""
    path = Path(os.environ["JAXMERGE_ORACLES"])
    known = json.loads(path.read_text())["systems"] if path.exists() else {}
    for system, files in SYSTEMS.items():
        known.setdefault(system, {}).update(files)
    command = "JAXMERGE_ORACLES=... pytest tests/test_golden_*.py"
    content = {"schema": "jaxmerge.oracles/1", "command": command, "systems": known}
    path.write_text(json.dumps(content, indent=1) + "\n")


if os.environ.get("JAXMERGE_ORACLES"):
    atexit.register(store)
