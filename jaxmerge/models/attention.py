"""Attention, the one that CLIP, BERT and the decoders share.

    softmax(cap(scale q k') + bias) v,  cap(s) = c tanh(s / c) where there is a cap

Heads of queries may share keys and values (`kv_heads`), queries and keys may be normalised and
rotated before they meet, keys and values may be preceded by a learnt prefix or kept in a cache.
Who may look at whom is said by `causal`, `keep` and `mask`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.models.packing import Packed, gather, spread
from jaxmerge.models.transformer import Compute, Dense


class Cache(NamedTuple):
    """Keys and values of one layer, of fixed size.

    Attributes:
      key, value: `[batch * kv_heads, slots, depth]`; keys are normalised and rotated already. With
        batch and heads in one axis, as the matrix products have them, XLA writes new tokens in
        place; with two axes it copied the cache for every token.
    """

    key: jax.Array
    value: jax.Array


class Prefix(NamedTuple):
    """Keys and values that stand before a sequence and that every token may look at.

    Attributes:
      key, value: `[batch or 1, kv_heads, tokens, depth]`; they are not rotated.
    """

    key: jax.Array
    value: jax.Array


class Attention(nnx.Module):
    """Multi-head attention with separate query, key and value kernels.

    Args:
      width: of the states.
      heads: of the queries.
      std_in, std_out: deviations of the random kernels.
      kv_heads: heads of keys and values; each serves `heads / kv_heads` heads of queries.
      depth: width of a head, otherwise `width / heads`.
      bias, out_bias: whether query, key and value, and the output, have one.
      norm: depth -> the norm of queries and keys, applied to each head before the rotation.
      scale: of the scores, otherwise `depth ** -0.5`.
      cap: the greatest absolute score, reached smoothly.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        std_in: float,
        std_out: float,
        rngs: nnx.Rngs | None,
        *,
        kv_heads: int | None = None,
        depth: int | None = None,
        bias: bool = True,
        out_bias: bool = True,
        norm: Callable[[int], nnx.Module] | None = None,
        scale: float | None = None,
        cap: float | None = None,
    ):
        self.depth = width // heads if depth is None else depth
        self.heads, self.kv_heads = heads, heads if kv_heads is None else kv_heads
        self.scale, self.cap = scale, cap
        inner, shared = heads * self.depth, self.kv_heads * self.depth
        self.query = Dense(width, inner, std_in, rngs, bias=bias)
        self.key = Dense(width, shared, std_in, rngs, bias=bias)
        self.value = Dense(width, shared, std_in, rngs, bias=bias)
        self.out = Dense(inner, width, std_out, rngs, bias=out_bias)
        if norm is not None:
            self.query_norm, self.key_norm = norm(self.depth), norm(self.depth)

    def __call__(
        self,
        x: jax.Array,
        compute: Compute,
        causal: bool = False,
        keep: jax.Array | None = None,
        source: jax.Array | None = None,
        bias: jax.Array | None = None,
        packed: Packed | None = None,
        *,
        mask: jax.Array | None = None,
        rotate: Callable[[jax.Array], jax.Array] | None = None,
        prefix: Prefix | None = None,
        cache: Cache | None = None,
        slot: jax.Array | int = 0,
    ) -> Any:
        """Attends from x to `source` (x itself unless given), both `[batch, tokens, width]`.

        Args:
          causal: whether a token sees none behind it.
          keep: bool `[batch, tokens]`, the tokens of the source that may be looked at.
          bias: `[1, heads, tokens, tokens]`, added to the scores.
          packed: x is `[T, width]`, the tokens of all sentences without padding.
          mask: bool `[batch, queries, keys]`, who sees whom; keys are slots where there is a cache.
          rotate: applied to queries and keys `[batch, tokens, heads, depth]`.
          prefix: keys and values before all others; `mask` does not speak of them.
          cache: keys and values are written into it from `slot` on, and all of it is looked at.

        Returns:
          `[batch, tokens, width]`; with a cache a pair of that and the cache with the new tokens.
        """
        source = x if source is None else source
        query, key, value = self.query(x), self.key(source), self.value(source)
        if packed is not None:
            query, key, value = (spread(t, packed) for t in (query, key, value))
        query, key, value = (
            t.reshape(*t.shape[:2], heads, self.depth)
            for t, heads in ((query, self.heads), (key, self.kv_heads), (value, self.kv_heads))
        )
        if hasattr(self, "query_norm"):
            query, key = self.query_norm(query), self.key_norm(key)
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        key, value = (t.transpose(0, 2, 1, 3) for t in (key, value))
        if cache is not None:
            form, where = key.shape[:2], (0, slot, 0)
            new = (t.reshape(-1, *t.shape[2:]).astype(cache.key.dtype) for t in (key, value))
            cache = Cache(*map(jax.lax.dynamic_update_slice, cache, new, (where, where)))
            key, value = (t.astype(query.dtype).reshape(*form, *t.shape[1:]) for t in cache)
        if prefix is not None:
            key, value = (_before(p, t) for p, t in zip(prefix, (key, value), strict=True))
            if mask is not None:
                mask = jnp.pad(mask, ((0, 0), (0, 0), (prefix.key.shape[2], 0)), constant_values=1)
        # A single query has nothing to fuse, and cuDNN does not take every mask with one.
        plain = compute.attention == "plain" or query.shape[1] == 1 or self.cap is not None
        if plain:
            mixed = plain_attention(
                query, key, value, causal, keep, bias, mask, self.scale, self.cap
            )
        else:
            seen = None if keep is None else keep[:, None, None, :]
            key, value = (t.transpose(0, 2, 1, 3) for t in (key, value))
            fused = even_attention if compute.attention == "cudnn" else jax.nn.dot_product_attention
            mixed = fused(
                query, key, value,
                bias=None if bias is None else bias.astype(query.dtype),
                mask=seen if mask is None else mask[:, None], scale=self.scale, is_causal=causal,
                implementation="cudnn" if compute.attention == "cudnn" else None,
            )  # fmt: skip
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        out = self.out(mixed if packed is None else gather(mixed, packed))
        return out if cache is None else (out, cache)


