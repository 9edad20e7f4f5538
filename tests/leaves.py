"""Models with leaves of many shapes, in memory and in safetensors files."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

from jaxmerge.io.safetensors import File

SHAPES = {
    "embed": (60, 20), "layers.0.w": (33, 40), "layers.0.b": (33,), "layers.1.w": (33, 40),
    "scalar": (), "empty": (0, 3), "ids": (5,),
}  # fmt: skip


def family(dtype=np.float32, models=3, shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    base = {n: np.asarray(rng.normal(size=s) * 0.1).astype(dtype) for n, s in shapes.items()}
    base["ids"] = np.arange(5)
    out = [base]
    for _ in range(models):
        more = {n: np.asarray(rng.normal(size=s) * 0.01) for n, s in shapes.items()}
        model = {
            n: np.asarray(base[n].astype(np.float64) + more[n]).astype(base[n].dtype)
            for n in shapes
        }
        out.append(model | {"ids": base["ids"]})
    return out


def saved(folder, models):
    for i, model in enumerate(models):
        save_file(model, folder / f"m{i}.safetensors")
    return [File(folder / f"m{i}.safetensors") for i in range(len(models))]
