"""What merging on an accelerator changes: every method there against the same program on the CPU.

    python experiments/bench/device_parity.py --out experiments/results/device_parity.json
    python experiments/bench/device_parity.py --only opcm,tsv_m --default-precision

One block of a ViT-B/16 (17 leaves), eight random task vectors. The difference is of merged weights,
as a share of the change: |theta_device - theta_cpu| / |theta_cpu - theta_0|, over all entries.
Methods run at full precision whatever the accelerator does by default (`numerics/precision.py`);
--default-precision takes that away, to see what it is good for. A thresholded entry that falls on
the other side of its threshold by rounding counts with its whole magnitude.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from merge_memory import ARGUMENTS, SIDES, draw, published, shapes

import jaxmerge as jm
from jaxmerge.studies.provenance import machine, versions


def merged(name: str, device: jax.Device, count: int) -> tuple[dict, dict]:
    """Base and merged model of a method on a device, as numpy arrays."""
    method = jm.get(name)(**ARGUMENTS.get(name, {}))
    low, high = method.models
    count = max(low, min(count, high or count))
    with jax.default_device(device):
        like = shapes(1)
        base = draw(0, like)
        models = [draw(1 + t, like, base) for t in range(count)]
        side = {k: SIDES[k](base) for k in method.needs}
        extras = [side] * count if side else None
        out = jm.merge(method, base, models, key=jax.random.key(0), extras=extras)
    return jax.device_get(base), jax.device_get(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names of methods, with commas between")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--default-precision", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    only = [n for n in options.only.split(",") if n]
    if unknown := [n for n in only if n.split("/")[0] not in jm.REGISTRY]:
        parser.error(f"--only: no method is called {', '.join(unknown)}")
    report = {"versions": versions(), "machine": machine(), "differences": {}, "not measured": {}}
    report["default precision"] = options.default_precision
    nothing = lambda *args: contextlib.nullcontext()
    for name in only or published():
        if "/" in name:  # a second reading of merge_memory.py
            continue
        loose = mock.patch.object(jax, "default_matmul_precision", nothing)
        try:
            with loose if options.default_precision else contextlib.nullcontext():
                base, there = merged(name, jax.devices()[0], options.models)
            _, here = merged(name, jax.devices("cpu")[0], options.models)
        except (TypeError, KeyError) as error:
            report["not measured"][name] = str(error)
            continue
        apart = sum(float(np.sum((there[n] - here[n]) ** 2.0)) for n in here)
        moved = sum(float(np.sum((here[n] - base[n]) ** 2.0)) for n in here)
        report["differences"][name] = float(np.sqrt(apart / max(moved, 1e-300)))
        print(f"{name:24} {report['differences'][name]:.2e}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
