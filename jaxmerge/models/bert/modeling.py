"""BERT's and MPNet's encoder and the pure functions over it.

Word, position and type embeddings, a layer norm, then post-norm blocks

    x <- norm1(x + attn(x));  x <- norm2(x + mlp(x))

MPNet has no types and adds a learnt bias to the scores of attention, one a head and a bucket of
relative positions, the same in all blocks. Then, as sentence-transformers does it, the mean of the
states over a sentence's tokens, scaled to unit length.

Source: Devlin et al. 2018 (arXiv 1810.04805); Reimers & Gurevych 2019 (arXiv 1908.10084),
section 3; Song et al. 2020 (arXiv 2004.09297).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxmerge.core.types import Array
from jaxmerge.models.attention import Attention
from jaxmerge.models.bert.config import Config
from jaxmerge.models.packing import Packed, spread
from jaxmerge.models.transformer import (
    Compute,
    Dense,
    LayerNorm,
    Mlp,
    add_blocks,
    bind,
    blocks_of,
    check_ids,
    check_inputs,
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

    def __call__(self, x: jax.Array, compute: Compute, **which) -> jax.Array:
        x = self.norm1(x + self.attn(x, compute, **which))
        return self.norm2(x + self.mlp(x))


class Tower(nnx.Module):
    """Token ids `[batch, tokens]`, or packed, -> states `[batch, tokens, width]`."""

    def __init__(self, config: Config, rngs: nnx.Rngs | None):
        def table(rows: int) -> nnx.Param:
            return normal(rngs, STD, rows, config.width)

        self.token = table(config.vocab)
        self.position = table(config.positions)
        if config.types:
            self.type = table(config.types)
        if config.buckets:
            self.relative = normal(rngs, STD, config.buckets, config.heads)
        self.embed_norm = LayerNorm(config.width, config.eps)
        add_blocks(self, config.layers, lambda: Block(config, rngs))
        if config.pooler:
            self.pooler = Dense(config.width, config.width, STD, rngs)
        self.config = config

    def __call__(self, tokens: Array | Packed, compute: Compute) -> jax.Array:
        blocks = blocks_of(self, self.config.layers)
        which = {}
        if self.config.buckets:
            length = (tokens.tokens if isinstance(tokens, Packed) else tokens).shape[1]
            bias = self.relative[...][buckets(length, self.config.buckets)]
            which["bias"] = bias.transpose(2, 0, 1)[None]
        if not isinstance(tokens, Packed):
            positions = jnp.arange(tokens.shape[1])[None]
            keep = tokens != self.config.pad
            x = self.embed(tokens, positions, compute)
            return run_blocks(blocks, x, compute, keep=keep, **which)
        keep = tokens.tokens != self.config.pad
        words = jnp.take(tokens.tokens.reshape(-1), tokens.at, mode="clip")
        x = self.embed(words, tokens.position, compute)
        return spread(run_blocks(blocks, x, compute, keep=keep, packed=tokens, **which), tokens)

    def embed(self, words: jax.Array, positions: jax.Array, compute: Compute) -> jax.Array:
        """Word, type and position embeddings, normalised."""
        x = jnp.take(self.token[...], words, axis=0, mode="clip")
        if self.config.types:
            x = x + self.type[...][0]
        positions = positions + self.config.first
        x = x + jnp.take(self.position[...], positions, axis=0, mode="clip")
        return self.embed_norm(x).astype(compute.dtype)


def buckets(length: int, count: int, far: int = 128) -> np.ndarray:
    """The bucket of every pair of tokens, int `[query, key]`, by how far and to which side.

    Half of the buckets are for keys behind the query. Of a half, the first half holds one distance
    each; from there on they widen with the logarithm, and the last one begins near `far`.

    Source: Raffel et al. 2020 (arXiv 1910.10683), section 2.1, as MPNet uses it.

    >>> buckets(3, 8)
    array([[0, 5, 6],
           [1, 0, 5],
           [2, 1, 0]], dtype=int32)
    """
    half, exact = count // 2, count // 4
    ahead = np.arange(length)[None] - np.arange(length)[:, None]
    distance = np.abs(ahead)
    share = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.log(far / exact)
    wide = np.minimum(exact + (share * (half - exact)).astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, wide) + half * (ahead > 0)).astype(np.int32)


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


@functools.partial(jax.jit, static_argnums=(0, 3))
def _states(config: Config, params: dict, tokens, compute: Compute) -> jax.Array:
    return bind(Tower, config, params)(tokens, compute)


def text_states(
    config: Config, params: Mapping, tokens: Array | Packed, *, compute: Compute = Compute()
) -> jax.Array:
    """The state of every token, `[batch, tokens, width]`; padding is not looked at.

    Args, Raises: as `text_features`.
    """
    shown = tokens.tokens if isinstance(tokens, Packed) else tokens
    check_inputs("tokens", shown, compute)
    if shown.ndim != 2 or shown.shape[1] > config.room:
        raise ValueError(
            f"tokens: found shape {shown.shape}, expected (batch, at most {config.room})"
        )
    if not jnp.issubdtype(shown.dtype, jnp.integer):
        raise TypeError(f"tokens: found dtype {shown.dtype}, expected integers")
    check_ids(shown, config.vocab)
    own = {
        name.removeprefix("text/"): leaf
        for name, leaf in params.items()
        if name.startswith("text/")
    }
    return _states(config, own, tokens, compute)


def text_features(
    config: Config, params: Mapping, tokens: Array | Packed, *, compute: Compute = Compute()
) -> jax.Array:
    """One vector a sentence.

    Args:
      config: the architecture and the pooling (static).
      params: flat mapping name -> array.
      tokens: integers `[batch, length]`, shorter sentences filled up with `config.pad`; or the same
        as `jaxmerge.models.packing.pack` packs it, which costs no work for padding.
      compute: dtype, form of the attention, scan, remat (static).

    Returns:
      float32 `[batch, width]`, of unit length where `config.normalise`.

    Raises:
      ValueError: tokens that are no matrix or longer than the positions; parameters of another
        shape than the config says.
      TypeError: tokens that are not integers.
      KeyError: parameters that are missing.
    """
    states = text_states(config, params, tokens, compute=compute)
    return pool(config, states, tokens.tokens if isinstance(tokens, Packed) else tokens)


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
