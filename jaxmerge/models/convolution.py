"""The parts of small classifiers: dense layer, convolution, batch norm, pooling, dropout, and the
inputs of kernels as rows.

Images are `[batch, height, width, channels]`, kernels `[height, width, in, out]`. Padding is that
of torch (so many pixels of zeros on every side), which is not always XLA's "SAME".

Batch norm has two kinds of leaves: `scale` and `bias`, which are trained, and the running `mean`
and `variance` (`nnx.BatchStat`), which are not: a training step replaces them by what the forward
pass left in the module. Prediction needs all four, so all four are parameters of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

STATISTICS = ("mean", "variance")  # last parts of the names of batch statistics


class Mode(NamedTuple):
    """How a forward pass treats a batch.

    Attributes:
      train: batch norm reads the batch and moves its running statistics; else it reads those.
      weight: `[batch]`, 0 for an example that only fills up the batch and enters no statistics.
      inputs: a list to which layers append themselves and their inputs, for `layer_inputs`.
      key: of dropout; None drops nothing.
    """

    train: bool = False
    weight: jax.Array | None = None
    inputs: list[tuple[nnx.Module, jax.Array]] | None = None
    key: jax.Array | None = None

    def drop(self, x: jax.Array, rate: float, layer: int) -> jax.Array:
        """In training each entry is zero with probability `rate`, or else divided by 1 - rate."""
        if not self.train or self.key is None:
            return x
        mask = jax.random.bernoulli(jax.random.fold_in(self.key, layer), 1 - rate, x.shape)
        return jnp.where(mask, x / (1 - rate), jnp.zeros_like(x))

    def note(self, layer: nnx.Module, x: jax.Array) -> None:
        """Keeps the input of a layer, where inputs are asked for."""
        if self.inputs is not None:
            self.inputs.append((layer, x))


class Forward(NamedTuple):
    """What a forward pass of a tower gives.

    Attributes:
      features: float32 `[batch, width]`.
      statistics: name -> running statistics after this batch; empty outside of training and where
        a tower has no batch norm.
      inputs: name of each kernel -> the rows that met it, `[..., fan in]`, where asked for.
    """

    features: jax.Array
    statistics: dict[str, jax.Array]
    inputs: dict[str, jax.Array]


class Linear(nnx.Module):
    """`x @ kernel + bias`, drawn as torch draws its `Linear`: evenly from +-1 / sqrt(inputs)."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs | None, bias: bool = True):
        bound = inputs**-0.5
        self.kernel = nnx.Param(_even(rngs, (inputs, outputs), bound))
        if bias:
            self.bias = nnx.Param(_even(rngs, (outputs,), bound))

    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        mode.note(self, x)
        y = x @ self.kernel[...].astype(x.dtype)
        return y + self.bias[...].astype(x.dtype)[None] if hasattr(self, "bias") else y


def _even(rngs: nnx.Rngs | None, shape: tuple[int, ...], bound: float) -> jax.Array:
    if rngs is None:
        return jnp.zeros(shape)
    return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)


Normal = Callable[[tuple[int, ...]], jax.Array]  # shape -> independent standard normal numbers


def out_of_one_draw(key: jax.Array, count: int) -> Normal:
    """Standard normal numbers for many leaves, out of one draw.

    XLA takes about a second on a CPU to compile a draw of another shape; out of one draw the start
    of a ResNet-18 compiles in a quarter of the time (5 s in place of 22).

    Args:
      key: PRNG key.
      count: how many numbers there are in all.

    >>> normal = out_of_one_draw(jax.random.key(0), 10)
    >>> normal((2, 3)).shape, normal((4,)).shape
    ((2, 3), (4,))
    """
    flat, taken = jax.random.normal(key, (count,)), 0

    def normal(shape: tuple[int, ...]) -> jax.Array:
        nonlocal taken
        start, taken = taken, taken + math.prod(shape)
        assert taken <= count, f"{taken} numbers of {count}"
        return flat[start:taken].reshape(shape)

    return normal


class Conv(nnx.Module):
    """A convolution without bias."""

    def __init__(self, size: int, inputs: int, outputs: int, normal: Normal | None, stride: int = 1,
                 padding: int = 0):  # fmt: skip
        shape = (size, size, inputs, outputs)
        # He's normal initialisation of the outgoing side, as torchvision's ResNets have it.
        std = (2 / (size * size * outputs)) ** 0.5
        self.kernel = nnx.Param(jnp.zeros(shape) if normal is None else std * normal(shape))
        self.stride, self.padding = stride, padding

    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        mode.note(self, x)
        return convolve(x, self.kernel[...].astype(x.dtype), self.stride, self.padding)

    def rows(self, x: jax.Array) -> jax.Array:
        """The windows that meet the kernel, `[batch, height, width, fan in]`."""
        return windows(x, self.kernel.shape[0], self.stride, self.padding)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """The convolution `[batch, height, width, in]` with `[size, size, in, out]`.

    On a CPU its derivative is that of the product of `windows` with the kernel: inside a loop, such
    as a `jax.lax.scan` over the steps of a task, a step takes 16 times as long with the derivative
    that XLA has for a convolution; outside of loops it is XLA's that takes half of the time
    (`experiments/bench/convolutions.py`).
    """
    pad = (padding, padding)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@convolve.defjvp
