"""One decoder for all families: a Llama with what the config adds to it.

    x <- x + attn(norm(x));  x <- x + mlp(norm(x))

with RMSNorm, rotary positions, heads of queries that share keys and values, a gated MLP (or a
mixture of them), and, where the family has it, norms behind attention and MLP too, norms of
queries and keys, windows, soft caps. The logits are `final_norm(x) @ head`.

The border is pure functions over a flat mapping name -> array such as
`"block_03/attn/query/kernel"` (kernels `[in, out]`); the config is static.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.core.types import Array
from jaxmerge.models.attention import Attention, Cache
from jaxmerge.models.decoder.config import Config
from jaxmerge.models.decoder.experts import Experts
from jaxmerge.models.decoder.rope import turn
from jaxmerge.models.transformer import (
    Compute,
    Dense,
    GatedMlp,
    RMSNorm,
    add_blocks,
    bind,
    blocks_of,
    check_ids,
    check_inputs,
    normal,
    parameters,
    product,
    run_blocks,
    shapes,
)


class Positions(NamedTuple):
    """Where tokens stand.

    Attributes:
      index: int `[batch, tokens]`, the place of a token in its document, from 0.
      segment: int `[batch, tokens]`, the document that it belongs to, from 1; 0 is padding.
    """

    index: Array
    segment: Array


def positions_of(mask: Array) -> Positions:
    """The positions of one document a row, given where its tokens are.

    Args:
      mask: `[batch, tokens]`, 0 where there is padding, on either side.
    """
    mask = jnp.asarray(mask, jnp.int32)
    return Positions(jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0), mask)


def visible(query: Positions, key: Positions, window: jax.Array | int) -> jax.Array:
    """Which keys a query sees, bool `[batch, queries, keys]`.

    Those of its own document that are not behind it and less than `window` before it.
    """
    same = query.segment[:, :, None] == key.segment[:, None, :]
    ago = query.index[:, :, None] - key.index[:, None, :]
    return same & (key.segment[:, None, :] > 0) & (ago >= 0) & (ago < window)


class Block(nnx.Module):
    """One layer."""

    def __init__(self, config: Config, layer: int, rngs: nnx.Rngs | None):
        norm = lambda width: RMSNorm(width, config.eps, config.norm_offset)
        self.norm1 = norm(config.width)
        self.attn = Attention(
            config.width,
            config.heads,
            config.std,
            config.std,
            rngs,
            kv_heads=config.kv_heads,
            depth=config.depth,
            bias=config.bias,
            out_bias=config.out_bias,
            norm=norm if config.qk_norm else None,
            scale=config.score_scale,
            cap=config.score_cap,
        )
        self.norm2 = norm(config.width)
        if config.experts and config.experts.layers[layer]:
            self.moe = Experts(config.width, config.experts, config, rngs)
        else:
            sizes = config.width, config.hidden, config.activation, config.std
            self.mlp = GatedMlp(*sizes, rngs, bias=config.mlp_bias)
        if config.out_norms:
            self.out_norm1, self.out_norm2 = norm(config.width), norm(config.width)

    def __call__(
        self,
        x: jax.Array,
        compute: Compute,
        *,
        query: Positions,
        key: Positions,
        tables: tuple[jax.Array, jax.Array],
        slot: jax.Array | int,
        window: jax.Array | int,
        rope: jax.Array | int,
        cache: Cache | None,
    ) -> tuple[jax.Array, Cache | None]:
        cos, sin = (table[rope] for table in tables)
        mixed = self.attn(
            self.norm1(x),
            compute,
            mask=visible(query, key, window),
            rotate=lambda t: turn(t, cos, sin),
            cache=cache,
            slot=slot,
        )
        if cache is not None:
            mixed, cache = mixed
        x = x + (self.out_norm1(mixed) if hasattr(self, "out_norm1") else mixed)
        moved = (self.moe if hasattr(self, "moe") else self.mlp)(self.norm2(x))
        return x + (self.out_norm2(moved) if hasattr(self, "out_norm2") else moved), cache


class State(NamedTuple):
    """What a decoder has read so far, in arrays of fixed size.

    Attributes:
      layers: keys and values of each layer.
      positions: where the token of each slot stands, `[batch, slots]`; segment 0 where none is.
      slot: int, how many slots are filled.
    """

    layers: tuple[Cache, ...]
    positions: Positions
    slot: jax.Array


def empty_state(config: Config, batch: int, slots: int, dtype: str = "float32") -> State:
    """The state before the first token, of room for `slots` tokens a row.

    Memory: `2 layers batch slots kv_heads depth` numbers of `dtype`.
    """
    empty = jnp.zeros((batch * config.kv_heads, slots, config.depth), dtype)
    none = jnp.zeros((batch, slots), jnp.int32)
    layers = tuple(Cache(empty, empty) for _ in range(config.layers))
    return State(layers, Positions(none, none), jnp.zeros((), jnp.int32))


class Decoder(nnx.Module):
    """Token ids `[batch, tokens]` -> states `[batch, tokens, width]`, behind the final norm."""

    def __init__(self, config: Config, rngs: nnx.Rngs | None):
        self.token = normal(rngs, config.std, config.vocab, config.width)
        layers = iter(range(config.layers))
        add_blocks(self, config.layers, lambda: Block(config, next(layers), rngs))
        self.final_norm = RMSNorm(config.width, config.eps, config.norm_offset)
        if not config.tied:
            self.head = Dense(config.width, config.vocab, config.std, rngs, bias=False)
        self.config = config

    def embed(self, tokens: jax.Array, compute: Compute) -> jax.Array:
        """The embeddings, scaled where the family does."""
        x = jnp.take(self.token[...], tokens, axis=0, mode="clip").astype(compute.dtype)
        scale = self.config.embed_scale
        return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)

    def __call__(
        self,
        tokens: jax.Array,
        positions: Positions,
        compute: Compute,
        state: State | None = None,
        inner: bool = False,
    ) -> tuple[jax.Array, State | None]:
        """States of tokens, and with a `state` of tokens before them the state behind them.

        With `inner`, the states `[layers + 1, batch, tokens, width]` after the embedding and each
        layer (the last one behind the final norm).
        """
        config, blocks = self.config, blocks_of(self, self.config.layers)
        per_block = [
            {"window": window, "rope": rope, "cache": None if state is None else state.layers[i]}
            for i, (window, rope) in enumerate(zip(config.windows, config.rope, strict=True))
        ]
        tables = zip(*(rope.table(positions.index) for rope in config.ropes), strict=True)
        key, slot = positions, 0
        if state is not None:
            slot = state.slot
            put = functools.partial(jax.lax.dynamic_update_slice, start_indices=(0, slot))
            new = [p.astype(old.dtype) for p, old in zip(positions, state.positions, strict=True)]
            key = Positions(*(put(old, p) for old, p in zip(state.positions, new, strict=True)))
        options = {
            "query": positions,
            "key": key,
            "tables": tuple(jnp.stack(table) for table in tables),
            "slot": slot,
        }
        x = self.embed(tokens, compute)
        if inner:
            states = [x]
            for block, own in zip(blocks, per_block, strict=True):
                x, _ = block(x, compute, **options, **own)
                states.append(x)
            return jnp.stack([*states[:-1], self.final_norm(x)]), None
        x, caches = run_blocks(blocks, x, compute, per_block=per_block, **options)
        if state is not None:
            state = State(tuple(caches), key, state.slot + tokens.shape[1])
        return self.final_norm(x), state

    def logits(self, states: jax.Array) -> jax.Array:
        """float32 `[..., vocab]`."""
        if self.config.tied:
            rows = states.reshape(-1, states.shape[-1])
            table = self.token[...].astype(states.dtype)
            out = product(rows, table, transposed=True)
            out = out.reshape(*states.shape[:-1], -1)
        else:
            out = self.head(states)
        out = out.astype(jnp.float32)
        cap = self.config.logit_cap
        return out if cap is None else cap * jnp.tanh(out / cap)


def init(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters: normal with deviation `config.std`, norms at one.

    >>> sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    >>> tiny = Config.from_hf({"model_type": "llama", "num_hidden_layers": 1, **sizes})
    >>> init(tiny, jax.random.key(0))["block_00/mlp/gate/kernel"].shape
    (8, 16)
    """
    return parameters(Decoder(config, nnx.Rngs(params=key)))


