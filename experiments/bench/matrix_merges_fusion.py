"""FusionBench's side of matrix_merges.py: merges the same models by its public classes.

Run by that script with the interpreter given as --peer-python; imports neither jax nor jaxmerge.
Reads a JSON job from stdin, writes a JSON line for every method to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":  # --help is answered before torch is looked for
    argparse.ArgumentParser(description=__doc__).parse_args()

import numpy as np
import torch
from transformers.models.clip import modeling_clip

for part in ("Vision", "Text"):  # names that this version of FusionBench imports
    if not hasattr(modeling_clip, f"CLIP{part}Transformer"):
        setattr(modeling_clip, f"CLIP{part}Transformer", getattr(modeling_clip, f"CLIP{part}Model"))

sys.path.insert(0, str(Path(__file__).parent))
from matrix_weights import draw, kernels  # noqa: E402

WITHOUT_FILES = {"shuffle_order": False, "save_on_every_step": False}


def algorithm(name: str, steps: int):
    """The class with the settings that jaxmerge's method of this name has."""
    from fusion_bench import method

    if name == "opcm":
        from fusion_bench.method.opcm.opcm_general import OPCM

        return OPCM(alpha=0.5, **WITHOUT_FILES)
    if name == "dop":
        from fusion_bench.method.dop.dop_general import DOPMerging

        return DOPMerging(
            lr=1e-4, num_steps=steps, ema_beta=0.999, alpha=0.8, svd_epsilon=0.99999,
            **WITHOUT_FILES,
        )  # fmt: skip
    return {
        "tsv_m": lambda: method.TaskSingularVectorMerging(alpha=1.0),
        "iso_c": lambda: method.ISO_C_Merge(scaling_factor=1.0),
        "iso_cts": lambda: method.ISO_CTS_Merge(scaling_factor=1.0, common_space_fraction=0.8),
        "wudi": lambda: method.WUDIMerging(iter_num=steps),
    }[name]()


def module(weights: dict[str, np.ndarray]) -> torch.nn.Module:
    """A network of linear layers with these weights."""
    net = torch.nn.Module()
    for name, x in weights.items():
        *path, last = name.split(".")
        at = net
        for p in path[:-1]:
            if not hasattr(at, p):
                at.add_module(p, torch.nn.Module())
            at = getattr(at, p)
        if not hasattr(at, path[-1]):
            out, into = weights[".".join([*path, "weight"])].shape
            at.add_module(path[-1], torch.nn.Linear(into, out))
        with torch.no_grad():
            getattr(getattr(at, path[-1]), last).copy_(torch.from_numpy(x))
    return net


def main() -> None:
    job = json.load(sys.stdin)
    like, out = kernels(job["blocks"]), Path(job["out"])
    base = draw(0, like)
    nets = {"_pretrained_": module(base)}
    nets |= {f"m{t}": module(draw(1 + t, like, base)) for t in range(job["models"])}
    from fusion_bench import BaseModelPool

    for name in job["methods"]:
        row = {"name": name, "version": version("fusion-bench"), "torch": torch.__version__}
        try:
            times = []
            for _ in range(job["repeat"]):
                pool = BaseModelPool(dict(nets))
                run = algorithm(name, job["steps"])
                wall, spent = time.perf_counter(), time.process_time()
                merged = run.run(pool)
                times.append((time.perf_counter() - wall, time.process_time() - spent))
            row["seconds"], row["cpu_seconds"] = map(min, zip(*times, strict=True))
            state = merged if isinstance(merged, dict) else merged.state_dict()
            name_of = job["compare"]
            np.save(out / f"{name}.npy", state[name_of].detach().cpu().numpy())
        except Exception as error:  # a method that this version cannot run is named in the table
            row["failed"] = f"{type(error).__name__}: {error}"[:200]
        print(json.dumps(row), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    main()
