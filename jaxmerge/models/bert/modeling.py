"""BERT's encoder and the pure functions over it.

Word, position and type embeddings, a layer norm, then post-norm blocks

    x <- norm1(x + attn(x));  x <- norm2(x + mlp(x))

and, as sentence-transformers does it, the mean of the states over a sentence's tokens, scaled to
unit length.

Source: Devlin et al. 2018 (arXiv 1810.04805); Reimers & Gurevych 2019 (arXiv 1908.10084),
section 3.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.models.bert.config import Config
from jaxmerge.models.transformer import (
    Attention,
    Compute,
    Dense,
    LayerNorm,
    Mlp,
    bind,
    normal,
    parameters,
    run_blocks,
    shapes,
)

STD = 0.02


class Block(nnx.Module):
    """A post-norm transformer block."""

    def __init__(self, config: Config, rngs: nnx.Rngs | None):
        self.attn = Attention(config.width, config.heads, STD, STD, rngs)
        self.norm1 = LayerNorm(config.width, config.eps)
        self.mlp = Mlp(config.width, config.hidden, config.activation, STD, STD, rngs)
        self.norm2 = LayerNorm(config.width, config.eps)

    def __call__(self, x: jax.Array, compute: Compute, keep: jax.Array) -> jax.Array:
        x = self.norm1(x + self.attn(x, compute, keep=keep))
        return self.norm2(x + self.mlp(x))


class Tower(nnx.Module):
    """Token ids `[batch, tokens]` -> states `[batch, tokens, width]`."""

    def __init__(self, config: Config, rngs: nnx.Rngs | None):
        def table(rows: int) -> nnx.Param:
            return normal(rngs, STD, rows, config.width)

        self.token = table(config.vocab)
        self.position = table(config.positions)
        self.type = table(config.types)
        self.embed_norm = LayerNorm(config.width, config.eps)
        for index in range(config.layers):
            setattr(self, f"block_{index:02d}", Block(config, rngs))
        if config.pooler:
            self.pooler = Dense(config.width, config.width, STD, rngs)
        self.config = config

    def __call__(self, tokens: jax.Array, keep: jax.Array, compute: Compute) -> jax.Array:
        x = jnp.take(self.token[...], tokens, axis=0)
        x = x + self.type[...][None, :1]
        x = x + self.position[...][None, : tokens.shape[1]]
        x = self.embed_norm(x).astype(compute.dtype)
        blocks = [getattr(self, f"block_{index:02d}") for index in range(self.config.layers)]
        return run_blocks(blocks, x, compute, keep=keep)


def init(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters as BERT's: normal with deviation 0.02, biases 0, norms 1.

    >>> small = Config(vocab=20, positions=8, width=8, layers=1, heads=2, hidden=16, max_tokens=8)
    >>> init(small, jax.random.key(0))["text/block_00/attn/query/kernel"].shape
    (8, 8)
    """
    tower = parameters(Tower(config, nnx.Rngs(params=key)))
    return {f"text/{name}": leaf for name, leaf in tower.items()}


def param_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the architecture; nothing is allocated."""
    return {f"text/{name}": shape for name, shape in sorted(shapes(Tower, config).items())}


@functools.partial(jax.jit, static_argnums=(0, 4))
def _states(config: Config, params: dict, tokens, keep, compute: Compute) -> jax.Array:
    return bind(Tower, config, params)(tokens, keep, compute)


def text_states(
    config: Config, params: Mapping, tokens: jax.Array, *, compute: Compute = Compute()
) -> jax.Array:
    """The state of every token, `[batch, tokens, width]`; padding is not looked at.

    Args, Raises: as `text_features`.
    """
    if tokens.ndim != 2 or tokens.shape[1] > config.positions:
        raise ValueError(
            f"tokens: found shape {tokens.shape}, expected (batch, at most {config.positions})"
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens: found dtype {tokens.dtype}, expected integers")
    own = {
        name.removeprefix("text/"): leaf
        for name, leaf in params.items()
        if name.startswith("text/")
    }
    return _states(config, own, tokens, tokens != config.pad, compute)


def text_features(
    config: Config, params: Mapping, tokens: jax.Array, *, compute: Compute = Compute()
) -> jax.Array:
    """One vector a sentence.

    Args:
      config: the architecture and the pooling (static).
      params: flat mapping name -> array.
      tokens: integers `[batch, length]`, shorter sentences filled up with `config.pad`.
      compute: dtype, form of the attention, scan, remat (static).

    Returns:
      float32 `[batch, width]`, of unit length where `config.normalise`.

    Raises:
      ValueError: tokens that are no matrix or longer than the positions; parameters of another
        shape than the config says.
      TypeError: tokens that are not integers.
      KeyError: parameters that are missing.
    """
    return pool(config, text_states(config, params, tokens, compute=compute), tokens)


@functools.partial(jax.jit, static_argnums=0)
def pool(config: Config, states: jax.Array, tokens: jax.Array) -> jax.Array:
    """States `[batch, tokens, width]` to one float32 vector a sentence, as the config says."""
    states = states.astype(jnp.float32)
    if config.pooling == "cls":
        pooled = states[:, 0]
    else:
        keep = (tokens != config.pad).astype(jnp.float32)
        pooled = jnp.sum(states * keep[:, :, None], axis=1)
        pooled = pooled / jnp.maximum(jnp.sum(keep, axis=1, keepdims=True), 1e-9)
    if config.normalise:
        length = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
        pooled = pooled / jnp.maximum(length, 1e-12)
    return pooled
