"""What OPCM costs on the kernels of ViT-B/32, against a full SVD by torch.

    python experiments/bench/opcm.py              # jaxmerge
    python experiments/bench/opcm.py --torch      # the full-matrix SVD, where torch is installed

The figures in experiments/results/opcm_cpu.json and opcm_gpu.json ("20 models on the kernels of
ViT-B/32") are of an earlier form of this script, which called both sides kernel by kernel.

Both fold task vectors into a running sum, as merging 20 models does 19 times for each kernel:
jaxmerge by `jm.update` of the tree of all kernels, which is what `jm.merge` does and spreads them
over the cores of a CPU; torch kernel by kernel.  Prints the seconds of one model (the best of
`--repeat`) and of 19.  Both run on a GPU where their library sees one.  On a busy machine pin both
to one core and one thread and count processor time,
``OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 taskset -c 0 python ... --cpu-time``: LAPACK's threads
wait for each other by spinning.  `--blocks 1 --repeat 1` tries it on a twelfth.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

BLOCKS = 12
SHAPES = {(768, 768): 4, (768, 3072): 1, (3072, 768): 1}  # the kernels of a block


def draw(blocks: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A running sum with falling spectra, as task vectors have, and a new task vector."""
    total, new = {}, {}
    for shape, count in SHAPES.items():
        rng = np.random.default_rng(0)
        side = min(shape)
        u, v = (np.linalg.qr(rng.normal(size=(n, side)))[0] for n in shape)
        first = ((u * np.arange(1, side + 1) ** -0.5) @ v.T).astype(np.float32)
        for k in range(count * blocks):
            name = f"{'x'.join(map(str, shape))}/{k:02}/kernel"
            total[name], new[name] = first, rng.normal(size=shape).astype(np.float32)
    return total, new


def with_jaxmerge(given: argparse.Namespace, total: dict, new: dict):
    """One `jm.update` of a state that has seen one model."""
    import jax
    import jax.numpy as jnp

    import jaxmerge as jm

    total, new = (jax.tree.map(jnp.asarray, tree) for tree in (total, new))
    method = jm.add_projected(given.alpha, given.zero_diag, given.double or None)
    base = jax.tree.map(jnp.zeros_like, total)
    state = jm.update(method, jm.init(method, base), base, total)
    return (
        lambda: jax.block_until_ready(jm.update(method, state, base, new)),
        lambda out: jax.device_get(jm.merged(method, out, base)),
    )


def with_torch(given: argparse.Namespace, total: dict, new: dict):
    """The same by full-matrix SVDs, one kernel after another."""
    import torch

    if given.double:
        raise SystemExit("--double is for jaxmerge")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    total, new = (
        {n: torch.as_tensor(x, device=device) for n, x in t.items()} for t in (total, new)
    )

    def add(total, x):
        u, s, vt = torch.linalg.svd(total, full_matrices=True)
        r = int((s.cumsum(0) > given.alpha * s.sum()).float().argmax())
        seen = u.T @ x @ vt.T
        if given.zero_diag:
            seen.diagonal().fill_(0)
        seen[:r, :r] = 0
        return total + u @ seen @ vt

    def step():
        out = {n: add(total[n], x) for n, x in new.items()}
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    return step, lambda out: {n: x.cpu().numpy() for n, x in out.items()}


def main() -> None:
    """Time one model taken in."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--zero-diag", action="store_true")
    parser.add_argument("--double", action="store_true", help="jaxmerge: in float64 inside")
    parser.add_argument("--models", type=int, default=20, help="the first needs no decomposition")
    parser.add_argument(
        "--blocks", type=int, default=BLOCKS, choices=range(1, BLOCKS + 1), metavar="1..12"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true", help="of the process, all its threads")
    parser.add_argument("--save", help="write the merged kernels to this .npz, to compare")
    parser.add_argument("--json", type=Path, help="enter the figures into this file")
    given = parser.parse_args()
    step, fetch = (with_torch if given.torch else with_jaxmerge)(given, *draw(given.blocks))
    clock = time.process_time if given.cpu_time else time.perf_counter
    load, out, times = os.getloadavg()[0], step(), []
    for _ in range(given.repeat):
        start = clock()
        step()
        times.append(clock() - start)
    steps, kernels = given.models - 1, given.blocks * sum(SHAPES.values())
    seconds = min(times)
    print(f"{seconds:.3f} s a model, {kernels} kernels; {given.models}: {steps * seconds:.0f} s")
    if given.json:
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        rows = known.setdefault(f"{given.models} models, {kernels} kernels of ViT-B/32", {})
        rows["torch" if given.torch else "jaxmerge"] = {
            "seconds_a_model": seconds,
            "seconds": steps * seconds,
            "clock": "processor" if given.cpu_time else "wall",
            "cores": os.cpu_count(),
            "load": load,
        }
        given.json.write_text(json.dumps(known, indent=2) + "\n")
    if given.save:
        np.savez(given.save, **fetch(out))


if __name__ == "__main__":
    main()
