"""What one OPCM step costs on the kernels of ViT-B/32, against a full SVD by torch.

    python experiments/bench/opcm.py              # jaxmerge
    python experiments/bench/opcm.py --torch      # the full-matrix SVD, where torch is installed

Obtained: experiments/results/opcm_cpu.json (both with --json, one after the other, two idle cores).

Both fold one task vector into a running sum, kernel by kernel, as merging 20 models does 19 times
for each of 72 kernels.  Prints seconds a step (the best of `--repeat`) for every shape, and the sum
over the model.  Both run on a GPU where their library sees one.  On a busy machine pin both to one
core and one thread and count processor time,
``OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 taskset -c 0 python ... --cpu-time``: LAPACK's threads
wait for each other by spinning.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from pathlib import Path

import numpy as np

KERNELS = {(768, 768): 48, (768, 3072): 12, (3072, 768): 12}  # of the twelve blocks
STEPS = 19  # the first of 20 models needs no decomposition


def draw(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A running sum with a falling spectrum, as task vectors have, and a new task vector."""
    rng = np.random.default_rng(0)
    side = min(shape)
    u, v = (np.linalg.qr(rng.normal(size=(n, side)))[0] for n in shape)
    total = (u * np.arange(1, side + 1) ** -0.5) @ v.T
    return total.astype(np.float32), rng.normal(size=shape).astype(np.float32)


def with_jaxmerge(alpha: float, zero_diag: bool, double: bool):
    import jax
    import jax.numpy as jnp

    import jaxmerge as jm
    from jaxmerge.core.types import Context
    from jaxmerge.numerics.precision import full_precision

    fold = jm.add_projected(alpha, zero_diag, double or None)
    step = jax.jit(
        full_precision(
            lambda total, x: fold.update(total, x, Context(base=None, step=jnp.int32(1)))
        )
    )
    return jnp.asarray, lambda total, x: jax.block_until_ready(step(total, x))


def with_torch(alpha: float, zero_diag: bool, double: bool):
    import torch

    def step(total, x):
        if double:
            raise SystemExit("--double is for jaxmerge")
        u, s, vt = torch.linalg.svd(total, full_matrices=True)
        r = int((s.cumsum(0) > alpha * s.sum()).float().argmax())
        seen = u.T @ x @ vt.T
        if zero_diag:
            seen.diagonal().fill_(0)
        seen[:r, :r] = 0
        out = total + u @ seen @ vt
        if out.is_cuda:
            torch.cuda.synchronize()
        return out

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return functools.partial(torch.as_tensor, device=device), step


def main() -> None:
    """Time one step on every shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--zero-diag", action="store_true")
    parser.add_argument("--double", action="store_true", help="jaxmerge: in float64 inside")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="of the process, all its threads")
    parser.add_argument("--save", help="write the results of the steps to this .npz, to compare")
    parser.add_argument("--json", type=Path, help="enter the figures into this file")
    args = parser.parse_args()
    build = with_torch if args.torch else with_jaxmerge
    put, step = build(args.alpha, args.zero_diag, args.double)
    clock = time.process_time if args.cpu_time else time.perf_counter
    results, total_time, seconds = {}, 0.0, {}
    for shape, count in KERNELS.items():
        total, x = map(put, draw(shape))
        out = step(total, x)
        results["x".join(map(str, shape))] = np.asarray(out.cpu() if args.torch else out)
        times = []
        for _ in range(args.repeat):
            start = clock()
            step(total, x)
            times.append(clock() - start)
        seconds["x".join(map(str, shape))] = min(times)
        total_time += count * STEPS * min(times)
        print(f"{shape[0]:>5} x {shape[1]:<5} {min(times):8.3f} s a step", flush=True)
    print(f"20 models, 72 kernels: {total_time:.0f} s (the above times {STEPS} steps)")
    if args.json:
        known = json.loads(args.json.read_text()) if args.json.exists() else {}
        rows = known.setdefault("20 models on the kernels of ViT-B/32", {})
        rows["torch" if args.torch else "jaxmerge"] = {
            "seconds_a_step": seconds,
            "seconds_20_models": total_time,
            "clock": "processor" if args.cpu_time else "wall",
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        }
        args.json.write_text(json.dumps(known, indent=2) + "\n")
    if args.save:
        np.savez(args.save, **results)


if __name__ == "__main__":
    main()
