"""The small AlexNet that GPM, TRGP, CUBER and FOT train on CIFAR-100.

Three times: convolution (4 x 4, 3 x 3, 2 x 2, without padding), batch norm, relu, dropout, the
maximum over 2 x 2; twice: dense layer, batch norm, relu, dropout.  No layer has a bias.

The authors' batch norms keep no running statistics (`track_running_stats=False`), so their network
is evaluated with the statistics of the batch that is asked; ``running=False`` is that.

Source: Saha, Garg and Roy, Gradient Projection Memory for Continual Learning, ICLR 2021
(arXiv 2103.09762), appendix C ("a 5-layer AlexNet similar to Serra et al. 2018"): 64, 128 and 256
filters, two dense layers of 2048, dropout 0.2 for the first two layers and 0.5 for the rest.

torchvision has no such network (its AlexNet is that of ImageNet): values are compared with a
transcription of the description in torch's own layers (`tests/test_alexnet.py`), not with a
program of others.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.models.convolution import (
    BatchNorm,
    Conv,
    Forward,
    Linear,
    Mode,
    layer_inputs,
    max_pool,
    statistics,
)
from jaxmerge.models.transformer import bind, parameters, shapes

SIZES, DROPPED = (4, 3, 2), (0.2, 0.2, 0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Config:
    """A small AlexNet.

    Attributes:
      side, channels: of the images.
      filters: of the three convolutions.
      hidden: width of the two dense layers, the second of them the features.
      drop: whether training drops units (0.2, 0.2, 0.5, 0.5, 0.5 behind the five layers).
      running: whether batch norms keep running statistics for evaluation.
      eps, momentum: of the batch norms.
    """

    side: int = 32
    channels: int = 3
    filters: tuple[int, int, int] = (64, 128, 256)
    hidden: tuple[int, int] = (2048, 2048)
    drop: bool = True
    running: bool = True
    eps: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self):
        object.__setattr__(self, "filters", tuple(self.filters))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        wrong = []
        if len(self.filters) != 3 or len(self.hidden) != 2:
            wrong.append(f"filters {self.filters}, hidden {self.hidden}, expected three and two")
        elif min(*self.filters, *self.hidden, self.channels) < 1:
            wrong.append("sizes of at least 1")
        if self.last < 1:
            wrong.append(f"side {self.side}, expected at least 19 pixels")
        if wrong:
            raise ValueError(f"AlexNet config: {'; '.join(wrong)}")

    @property
    def last(self) -> int:
        """Side of the picture behind the last pooling.

        >>> Config().last
        2
        """
        side = self.side
        for size in SIZES:
            side = (side - size + 1) // 2
        return side

    @property
    def features(self) -> int:
        """Width of the features."""
        return self.hidden[1]


class AlexNet(nnx.Module):
    """Images `[batch, side, side, channels]` -> features `[batch, hidden[1]]`.

    Children `conv_0` to `conv_2`, `dense_0`, `dense_1`, and a norm for each, `norm_0` to `norm_4`.
    """

    def __init__(self, config: Config, rngs: nnx.Rngs | None):
        inputs = config.channels
        normal = None
        if rngs is not None:
            normal = lambda shape: jax.random.normal(rngs.params(), shape)
        for k, (size, outputs) in enumerate(zip(SIZES, config.filters, strict=True)):
            setattr(self, f"conv_{k}", Conv(size, inputs, outputs, normal))
            inputs = outputs
        inputs *= config.last**2
        for k, outputs in enumerate(config.hidden):
            setattr(self, f"dense_{k}", Linear(inputs, outputs, rngs, bias=False))
            inputs = outputs
        for k, width in enumerate((*config.filters, *config.hidden)):
            norm = BatchNorm(width, config.eps, config.momentum, config.running)
            setattr(self, f"norm_{k}", norm)
        self.config = config

    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        layers = [f"conv_{k}" for k in range(3)] + [f"dense_{k}" for k in range(2)]
        for k, (name, rate) in enumerate(zip(layers, DROPPED, strict=True)):
            x = getattr(self, name)(x, mode)
            x = jax.nn.relu(getattr(self, f"norm_{k}")(x, mode))
            x = mode.drop(x, rate, k) if self.config.drop else x
            if name.startswith("conv"):
                x = max_pool(x, 2, 2)
            if k == 2:  # torch lays out channels first; a dense layer of ours sees them last
                x = x.reshape(len(x), -1)
        return x.astype(jnp.float32)


def init(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters: He's normal convolutions, dense layers as torch draws them.

    >>> sorted(init(Config(19, filters=(2, 2, 2), hidden=(4, 4)), jax.random.key(0)))[:2]
    ['conv_0/kernel', 'conv_1/kernel']
    """
    return parameters(AlexNet(config, nnx.Rngs(params=key)))


def param_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the architecture; nothing is allocated."""
    return dict(sorted(shapes(AlexNet, config).items()))


@functools.partial(jax.jit, static_argnames=("config", "train", "inputs", "dtype"))
def forward(
    config: Config,
    params: Mapping[str, jax.Array],
    images: jax.Array,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    weight: jax.Array | None = None,
    inputs: bool = False,
    dtype: str = "float32",
) -> Forward:
    """Features, and what a training step needs beside them.

    Args:
      config: the architecture (static).
      params: flat mapping; names that are not the tower's (a head) are ignored.
      images: floats `[batch, side, side, channels]`.
      train: normalise by the batch, move running statistics, drop units (static).
      key: of dropout, in training; None drops nothing.
      weight: `[batch]`, 0 where an example only fills up the batch: it enters no statistics.
      inputs: give the inputs of all kernels too (static).
      dtype: of convolutions and matrix products, "float32" or "bfloat16" (static).

    Raises:
      KeyError: parameters that are missing, all listed.
      ValueError: parameters or images of another shape than the config says.
    """
    expected = (config.side, config.side, config.channels)
    if images.ndim != 4 or images.shape[1:] != expected:
        raise ValueError(
            f"images: found shape {images.shape}, expected (batch, {', '.join(map(str, expected))})"
        )
    mode = Mode(train, weight, [] if inputs else None, key)
    module = bind(AlexNet, config, params)
    output = module(images.astype(dtype), mode)
    return Forward(output, statistics(module) if train else {}, layer_inputs(module, mode))


def features(config: Config, params: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """float32 `[batch, hidden[1]]`; as `forward`."""
    return forward(config, params, images).features
