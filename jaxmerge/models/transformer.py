"""The parts every transformer here is made of: dense, norms, MLPs, and how blocks are run.

Modules hold their parameters and nothing else; shapes and options come from a frozen config.
Hidden states are `[batch, tokens, width]`. A dense layer folds batch and tokens into the rows of
one matrix product: on CPU the gradient of its kernel is then a plain product too, which made a
training step of a small ViT 1.3 times as fast as the batched form.

Arithmetic follows `Compute`: matrix products in `dtype`, layer norms and softmax in float32,
parameters stay as they are (float32 master weights).

At the border parameters are a flat mapping from names such as `"block_00/attn/query/kernel"` to
arrays; `bind` puts such a mapping into a module, `parameters` takes it out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Built = TypeVar("Built", bound=nnx.Module)


@dataclass(frozen=True)
class Compute:
    """How a forward pass is carried out; never what it computes.

    Attributes:
      dtype: of the matrix products, "float32" or "bfloat16". What an accelerator makes of float32
        products is `jax_default_matmul_precision`'s to say: by default TF32 on NVIDIA GPUs and one
        pass of bfloat16 on TPUs; "highest" is what the parity tables were measured with.
      attention: "plain" (three matrix products, any backend) or "fused"
        (`jax.nn.dot_product_attention`, whose implementation the backend chooses), "cudnn"
        (the same, cuDNN flash attention demanded; needs a GPU and bfloat16).
      scan: run equal blocks by `lax.scan` over stacked parameters (faster to compile).
      remat: recompute each block in the backward pass instead of storing what is inside it;
        "dots" keeps the results of matrix products, "full" keeps nothing.
    """

    dtype: str = "float32"
    attention: str = "plain"
    scan: bool = False
    remat: str | None = None

    def __post_init__(self):
        allowed = {
            "dtype": ("float32", "bfloat16"),
            "attention": ("plain", "fused", "cudnn"),
            "scan": (False, True),
            "remat": (None, "dots", "full"),
        }
        wrong = [
            f"{field}={getattr(self, field)!r} (expected one of {', '.join(map(repr, known))})"
            for field, known in allowed.items()
            if getattr(self, field) not in known
        ]
        if wrong:
            raise ValueError(f"Compute: {'; '.join(wrong)}")


def check_inputs(name: str, inputs, compute: Compute) -> None:
    """Raises TypeError for what is no array, and for another thing than a `Compute`."""
    if not hasattr(inputs, "ndim"):
        raise TypeError(f"{name}: found {type(inputs).__name__}, expected an array")
    if not isinstance(compute, Compute):
        raise TypeError(f"compute: found {compute!r}, expected a Compute, as Compute('bfloat16')")


def check_ids(tokens, vocab: int) -> None:
    """Raises ValueError for token ids outside of the vocabulary; looks at numpy arrays only."""
    if isinstance(tokens, np.ndarray) and tokens.size:
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= vocab:
            raise ValueError(f"tokens: found ids {low} to {high}, expected 0 to {vocab - 1}")


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, `x * Phi(x)` (erf, not the tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI's cheap GELU, `x * sigmoid(1.702 x)`."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """The tanh approximation of GELU."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_new": gelu_tanh,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
}


def normal(rngs: nnx.Rngs | None, std: float, *shape: int) -> nnx.Param:
    """A parameter drawn from a normal distribution; zeros where only its shape is wanted."""
    if rngs is None:
        return nnx.Param(jnp.zeros(shape))
    return nnx.Param(_normal(rngs.params(), std, shape))


@functools.partial(jax.jit, static_argnums=2)
def _normal(key: jax.Array, std: float, shape: tuple[int, ...]) -> jax.Array:
    return std * jax.random.normal(key, shape)


FEW_ROWS = range(4, 25)  # where the swapped product took 0.5 to 0.8 of the time


def product(rows: jax.Array, kernel: jax.Array, transposed: bool = False) -> jax.Array:
    """`rows @ kernel`, `[n, in]` by `[in, out]`, or by `[out, in]` where it is `transposed`.

    XLA's product on a CPU rearranges its right operand before it multiplies. With few rows (a batch
    that generates, a short prompt) that costs as much as the product itself, so the operands are
    laid out such that the rows are what is rearranged; the sums are the same.
    """
    axis = 1 if transposed else 0
    few = rows.shape[0] in FEW_ROWS and kernel.size >= 1 << 16
    if not few or jax.default_backend() != "cpu":
        return jax.lax.dot_general(rows, kernel, (((1,), (axis,)), ((), ())))
    keep = jax.lax.optimization_barrier  # or XLA folds the transpositions into the plain product
    if transposed:
        return keep(jax.lax.dot_general(kernel, rows, (((1,), (1,)), ((), ())))).T
    return jax.lax.dot_general(keep(rows.T), kernel, (((0,), (0,)), ((), ())))


class Dense(nnx.Module):
    """`x @ kernel + bias`, kernel `[in, out]`."""

    def __init__(
        self, inputs: int, outputs: int, std: float, rngs: nnx.Rngs | None, bias: bool = True
    ):
        self.kernel = normal(rngs, std, inputs, outputs)
        if bias:
            self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        y = product(x.reshape(-1, x.shape[-1]), kernel)
        if hasattr(self, "bias"):
            y = y + self.bias[...].astype(x.dtype)[None]
        return y.reshape(*x.shape[:-1], -1)


