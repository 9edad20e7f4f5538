"""Images a second of CLIP's image tower, JAX against torch, evaluation of merged models.

    python experiments/bench/clip_eval.py --models ViT-B/32 --batch 8 --steps 5 \\
        --torch-python TORCH_ENV/bin/python

One step: features of a batch, logits over a frozen head of 100 classes, accuracy counted on the
device. Parameters are an argument, so other merged models run through the same compiled step: the
script counts compilations and stops when there is more than one. Columns as in clip_train.py.

Measured on one core of a shared two-core CPU machine, float32, jax 0.10.2, torch 2.13.0 eager, with
`OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 taskset -c 0` before the command (torch's threads spin
while they wait for a busy core, so its CPU seconds mean nothing on several):

    mini      batch  8   CPU s a step 0.00, torch 0.01, ratio 1.53
    mini      batch 64   CPU s a step 0.03, torch 0.05, ratio 1.63
    ViT-B/32  batch  8   CPU s a step 0.73, torch 0.96, ratio 1.31

No accelerator was at hand: figures for GPUs, bfloat16 and torch.compile are not measured yet.
"""

from __future__ import annotations

import clip_train
import jax
import jax.numpy as jnp

from jaxmerge.models import clip


def ours(config: clip.Config, options) -> dict:
    """Times the JAX side, on parameters that change from step to step."""
    params, images, labels, head = clip_train.problem(config, options.batch)
    compute = clip.Compute(options.dtype, options.attention, options.scan, options.remat)

    @jax.jit
    def accuracy(params):
        features = clip.image_features(config, params, images, compute=compute)
        return jnp.mean(jnp.argmax(clip.normalise(features) @ head, axis=1) == labels)

    merged = [params, {name: 0.9 * leaf for name, leaf in params.items()}]
    count = 0

    def step():
        nonlocal count
        count += 1
        return accuracy(merged[count % 2])

    result = clip_train.timed(step, options.steps, options.warmup)
    if accuracy._cache_size() != 1:
        raise SystemExit(f"the step was compiled {accuracy._cache_size()} times")
    return result


def main() -> None:
    options = clip_train.parser(__doc__).parse_args()
    clip_train.header(options)
    for name in options.models:
        config = clip_train.architecture(name)
        mine = ours(config, options)
        other = None
        if options.torch_python:
            other = clip_train.theirs(config, options, train=False)
        clip_train.report(name, config, mine, other, options, passes=1)


if __name__ == "__main__":
    main()
