"""A family of checkpoints of random weights, for merge_files.py where no real one lies.

    python experiments/bench/family.py FOLDER              # base, ft0 .. ft3: 86M parameters each
    python experiments/bench/family.py FOLDER --blocks 1   # 8M, to try it out

The leaves of a ViT-B/16 in bfloat16; every fine-tune is the base and a task vector of 1 % of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from merge_memory import BLOCKS, draw, shapes
from safetensors.numpy import save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=BLOCKS, choices=range(1, BLOCKS + 1))
    parser.add_argument("--models", type=int, default=4)
    given = parser.parse_args()
    like = shapes(given.blocks)
    base = draw(0, like)
    family = {"base": base}
    family |= {f"ft{t}": draw(1 + t, like, base) for t in range(given.models)}
    for name, weights in family.items():
        folder = given.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        stored = {n: np.asarray(x.astype(jnp.bfloat16)) for n, x in weights.items()}
        save_file(stored, folder / "model.safetensors")
        (folder / "config.json").write_text("{}\n")


if __name__ == "__main__":
    main()
