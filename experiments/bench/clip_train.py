"""Images a second of CLIP's image tower, JAX against torch, training.

    python experiments/bench/clip_train.py --torch-python TORCH_ENV/bin/python \\
        --models ViT-B/32 --batch 16 --steps 1 --rounds 3 --out experiments/results/clip_cpu.json
    python experiments/bench/clip_train.py --torch-python TORCH_ENV/bin/python --gpu

One step: forward, backward, AdamW, cross-entropy over a frozen head of 100 classes. The torch side
is transformers' model, eager and under torch.compile, in a process of its own right after the JAX
side, so that neither holds threads or memory of the other. A ratio is torch's seconds over ours.
--gpu is what the figures for one GPU need: all three sizes, batch 256, bfloat16, cuDNN's flash
attention, and the peak of an H100's or H200's bf16 tensor cores (989e12 FLOP/s); "MFU" is the share
of --peak that the operations of `Config.image_flops` take, three times over.

Figures so far: experiments/results/clip_cpu.md (everything on a GPU is still to be measured).

What was tried for the CPU and won nothing, in CPU seconds on one core, jax 0.10.2: XLA_FLAGS of
--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT, the same of onednn,
--xla_cpu_use_onednn=true, --xla_cpu_prefer_vector_width=512 and --xla_cpu_enable_fast_math=true;
bfloat16 products (they run at float32's speed, without the matrix unit); a fused q/k/v; means of a
layer norm as products with ones. `--attention plain` is the fastest form there, before einsum and
`dot_product_attention`. What won: folding batch and tokens into the rows of one product, and
leaving out what nothing reads of the last block.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
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
GPU = {"batch": 256, "dtype": "bfloat16", "attention": "cudnn", "peak": 989e12}
GPU |= {"pictures": 4096, "workers": 16}
KIND = {3: "training", 1: "evaluation"}  # passes through the matrix products -> what it is


def architecture(name: str) -> clip.Config:
    """A published variant, or "mini" (32 x 32 pixels, 17 tokens, width 128, 6 layers)."""
    return MINI if name == "mini" else clip.variant(name)


def arguments(about: str) -> argparse.Namespace:
    """The options that training and evaluation share."""
    options = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--models", nargs="+", default=["ViT-B/32", "ViT-B/16", "ViT-L/14"])
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--steps", type=int, default=10, help="steps between two looks at a clock")
    options.add_argument("--rounds", type=int, default=5, help="the median of so many is kept")
    options.add_argument("--warmup", type=int, default=2)
    options.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options.add_argument("--attention", choices=["plain", "fused", "cudnn"], default="plain")
    options.add_argument("--remat", choices=["dots", "full"], default=None)
    options.add_argument("--scan", action="store_true")
    options.add_argument("--peak", type=float, help="FLOP/s of the device, for the MFU")
    options.add_argument("--gpu", action="store_true", help=f"defaults for one GPU: {GPU}")
    options.add_argument("--torch-python", help="an interpreter with torch and transformers")
    options.add_argument("--forms", nargs="*", default=["eager", "compiled"], help="of torch")
    options.add_argument("--pictures", type=int, default=0, help="files to stream (clip_eval.py)")
    options.add_argument("--workers", type=int, default=2, help="threads that prepare pictures")
    options.add_argument("--out", type=Path, help="JSON file to add the rows to, and its table .md")
    if "--gpu" in sys.argv:
        options.set_defaults(**GPU)
    return options.parse_args()


def problem(config: clip.Config, batch: int):
    """Parameters of the image tower, a batch, labels and a head."""
    draw, side = np.random.default_rng(0), config.vision.image
    params = clip.init(config, jax.random.key(0))
    params = {name: leaf for name, leaf in params.items() if name.startswith("vision/")}
    images = jnp.asarray(draw.standard_normal((batch, side, side, 3), np.float32))
    labels = jnp.asarray(draw.integers(0, CLASSES, batch))
    head = draw.standard_normal((config.projection_dim, CLASSES), np.float32)
    return params, images, labels, clip.normalise(jnp.asarray(head.T)).T


def timed(step, options) -> float:
    """Median seconds a step; `step()` returns what to wait for, once a round."""
    for _ in range(options.warmup):
        jax.block_until_ready(step())
    rounds = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        for _ in range(options.steps):
            last = step()
        jax.block_until_ready(last)
        rounds.append((time.perf_counter() - start) / options.steps)
    return statistics.median(rounds)


def compute(options) -> clip.Compute:
    """How the forward pass is carried out."""
    return clip.Compute(options.dtype, options.attention, options.scan, options.remat)


def ours(config: clip.Config, options) -> float:
    """Seconds a step of the JAX side."""
    params, images, labels, head = problem(config, options.batch)
    optimizer = optax.adamw(1e-5)

    def loss(params):
        features = clip.image_features(config, params, images, compute=compute(options))
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

    return timed(step, options)


def theirs(config: clip.Config, options, train: bool) -> dict:
    """Seconds a step of each form of the torch side, in a process of its own."""
    if not options.torch_python:
        return {}
    one = clip.Config(config.vision, None, config.projection_dim, config.activation)
    job = {
        "config": {key: value for key, value in one.to_hf().items() if key != "architectures"},
        "classes": CLASSES,
        "train": train,
        **{
            k: getattr(options, k) for k in ("batch", "steps", "rounds", "warmup", "dtype", "forms")
        },
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


def measure(options, ours, passes: int, more=lambda config, options: {}) -> None:
    """Measures every model, prints the table, and keeps it where `--out` says.

    `more(config, options)` gives further columns.
    """
    rows = []
    for name in options.models:
        config = architecture(name)
        seconds = ours(config, options)
        other = theirs(config, options, train=passes == 3)
        row = {"model": name, "task": KIND[passes], "batch": options.batch, "dtype": options.dtype}
        row["images_per_second"] = options.batch / seconds
        row |= more(config, options)
        if options.peak:
            row["mfu"] = passes * config.image_flops * options.batch / seconds / options.peak
        for form in options.forms if other else ():
            row[f"torch_{form}"] = options.batch / other[form]
            row[f"ratio_{form}"] = other[form] / seconds
        row["machine"] = f"{jax.devices()[0].device_kind}, {jax.local_device_count()} device(s)"
        if jax.default_backend() == "cpu":
            row["machine"] = f"{processor()}, {len(os.sched_getaffinity(0))} cores"
        row["versions"] = f"jax {jax.__version__}, torch {other.get('torch', '-')}"
        row["command"] = " ".join(["python", *_plain(sys.argv)])
        rows.append(row)
        print(table([row], head=len(rows) == 1), flush=True)
    if options.out:
        keep(rows, options.out)


def processor() -> str:
    """The name of the processor: the ratio to torch differs between makers."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else f"{platform.machine()} CPU"


