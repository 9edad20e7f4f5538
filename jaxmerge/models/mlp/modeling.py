"""The multi-layer perceptron of the continual-learning papers, and the pure functions over it.

    h <- x as one vector;  h <- relu(h @ kernel + bias), layer by layer

The last hidden layer gives the features; a head reads them (`jaxmerge.models.trained_head`).
Hidden layers (100, 100) under a head of 10 columns are the network of permuted MNIST,
784-100-100-10.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmerge.models.convolution import Forward, Linear, Mode, layer_inputs
from jaxmerge.models.transformer import bind, parameters, shapes

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": jax.nn.gelu}


@dataclass(frozen=True)
class Config:
    """A perceptron.

    Attributes:
      inputs: numbers of an example, whatever its shape.
      hidden: width of each hidden layer; the last is that of the features.
      bias: whether layers have one (GPM and its relatives have none).
      activation: "relu", "tanh" or "gelu" (the tanh approximation).
      dropout: rates in [0, 1) behind the hidden layers in training; () for none.
    """

    inputs: int = 784
    hidden: tuple[int, ...] = (100, 100)
    bias: bool = True
    activation: str = "relu"
    dropout: tuple[float, ...] = ()

    def __post_init__(self):
        wrong = []
        for name, kinds, words in (
            ("hidden", int | np.integer, "a list of widths, such as [100, 100]"),
            ("dropout", float | int | np.number, "a list of rates, such as [0.2, 0.5]"),
        ):
            found = getattr(self, name)
            many = isinstance(found, list | tuple | np.ndarray)
            if not many or not all(isinstance(x, kinds) for x in found):
                wrong.append(f"{name} is {words}; found {found!r}")
            else:
                object.__setattr__(self, name, tuple(found))
        if wrong:
            raise ValueError(f"MLP config: {'; '.join(wrong)}")
        if self.inputs < 1:
            wrong.append(f"inputs {self.inputs}, expected at least 1")
        if not self.hidden or any(width < 1 for width in self.hidden):
            wrong.append(f"hidden {self.hidden}, expected one layer or more of width 1 or more")
        if self.dropout and len(self.dropout) != len(self.hidden):
            wrong.append(f"dropout {self.dropout}, expected {len(self.hidden)} rates, one a layer")
        if not all(0 <= rate < 1 for rate in self.dropout):
            wrong.append(f"dropout {self.dropout}, expected rates in [0, 1)")
        if self.activation not in ACTIVATIONS:
            known = ", ".join(sorted(ACTIVATIONS))
            wrong.append(f"activation {self.activation!r}, expected one of {known}")
        if wrong:
            raise ValueError(f"MLP config: {'; '.join(wrong)}")

    @property
    def features(self) -> int:
        """Width of the features."""
        return self.hidden[-1]


class Mlp(nnx.Module):
    """Examples `[batch, ...]` -> features `[batch, hidden[-1]]`; children `layer_0`, ..."""

    def __init__(self, config: Config, rngs: nnx.Rngs | None):
        sizes = (config.inputs, *config.hidden)
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            setattr(self, f"layer_{index}", Linear(inputs, outputs, rngs, config.bias))
        self.config = config

    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        for index in range(len(self.config.hidden)):
            layer = getattr(self, f"layer_{index}")
            x = ACTIVATIONS[self.config.activation](layer(x, mode))
            x = mode.drop(x, self.config.dropout[index], index) if self.config.dropout else x
        return x


def init(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters as torch draws those of `Linear`: even in +-1 / sqrt(fan in).

    >>> sorted(init(Config(4, (3,)), jax.random.key(0)))
    ['layer_0/bias', 'layer_0/kernel']
    """
    return parameters(Mlp(config, nnx.Rngs(params=key)))


def param_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the architecture; nothing is allocated."""
    return dict(sorted(shapes(Mlp, config).items()))


@functools.partial(jax.jit, static_argnames=("config", "inputs", "dtype"))
def forward(
    config: Config,
    params: Mapping[str, jax.Array],
    x: jax.Array,
    *,
    key: jax.Array | None = None,
    inputs: bool = False,
    dtype: str = "float32",
) -> Forward:
    """Features of examples, and the inputs of all kernels where asked for.

    Args:
      config: the architecture (static).
      params: flat mapping; names that are not the tower's (a head) are ignored.
      x: floats `[batch, ...]`, `config.inputs` numbers an example.
      key: of dropout, in training; None drops nothing.
      inputs: give the inputs of all kernels too (static).
      dtype: of the matrix products, "float32" or "bfloat16" (static).

    Raises:
      KeyError: parameters that are missing, all listed.
      ValueError: parameters or examples of another shape than the config says.
    """
    if x.ndim < 2 or math.prod(x.shape[1:]) != config.inputs:
        raise ValueError(
            f"inputs: found shape {x.shape}, expected (batch, ...) with {config.inputs} numbers"
            " an example"
        )
    mode = Mode(train=key is not None, key=key, inputs=[] if inputs else None)
    module = bind(Mlp, config, params)
    output = module(x.reshape(len(x), -1).astype(dtype), mode)
    return Forward(output.astype(jnp.float32), {}, layer_inputs(module, mode))


def features(config: Config, params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """float32 `[batch, hidden[-1]]`; as `forward`."""
    return forward(config, params, x).features
