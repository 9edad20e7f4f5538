"""The parts every transformer here is made of: dense, layer norm, attention, MLP.

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmerge.models.packing import Packed, gather, spread


@dataclass(frozen=True)
class Compute:
    """How a forward pass is carried out; never what it computes.

    Attributes:
      dtype: of the matrix products, "float32" or "bfloat16".
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


ACTIVATIONS: dict[str, Callable] = {"quick_gelu": quick_gelu, "gelu": gelu}


def normal(rngs: nnx.Rngs | None, std: float, *shape: int) -> nnx.Param:
    """A parameter drawn from a normal distribution; zeros where only its shape is wanted."""
    if rngs is None:
        return nnx.Param(jnp.zeros(shape))
    return nnx.Param(_normal(rngs.params(), std, shape))


@functools.partial(jax.jit, static_argnums=2)
def _normal(key: jax.Array, std: float, shape: tuple[int, ...]) -> jax.Array:
    return std * jax.random.normal(key, shape)


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
        y = x.reshape(-1, x.shape[-1]) @ kernel
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


class Attention(nnx.Module):
    """Multi-head self-attention with separate query, key and value kernels."""

    def __init__(
        self, width: int, heads: int, std_in: float, std_out: float, rngs: nnx.Rngs | None
    ):
        self.query = Dense(width, width, std_in, rngs)
        self.key = Dense(width, width, std_in, rngs)
        self.value = Dense(width, width, std_in, rngs)
        self.out = Dense(width, width, std_out, rngs)
        self.heads = heads

    def __call__(
        self,
        x: jax.Array,
        compute: Compute,
        causal: bool = False,
        keep: jax.Array | None = None,
        source: jax.Array | None = None,
        bias: jax.Array | None = None,
        packed: Packed | None = None,
    ) -> jax.Array:
        """Attends from x to `source` (x itself unless given), both `[batch, tokens, width]`.

        `keep` `[batch, tokens]` (bool) marks the tokens of the source that may be looked at, `bias`
        `[1, heads, tokens, tokens]` is added to the scores.
        With `packed`, x is `[T, width]`, the tokens of all sentences without padding.
        """
        source = x if source is None else source
        query, key, value = self.query(x), self.key(source), self.value(source)
        if packed is not None:
            query, key, value = (spread(t, packed) for t in (query, key, value))
        query, key, value = (t.reshape(*t.shape[:2], self.heads, -1) for t in (query, key, value))
        # A single query has nothing to fuse, and cuDNN does not take every mask with one.
        if compute.attention == "plain" or query.shape[1] == 1:
            mixed = plain_attention(query, key, value, causal, keep, bias)
        else:
            mixed = jax.nn.dot_product_attention(
                query,
                key,
                value,
                bias=None if bias is None else bias.astype(query.dtype),
                mask=None if keep is None else keep[:, None, None, :],
                is_causal=causal,
                implementation="cudnn" if compute.attention == "cudnn" else None,
            )
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        return self.out(mixed if packed is None else gather(mixed, packed))


def plain_attention(
    query, key, value, causal: bool, keep: jax.Array | None, bias: jax.Array | None = None
) -> jax.Array:
    """softmax(q k' / sqrt(d) + bias) v on `[batch, tokens, heads, depth]`, softmax in float32."""
    batch, tokens, heads, depth = query.shape
    query, key, value = (
        t.transpose(0, 2, 1, 3).reshape(batch * heads, -1, depth) for t in (query, key, value)
    )
    scores = (query * depth**-0.5) @ key.transpose(0, 2, 1)
    scores = scores.astype(jnp.float32).reshape(batch, heads, tokens, -1)
    if bias is not None:
        scores = scores + bias
    lowest = jnp.finfo(jnp.float32).min
    if causal:
        seen = jnp.tril(jnp.ones((tokens, tokens), bool))
        scores = jnp.where(seen[None, None], scores, lowest)
    if keep is not None:
        scores = jnp.where(keep[:, None, None, :], scores, lowest)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = weights.reshape(batch * heads, tokens, -1) @ value
    return mixed.reshape(batch, heads, tokens, depth).transpose(0, 2, 1, 3)


class Mlp(nnx.Module):
    """`down(activation(up(x)))`."""

    def __init__(self, width, hidden, activation: str, std_up, std_down, rngs: nnx.Rngs | None):
        self.up = Dense(width, hidden, std_up, rngs)
        self.down = Dense(hidden, width, std_down, rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


def add_blocks(module: nnx.Module, count: int, build: Callable[[], nnx.Module]) -> None:
    """Gives a module the children `block_00`, `block_01`, ..."""
    for index in range(count):
        setattr(module, f"block_{index:02d}", build())


def blocks_of(module: nnx.Module, count: int) -> list[nnx.Module]:
    """The children that `add_blocks` gave it, in order."""
    return [getattr(module, f"block_{index:02d}") for index in range(count)]


def run_blocks(
    blocks: list[nnx.Module], x: jax.Array, compute: Compute, last: Mapping | None = None, **options
) -> jax.Array:
    """Applies blocks of one shape in turn, as `compute.scan` and `compute.remat` say.

    `options` go to every block, `last` to the last one in their place (it may be asked for the
    state of one token alone).
    """
    parts = [nnx.split(block) for block in blocks]
    graph, states = parts[0][0], [state for _, state in parts]

    def step(options: Mapping):
        run = lambda x, state: nnx.merge(graph, state)(x, compute, **options)
        if compute.remat is None:
            return run
        dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        return jax.checkpoint(run, policy=dots if compute.remat == "dots" else None)

    ending = [] if last is None else [states.pop()]
    if compute.scan and states:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        x = jax.lax.scan(lambda x, state: (step(options)(x, state), None), x, stacked)[0]
    else:
        for state in states:
            x = step(options)(x, state)
    for state in ending:
        x = step(last or {})(x, state)
    return x


@functools.cache
def _skeleton(build: Callable[..., nnx.Module], config):
    """The graph of `build(config, None)` and its (shape-only) state; nothing is allocated."""
    module = nnx.eval_shape(lambda: build(config, None))
    graph, state = nnx.split(module)
    return graph, {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def shapes(build: Callable[..., nnx.Module], config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of `build(config, ...)`, without allocating any."""
    return {name: leaf.get_value().shape for name, leaf in _skeleton(build, config)[1].items()}


def bind(build: Callable[..., nnx.Module], config, params: Mapping) -> nnx.Module:
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
    return nnx.merge(graph, nnx.from_flat_state(flat))


def parameters(module: nnx.Module) -> dict[str, jax.Array]:
    """Name -> array of all that a module predicts with, batch statistics included, names sorted."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    return dict(sorted(("/".join(map(str, path)), leaf.get_value()) for path, leaf in flat))