def _plain(words: list[str]) -> list[str]:
    """A command line without the paths of one machine."""
    after = dict(zip(words[1:], words, strict=False))
    return ["TORCH_ENV/bin/python" if after.get(w) == "--torch-python" else w for w in words]


def keep(rows: list[dict], out: Path) -> None:
    """Puts rows into a result file, in place of older ones of the same thing and machine."""
    same = lambda row: tuple(row[k] for k in ("model", "task", "batch", "dtype", "machine"))
    old = json.loads(out.read_text()) if out.exists() else []
    new = {same(row) for row in rows}
    rows = [row for row in old if same(row) not in new] + rows
    rows.sort(key=lambda row: (row["machine"], row["task"], row["dtype"], row["model"]))
    out.write_text(json.dumps(rows, indent=1) + "\n")
    notes = sorted({f"{row['machine']}; {row['versions']}" for row in rows})
    commands = sorted({row["command"] for row in rows})
    title = "# CLIP's image tower: images a second, JAX and torch"
    text = [title, "", table(rows), "", *notes, "", *(f"    {command}" for command in commands)]
    out.with_suffix(".md").write_text("\n".join(text) + "\n")


def table(rows: list[dict], head: bool = True) -> str:
    """Rows as a Markdown table; a dash where nothing was measured."""
    columns = {
        "model": "model",
        "task": "task",
        "batch": "batch",
        "dtype": "dtype",
        "images/s": "images_per_second",
        "MFU": "mfu",
        "torch eager images/s": "torch_eager",
        "torch compiled images/s": "torch_compiled",
        "ratio to eager": "ratio_eager",
        "ratio to compiled": "ratio_compiled",
        "from disk images/s": "from_disk",
        "machine": "machine",
    }
    columns = {title: key for title, key in columns.items() if any(key in row for row in rows)}

    def cell(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"] if head else []
    for row in rows:
        lines.append(f"| {' | '.join(cell(row.get(key, '-')) for key in columns.values())} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measure(arguments(__doc__), ours, passes=3)
