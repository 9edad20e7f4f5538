"""Images a second of CLIP's image tower, JAX against torch, evaluation of merged models.

    python experiments/bench/clip_eval.py --torch-python TORCH_ENV/bin/python \\
        --models ViT-B/32 --batch 16 --steps 1 --rounds 5 --out experiments/results/clip_cpu.json
    python experiments/bench/clip_eval.py --torch-python TORCH_ENV/bin/python --gpu

One step: features of a batch, logits over a frozen head of 100 classes, accuracy counted on the
device. Parameters are an argument, so other merged models run through the same compiled step: the
script counts compilations and stops when there is more than one. Options and columns as in
clip_train.py. With --pictures N the column "from disk images/s": `clip.encode_images` on N JPEG
files of 500 x 375 pixels, which --workers threads read, resize and crop while the device computes.

Figures so far: experiments/results/clip_cpu.md.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import clip_train
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxmerge.models import clip


def ours(config: clip.Config, options) -> float:
    """Seconds a step of the JAX side, on parameters that change from step to step."""
    params, images, labels, head = clip_train.problem(config, options.batch)

    @jax.jit
    def accuracy(params):
        compute = clip_train.compute(options)
        features = clip.image_features(config, params, images, compute=compute)
        return jnp.mean(jnp.argmax(clip.normalise(features) @ head, axis=1) == labels)

    merged = [params, {name: 0.9 * leaf for name, leaf in params.items()}]
    count = 0

    def step():
        nonlocal count
        count += 1
        return accuracy(merged[count % 2])

    seconds = clip_train.timed(step, options)
    if accuracy._cache_size() != 1:
        raise SystemExit(f"the step was compiled {accuracy._cache_size()} times")
    return seconds


def from_disk(config: clip.Config, options) -> dict:
    """Images a second of feature extraction from JPEG files."""
    if not options.pictures:
        return {}
    model = clip.Model(config, clip_train.problem(config, 1)[0])
    kinds, draw = clip_train.compute(options), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.jpg" for index in range(options.pictures)]
        for file in files:
            rough = Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8))
            rough.resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
        encode = lambda images: clip.encode_images(
            model, images, batch=options.batch, workers=options.workers, compute=kinds
        )
        encode(files[:1])
        start = time.perf_counter()
        encode(files)
        return {"from_disk": len(files) / (time.perf_counter() - start)}


if __name__ == "__main__":
    clip_train.measure(clip_train.arguments(__doc__), ours, 1, from_disk)