def param_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the architecture; nothing is allocated."""
    return dict(sorted(shapes(Decoder, config).items()))


def _ready(config: Config, tokens, positions: Positions | None, compute: Compute) -> Positions:
    check_inputs("tokens", tokens, compute)
    if tokens.ndim != 2:
        raise ValueError(f"tokens: found shape {tokens.shape}, expected (batch, length)")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens: found dtype {tokens.dtype}, expected integers")
    if tokens.shape[1] > config.context and config.ropes[0].kind != "dynamic":
        raise ValueError(
            f"tokens: found {tokens.shape[1]} in a row, expected at most {config.context}, the "
            "model's context; cut them, or stretch the context in config.json"
        )
    check_ids(tokens, config.vocab)
    if positions is None:
        return positions_of(jnp.ones(tokens.shape, jnp.int32))
    if any(p.shape != tokens.shape for p in positions):
        given = " and ".join(str(p.shape) for p in positions)
        raise ValueError(f"positions: found shapes {given}, expected {tokens.shape} as the tokens")
    return positions


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _states(config, params, tokens, positions, compute: Compute, inner: bool):
    return bind(Decoder, config, params)(tokens, positions, compute, inner=inner)[0]


@functools.partial(jax.jit, static_argnums=(0, 4))
def _logits(config, params, tokens, positions, compute: Compute):
    decoder = bind(Decoder, config, params)
    return decoder.logits(decoder(tokens, positions, compute)[0])


def states(
    config: Config,
    params: Mapping,
    tokens: Array,
    positions: Positions | None = None,
    *,
    compute: Compute = Compute(),
    inner: bool = False,
) -> jax.Array:
    """The states of tokens behind the final norm, `[batch, tokens, width]`.

    Args:
      config: the architecture (static).
      params: flat mapping name -> array.
      tokens: integers `[batch, length]`.
      positions: where they stand; one document a row unless given. `positions_of` makes them from
        an attention mask.
      compute: dtype, form of the attention, scan, remat (static).
      inner: all states instead, `[layers + 1, batch, tokens, width]`: of the embedding, behind
        each layer, the last behind the final norm.

    Raises:
      ValueError: tokens that are no matrix, longer than the context or outside of the vocabulary;
        parameters of another shape than the config says.
      TypeError: tokens that are not integers.
      KeyError: parameters that are missing.
    """
    positions = _ready(config, tokens, positions, compute)
    return _states(config, dict(params), tokens, positions, compute, inner)


def logits(
    config: Config,
    params: Mapping,
    tokens: Array,
    positions: Positions | None = None,
    *,
    compute: Compute = Compute(),
) -> jax.Array:
    """The logits of the next token at every place, float32 `[batch, tokens, vocab]`.

    Args, Raises: as `states`.

    Memory: all logits; `jaxmerge.models.decoder.scoring` reduces them instead.
    """
    positions = _ready(config, tokens, positions, compute)
    return _logits(config, dict(params), tokens, positions, compute)
