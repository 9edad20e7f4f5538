"""Images a second of CLIP's image tower, JAX against torch, training.

    python experiments/bench/clip_train.py --models ViT-B/32 --batch 8 --steps 3 \\
        --torch-python TORCH_ENV/bin/python

One training step: forward, backward, AdamW, cross-entropy over a frozen head of 100 classes. The
torch side (transformers' model; --compile adds torch.compile) runs in a process of its own right
after the JAX side, so neither holds threads or memory of the other. "MFU" is the share of --peak
(FLOP/s of the device; 989e12 for the bf16 tensor cores of an H100 or H200) that the model's matrix
products take. On a CPU that other programs use as well, compare the CPU seconds, not the wall
clock: the column "ratio" is torch's CPU seconds over ours there, wall seconds on an accelerator.

Measured on one core of a shared two-core CPU machine, float32, jax 0.10.2, torch 2.13.0 eager, with
`OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 taskset -c 0` before the command (torch's threads spin
while they wait for a busy core, so its CPU seconds mean nothing on several):

    mini      batch  8   CPU s a step 0.02, torch 0.03, ratio 1.50
    mini      batch 64   CPU s a step 0.16, torch 0.14, ratio 0.92
    ViT-B/32  batch  8   CPU s a step 2.57, torch 2.79, ratio 1.09

XLA's flags win nothing: mini at batch 64 takes 0.16 CPU seconds with
--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT, --xla_cpu_prefer_vector_width=512 or
--xla_cpu_enable_fast_math=true in XLA_FLAGS as without, 0.18 with elementwise and reduction fusions
added to the first. Fusing q/k/v, einsum attention and `dot_product_attention` are level with the
plain form; folding batch and tokens into the rows of one product takes 0.75 of the batched form.

No accelerator was at hand: figures for GPUs, bfloat16 and torch.compile are not measured yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmerge.models import clip

MINI = clip.Config(
    clip.Vision(image=32, patch=8, width=128, layers=6, heads=4, hidden=512), None, 96
)
CLASSES = 100


def architecture(name: str) -> clip.Config:
    """A published variant, or "mini" (32 x 32 pixels, 17 tokens, width 128, 6 layers)."""
    return MINI if name == "mini" else clip.variant(name)


def parser(about: str) -> argparse.ArgumentParser:
    """The options that training and evaluation share."""
    options = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--models", nargs="+", default=["ViT-B/32", "ViT-B/16", "ViT-L/14"])
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--warmup", type=int, default=3)
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--attention", choices=["plain", "fused", "cudnn"], default="plain")
    options.add_argument("--remat", choices=["dots", "full"], default=None)
    options.add_argument("--scan", action="store_true")
    options.add_argument("--compile", action="store_true", help="torch.compile the torch side")
    options.add_argument("--peak", type=float, help="FLOP/s of the device, for the MFU")
    options.add_argument("--torch-python", help="an interpreter with torch and transformers")
    return options


def problem(config: clip.Config, batch: int):
    """Parameters of the image tower, a batch, labels and a head."""
    draw, side = np.random.default_rng(0), config.vision.image
    params = clip.init(config, jax.random.key(0))
    params = {name: leaf for name, leaf in params.items() if name.startswith("vision/")}
    images = jnp.asarray(draw.standard_normal((batch, side, side, 3), np.float32))
    labels = jnp.asarray(draw.integers(0, CLASSES, batch))
    head = draw.standard_normal((config.projection_dim, CLASSES), np.float32)
    return params, images, labels, clip.normalise(jnp.asarray(head.T)).T


def timed(step, steps: int, warmup: int) -> dict:
    """Median wall and CPU seconds of `step()`, which returns what to wait for."""
    wall, cpu = [], []
    for index in range(warmup + steps):
        start, used = time.perf_counter(), time.process_time()
        jax.block_until_ready(step())
        if index >= warmup:
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - used)
    return {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}


def ours(config: clip.Config, options) -> dict:
    """Times the JAX side."""
    params, images, labels, head = problem(config, options.batch)
    compute = clip.Compute(options.dtype, options.attention, options.scan, options.remat)
    optimizer = optax.adamw(1e-5)

    def loss(params):
        features = clip.image_features(config, params, images, compute=compute)
        scores = clip.logits(features, head, jnp.log(jnp.float32(100)))
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    @jax.jit(donate_argnums=(0, 1))
    def train(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    carry = (params, optimizer.init(params))

    def step():
        nonlocal carry
        *carry, value = train(*carry)
        return value, carry[0]

    return timed(step, options.steps, options.warmup)


def theirs(config: clip.Config, options, train: bool) -> dict:
    """Times the torch side, in a process of its own."""
    one = clip.Config(config.vision, None, config.projection_dim, config.activation)
    job = {
        "config": {key: value for key, value in one.to_hf().items() if key != "architectures"},
        "classes": CLASSES,
        "train": train,
        **{k: getattr(options, k) for k in ("batch", "steps", "warmup", "dtype", "compile")},
    }
    script = Path(__file__).with_name("clip_torch.py")
    done = subprocess.run(
        [options.torch_python, str(script)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the torch side failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(name: str, config: clip.Config, mine: dict, other: dict | None, options, passes: int):
    """Prints one line of the table."""
    speed = options.batch / mine["seconds"]
    line = (
        f"| {name} | {options.batch} | {options.dtype} | {speed:.1f} | {mine['cpu_seconds']:.2f} |"
    )
    if options.peak:
        line += f" {passes * config.image_flops * speed / options.peak:.1%} |"
    if other is not None:
        which = "cpu_seconds" if jax.default_backend() == "cpu" else "seconds"
        theirs_speed = options.batch / other["seconds"]
        ratio = other[which] / mine[which]
        line += f" {theirs_speed:.1f} | {other['cpu_seconds']:.2f} | {ratio:.2f} |"
    print(line, flush=True)


def header(options) -> None:
    """Prints the head of the table."""
    columns = ["model", "batch", "dtype", "images/s", "CPU s a step"]
    columns += ["MFU"] * bool(options.peak)
    if options.torch_python:
        columns += ["torch images/s", "torch CPU s", "ratio"]
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def main() -> None:
    options = parser(__doc__).parse_args()
    header(options)
    for name in options.models:
        config = architecture(name)
        mine = ours(config, options)
        other = theirs(config, options, train=True) if options.torch_python else None
        report(name, config, mine, other, options, passes=3)


if __name__ == "__main__":
    main()