class LayerNorm(nnx.Module):
    """`(x - mean) / sqrt(var + eps) * scale + bias` over the last axis, in float32."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
        rows = rows - jnp.mean(rows, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(rows), axis=-1, keepdims=True)
        rows = rows * jax.lax.rsqrt(variance + self.eps)
        rows = rows * self.scale[...].astype(jnp.float32)[None]
        rows = rows + self.bias[...].astype(jnp.float32)[None]
        return rows.astype(x.dtype).reshape(x.shape)


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x^2) + eps) * (offset + scale)` over the last axis, in float32.

    The offset is 0 for Llama's norm and 1 for Gemma's, whose scale is what is added to one.
    """

    def __init__(self, width: int, eps: float, offset: float = 0.0):
        self.scale = nnx.Param(jnp.full(width, 1.0 - offset))
        self.eps, self.offset = eps, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = x.astype(jnp.float32)
        rows = rows * jax.lax.rsqrt(jnp.mean(jnp.square(rows), -1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32) + self.offset
        return (rows * scale.reshape(*[1] * (x.ndim - 1), -1)).astype(x.dtype)


class Mlp(nnx.Module):
    """`down(activation(up(x)))`."""

    def __init__(self, width, hidden, activation: str, std_up, std_down, rngs: nnx.Rngs | None):
        self.up = Dense(width, hidden, std_up, rngs)
        self.down = Dense(hidden, width, std_down, rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class GatedMlp(nnx.Module):
    """`down(activation(gate(x)) * up(x))`."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: str,
        std: float,
        rngs: nnx.Rngs | None,
        bias: bool = False,
    ):
        self.gate = Dense(width, hidden, std, rngs, bias=bias)
        self.up = Dense(width, hidden, std, rngs, bias=bias)
        self.down = Dense(hidden, width, std, rngs, bias=bias)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))


def add_blocks(module: nnx.Module, count: int, build: Callable[[], nnx.Module]) -> None:
    """Gives a module the children `block_00`, `block_01`, ..."""
    for index in range(count):
        setattr(module, f"block_{index:02d}", build())


def blocks_of(module: nnx.Module, count: int) -> list[nnx.Module]:
    """The children that `add_blocks` gave it, in order."""
    return [getattr(module, f"block_{index:02d}") for index in range(count)]


def run_blocks(
    blocks: list[nnx.Module],
    x: jax.Array,
    compute: Compute,
    last: Mapping | None = None,
    per_block: Sequence[Mapping] | None = None,
    **options,
) -> Any:
    """Applies blocks in turn, as `compute.scan` and `compute.remat` say.

    Args:
      blocks: modules; scanned over where all are of one shape.
      last: options of the last block in the place of `options` (it may be asked for the state of
        one token alone).
      per_block: options of each block besides, of one structure; a block called with them returns
        its states and what else it has to give.
      options: go to every block.

    Returns:
      The states, or with `per_block` the states and a list of what the blocks gave.
    """
    parts = [nnx.split(block) for block in blocks]
    graphs, states = [graph for graph, _ in parts], [state for _, state in parts]

    def step(graph, options: Mapping):
        run = lambda x, state, own: nnx.merge(graph, state)(x, compute, **options, **own)
        if compute.remat is None:
            return run
        dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return jax.checkpoint(run, policy=dots if compute.remat == "dots" else None)

    own = [{}] * len(blocks) if per_block is None else list(per_block)
    gave: list[Any] = []
    ending = [] if last is None else [states.pop()]
    if compute.scan and states and all(graph == graphs[0] for graph in graphs):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        inputs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own[: len(states)])

        def body(x, inputs):
            out = step(graphs[0], options)(x, *inputs)
            return (out, None) if per_block is None else out

        x, out = jax.lax.scan(body, x, (stacked, inputs))
        gave = [jax.tree.map(lambda leaf, i=i: leaf[i], out) for i in range(len(states))]
    else:
        for graph, state, mine in zip(graphs, states, own, strict=False):
            out = step(graph, options)(x, state, mine)
            x, given = (out, None) if per_block is None else out
            gave.append(given)
    for state in ending:
        x = step(graphs[-1], last or {})(x, state, {})
    return x if per_block is None else (x, gave)


@functools.cache
def _skeleton(build: Callable[..., nnx.Module], config):
    """The graph of `build(config, None)` and its (shape-only) state; nothing is allocated."""
    module = nnx.eval_shape(lambda: build(config, None))
    graph, state = nnx.split(module)
    return graph, {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def shapes(build: Callable[..., nnx.Module], config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of `build(config, ...)`, without allocating any."""
    return {name: leaf.get_value().shape for name, leaf in _skeleton(build, config)[1].items()}


def bind(build: Callable[..., Built], config, params: Mapping) -> Built:
    """The module `build(config, ...)` holding `params` (names as `parameters` gives them)."""
    graph, leaves = _skeleton(build, config)
    missing = sorted(set(leaves) - set(params))
    if missing:
        raise KeyError(f"these parameters are missing: {', '.join(missing)}")
    wrong = [
        f"{name}: found {tuple(params[name].shape)}, expected {leaf.get_value().shape}"
        for name, leaf in leaves.items()
        if tuple(params[name].shape) != leaf.get_value().shape
    ]
    if wrong:
        raise ValueError(f"parameters of another shape than the config says: {'; '.join(wrong)}")
    flat = [
        (tuple(name.split("/")), leaf.replace(jnp.asarray(params[name])))
        for name, leaf in leaves.items()
    ]
    return cast(Built, nnx.merge(graph, nnx.from_flat_state(flat)))


def parameters(module: nnx.Module) -> dict[str, jax.Array]:
    """Name -> array of all that a module predicts with, batch statistics included, names sorted."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    return dict(sorted(("/".join(map(str, path)), leaf.get_value()) for path, leaf in flat))