def _before(prefix: jax.Array, tokens: jax.Array) -> jax.Array:
    prefix = jnp.broadcast_to(prefix, (tokens.shape[0], *prefix.shape[1:]))
    return jnp.concatenate([prefix.astype(tokens.dtype), tokens], axis=2)


def even_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, bias=None, mask=None, **options
) -> jax.Array:
    """`jax.nn.dot_product_attention` with one token more where their number is odd.

    cuDNN's backward pass takes even numbers only, and a ViT-B/16 has 197 tokens. No token looks at
    the one that is added.

    Args:
      query, key, value: `[batch, tokens, heads, depth]`.
      bias, mask: `[batch or 1, heads or 1, queries or 1, keys]`.
      options: as there.
    """
    tokens, keys = query.shape[1], key.shape[1]
    if tokens % 2 or keys % 2:
        query = jnp.pad(query, ((0, 0), (0, tokens % 2), (0, 0), (0, 0)))
        key, value = (jnp.pad(t, ((0, 0), (0, keys % 2), (0, 0), (0, 0))) for t in (key, value))
        wider = lambda t, q: jnp.pad(t, ((0, 0), (0, 0), (0, q), (0, keys % 2)))
        more = lambda t: wider(t, tokens % 2 if t.shape[2] > 1 else 0)
        bias, mask = (None if t is None else more(t) for t in (bias, mask))
        if mask is None and keys % 2:
            options["key_value_seq_lengths"] = jnp.full(len(key), keys, jnp.int32)
    mixed = jax.nn.dot_product_attention(query, key, value, bias, mask, **options)
    return mixed[:, :tokens]


def plain_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool = False,
    keep: jax.Array | None = None,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """softmax(cap(scale q k') + bias) v, softmax in float32.

    Args:
      query: `[batch, tokens, heads, depth]`.
      key, value: `[batch, kv_heads, keys, depth]`; head h of the queries uses head
        `h // (heads / kv_heads)`.
      causal, keep, bias, mask: as `Attention`.
      scale, cap: as `Attention`'s.

    Returns:
      `[batch, tokens, heads, depth]`. A token that may see none looks at all alike.
    """
    batch, tokens, heads, depth = query.shape
    shared = key.shape[1]
    query = query.transpose(0, 2, 1, 3).reshape(batch * shared, -1, depth)
    key, value = (t.reshape(batch * shared, -1, depth) for t in (key, value))
    scores = (query * (depth**-0.5 if scale is None else scale)) @ key.transpose(0, 2, 1)
    scores = scores.astype(jnp.float32).reshape(batch, heads, tokens, -1)
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias
    lowest = jnp.finfo(jnp.float32).min
    if causal:
        seen = jnp.tril(jnp.ones((tokens, tokens), bool))
        scores = jnp.where(seen[None, None], scores, lowest)
    if keep is not None:
        scores = jnp.where(keep[:, None, None, :], scores, lowest)
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, lowest)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = weights.reshape(batch * shared, -1, weights.shape[-1]) @ value
    return mixed.reshape(batch, heads, tokens, depth).transpose(0, 2, 1, 3)