def _(stride: int, padding: int, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, dkernel) = primals, tangents
    if jax.default_backend() == "cpu":
        flat = lambda k: k.reshape(-1, k.shape[-1])
        product = lambda x, k: windows(x, k.shape[0], stride, padding) @ flat(k)
        product = jax.checkpoint(product)  # the windows are as large as size^2 inputs
    else:
        product = lambda x, k: convolve(x, k, stride, padding)
    return convolve(x, kernel, stride, padding), product(dx, kernel) + product(x, dkernel)


def windows(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """What lies under the kernel at every place, `[batch, height, width, fan in]`.

    The last axis runs as the rows of `kernel.reshape(fan in, out)`, fan in = size * size * in, so
    the convolution is `windows(x) @ kernel.reshape(fan in, out)`.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    along = lambda start, count: slice(start, start + stride * (count - 1) + 1, stride)
    parts = [x[:, along(i, height), along(j, width)] for i in range(size) for j in range(size)]
    return jnp.concatenate(parts, -1)


class BatchNorm(nnx.Module):
    """`(x - mean) / sqrt(variance + eps) * scale + bias` of every channel, in float32.

    In training mean and variance are those of the batch (the variance divided by n), and

        running <- 0.9 running + 0.1 of the batch          (its variance divided by n - 1)

    A running variance that a merge made negative (MagMax and task arithmetic may) counts as 0.
    With ``running=False`` there are no running statistics (torch: ``track_running_stats=False``):
    evaluation, too, reads the batch.

    Source: Ioffe and Szegedy, Batch Normalization, ICML 2015, algorithms 1 and 2; momentum and
    the two divisors as in torch.
    """

    def __init__(self, width: int, eps: float, momentum: float, running: bool = True):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        if running:
            self.mean = nnx.BatchStat(jnp.zeros(width))
            self.variance = nnx.BatchStat(jnp.ones(width))
        self.eps, self.momentum = eps, momentum

    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        wide, running = x.astype(jnp.float32), hasattr(self, "mean")
        if mode.train or not running:
            mean, variance, count = moments(wide, mode.weight)
            unbiased = variance * count / jnp.maximum(count - 1, 1)
            averages = ((self.mean, mean), (self.variance, unbiased)) if running else ()
            for average, now in averages:
                moved = (1 - self.momentum) * average[...] + self.momentum * now
                average[...] = jnp.where(count > 0, moved, average[...])
        else:
            mean, variance = self.mean[...], jnp.maximum(self.variance[...], 0)
        factor = self.scale[...] * jax.lax.rsqrt(variance + self.eps)
        spread = (1,) * (x.ndim - 1) + (-1,)
        wide = (wide - mean.reshape(spread)) * factor.reshape(spread)
        return (wide + self.bias[...].reshape(spread)).astype(x.dtype)


def moments(x: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and variance of every channel, and over how many values, without the filling."""
    axes, places = tuple(range(x.ndim - 1)), x[0, ..., 0].size
    if weight is None:
        return jnp.mean(x, axes), jnp.var(x, axes), jnp.float32(x.shape[0] * places)
    real = (weight > 0).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    count = jnp.sum(real) * places
    mean = jnp.sum(x * real, axes) / jnp.maximum(count, 1)
    off = (x - mean.reshape((1,) * (x.ndim - 1) + (-1,))) * real
    return mean, jnp.sum(jnp.square(off), axes) / jnp.maximum(count, 1), count


def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
    """The largest value of each window, channel by channel; padding never wins."""
    pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    lowest = np.array(-np.inf, x.dtype)  # concrete, or XLA sees no maximum pooling to differentiate
    return jax.lax.reduce_window(
        x, lowest, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), pad
    )


def statistics(module: nnx.Module) -> dict[str, jax.Array]:
    """Name -> running statistics, as a forward pass in training left them in a module."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def is_statistic(name: str) -> bool:
    """Whether a leaf is a running statistic, which no optimiser trains.

    >>> is_statistic("block_00/norm1/mean"), is_statistic("block_00/norm1/scale")
    (True, False)
    """
    return name.rpartition("/")[2] in STATISTICS


def layer_inputs(module: nnx.Module, mode: Mode) -> dict[str, jax.Array]:
    """Name of each kernel -> the rows that met it in the last forward pass, `[..., fan in]`.

    A row times `kernel.reshape(fan in, out)` is what the layer gives, for convolutions (their
    patches) as for dense layers. What is not read costs nothing inside compiled code.
    """
    names = {id(layer): "/".join(map(str, path)) for path, layer in nnx.iter_modules(module)}
    return {
        f"{names[id(layer)]}/kernel": layer.rows(x) if isinstance(layer, Conv) else x
        for layer, x in mode.inputs or ()
    }
