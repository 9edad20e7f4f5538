"""ResNets of basic blocks, and the pure functions over them.

A stem, then stages of blocks

    y <- relu(norm1(conv1(x)));  y <- norm2(conv2(y));  x <- relu(y + shortcut(x))

where the first block of each later stage halves the picture and its shortcut is a 1 x 1
convolution with a norm; then the mean over the picture.  Blocks are `block_00` ... `block_07`.

Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016 (arXiv 1512.03385),
section 3.3, option B, as torchvision's `resnet18`; the stem for 32 x 32 pictures as the papers on
continual learning have it (Lopez-Paz and Ranzato, NeurIPS 2017, section 4: "a reduced ResNet18").
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.models.convolution import (
    BatchNorm,
    Conv,
    Forward,
    Mode,
    Normal,
    layer_inputs,
    max_pool,
    out_of_one_draw,
    statistics,
)
from jaxmerge.models.resnet.config import Config
from jaxmerge.models.transformer import add_blocks, bind, blocks_of, parameters, shapes


class ConvNorm(nnx.Module):
    """A convolution and its batch norm."""

    def __init__(self, config: Config, normal: Normal | None, size: int, inputs: int,
                 outputs: int, stride: int = 1):  # fmt: skip
        self.conv = Conv(size, inputs, outputs, normal, stride, padding=size // 2)
        self.norm = BatchNorm(outputs, config.eps, config.momentum, config.running)

    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        return self.norm(self.conv(x, mode), mode)


class Block(nnx.Module):
    """A basic block: two 3 x 3 convolutions around a shortcut."""

    def __init__(
        self, config: Config, normal: Normal | None, inputs: int, outputs: int, stride: int
    ):
        self.first = ConvNorm(config, normal, 3, inputs, outputs, stride)
        self.second = ConvNorm(config, normal, 3, outputs, outputs)
        if stride != 1 or inputs != outputs:
            self.shortcut = ConvNorm(config, normal, 1, inputs, outputs, stride)

    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        y = self.second(jax.nn.relu(self.first(x, mode)), mode)
        return jax.nn.relu(y + (self.shortcut(x, mode) if hasattr(self, "shortcut") else x))


class ResNet(nnx.Module):
    """Images `[batch, height, width, channels]` -> features `[batch, config.features]`."""

    def __init__(self, config: Config, normal: Normal | None):
        size, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        self.stem = ConvNorm(config, normal, size, config.channels, config.width, stride)
        plan = []
        for stage, count in enumerate(config.blocks):
            outputs = config.width * 2**stage
            inputs = outputs // 2 if stage else outputs
            plan += [(inputs, outputs, 2 if stage else 1)] + [(outputs, outputs, 1)] * (count - 1)
        build = iter(plan)
        add_blocks(self, len(plan), lambda: Block(config, normal, *next(build)))
        self.config = config

    def __call__(self, images: jax.Array, mode: Mode) -> jax.Array:
        x = jax.nn.relu(self.stem(images, mode))
        if self.config.stem == "imagenet":
            x = max_pool(x, 3, 2, padding=1)
        for block in blocks_of(self, sum(self.config.blocks)):
            x = block(x, mode)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def init(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters as torchvision's: He's normal (fan out, relu), norms 1 and 0.

    >>> init(Config("cifar", width=8), jax.random.key(0))["stem/conv/kernel"].shape
    (3, 3, 3, 8)
    """
    count = sum(map(math.prod, param_shapes(config).values()))
    return parameters(ResNet(config, out_of_one_draw(key, count)))


def param_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the architecture; nothing is allocated."""
    return dict(sorted(shapes(ResNet, config).items()))


@functools.partial(jax.jit, static_argnames=("config", "train", "inputs", "dtype"))
def forward(
    config: Config,
    params: Mapping[str, jax.Array],
    images: jax.Array,
    *,
    train: bool = False,
    weight: jax.Array | None = None,
    inputs: bool = False,
    dtype: str = "float32",
) -> Forward:
    """Features, and what a training step needs beside them.

    Args:
      config: the architecture (static).
      params: flat mapping; names that are not the tower's (a head) are ignored.
      images: floats `[batch, height, width, channels]`.
      train: normalise by the batch and move the running statistics (static).
      weight: `[batch]`, 0 where an example only fills up the batch: it enters no statistics.
      inputs: give the inputs of all kernels too (static).
      dtype: of the convolutions, "float32" or "bfloat16"; norms and the mean are float32 (static).

    Returns:
      A `Forward`.

    Raises:
      KeyError: parameters that are missing, all listed.
      ValueError: parameters or images of another shape than the config says.
    """
    if images.ndim != 4 or images.shape[-1] != config.channels:
        raise ValueError(
            f"images: found shape {images.shape}, expected (batch, height, width,"
            f" {config.channels})"
        )
    module = bind(ResNet, config, params)
    mode = Mode(train, weight, [] if inputs else None)
    output = module(images.astype(dtype), mode)
    return Forward(output, statistics(module) if train else {}, layer_inputs(module, mode))


def recalibrated(
    config: Config, params: Mapping[str, jax.Array], batches: Iterable[jax.Array]
) -> dict[str, jax.Array]:
    """The parameters with running statistics measured anew, as the mean over batches.

    A merged network's activations have other means and variances than those of its models, so the
    merged statistics fit them badly; a few batches without labels mend that.

    Source: Izmailov et al., Averaging Weights Leads to Wider Optima, UAI 2018, section 3.2; Jordan
    et al., REPAIR, ICLR 2023, section 5.

    Raises:
      ValueError: no batch.
    """
    whole = dataclasses.replace(config, momentum=1.0)
    per_batch = [forward(whole, params, images, train=True).statistics for images in batches]
    if not per_batch:
        raise ValueError("recalibrated: found no batch, expected images to measure on")
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *per_batch)
    return {**params, **mean}


def features(config: Config, params: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """float32 `[batch, config.features]`, with the running statistics; as `forward`.

    >>> small = Config("cifar", width=4)
    >>> features(small, init(small, jax.random.key(0)), jnp.ones((2, 32, 32, 3))).shape
    (2, 32)
    """
    return forward(config, params, images).features
