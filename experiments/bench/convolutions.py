"""A step of training a reduced ResNet-18 alone and inside a loop: our derivative, and XLA's own.

    python experiments/bench/convolutions.py          # a minute on one core

Batch of 20 images of 32 x 32, width 20, float32.  Processor seconds a step, the least of three: one
step as a program, and three steps in a `jax.lax.scan`, as every stream runs them; with the
derivative of `jaxmerge.models.convolution.convolve` and with XLA's.

Obtained on one core of an AMD EPYC, jax 0.10.2: alone 0.25 and 0.13; in the loop 0.19 and 3.0.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from merge_memory import best_of

from jaxmerge.models import convolution
from jaxmerge.models.resnet.learner import resnet18

STEPS = 3


def measured() -> dict[str, float]:
    """Seconds of a step."""
    model = resnet18(10, "cifar", 20).build()
    params = model.init(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 32, 32, 3)), jnp.float32)

    def step(params, _):
        loss = lambda p: -jax.nn.log_softmax(model.apply(p, x, 0).logits)[:, 0].mean()
        gradient = jax.grad(loss)(params)
        return {k: params[k] - 1e-3 * gradient[k] for k in params}, None

    one = jax.jit(lambda p: step(p, None)[0])
    loop = jax.jit(lambda p: jax.lax.scan(step, p, None, length=STEPS)[0])
    spent = lambda run: best_of(run, 3)["cpu_seconds"]
    return {"alone": spent(lambda: one(params)), "in a loop": spent(lambda: loop(params)) / STEPS}


def plain(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The convolution with XLA's own derivative."""
    strides, pad = (stride, stride), [(padding, padding)] * 2
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, pad, dimension_numbers=names)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    print("ours", measured())
    jax.clear_caches()
    convolution.convolve = plain
    print("XLA's own", measured())


if __name__ == "__main__":
    main()
