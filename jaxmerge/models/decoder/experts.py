"""A mixture of experts in the place of a decoder's MLP, computed densely."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.models.decoder.config import Config, Mixture
from jaxmerge.models.transformer import Dense, GatedMlp


class Experts(nnx.Module):
    """A mixture of gated MLPs: every expert computes every token, and most weigh nothing.

        p = softmax(router(x));  y = sum over the chosen e of p_e expert_e(x)

    What is computed is what a sparse implementation computes; it costs `count / chosen` times as
    much, and needs no sorting of tokens.
    """

    def __init__(self, width: int, mixture: Mixture, config: Config, rngs: nnx.Rngs | None):
        std = config.std
        self.router = Dense(width, mixture.count, std, rngs, bias=False)
        for index in range(mixture.count):
            expert = GatedMlp(width, mixture.hidden, config.activation, std, rngs)
            setattr(self, f"expert_{index:02d}", expert)
        if mixture.shared:
            self.shared = GatedMlp(width, mixture.shared, config.activation, std, rngs)
            self.shared_gate = Dense(width, 1, std, rngs, bias=False)
        self.mixture = mixture

    def __call__(self, x: jax.Array) -> jax.Array:
        weights = self.weights(x).astype(x.dtype)
        out = jnp.zeros_like(x)
        for index in range(self.mixture.count):
            expert = getattr(self, f"expert_{index:02d}")
            out = out + weights[..., index, None] * expert(x)
        if self.mixture.shared:
            out = out + jax.nn.sigmoid(self.shared_gate(x)) * self.shared(x)
        return out

    def weights(self, x: jax.Array) -> jax.Array:
        """The weight of every expert, float32 `[batch, tokens, experts]`, 0 if not chosen."""
        shares = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)
        top, which = jax.lax.top_k(shares, self.mixture.chosen)
        if self.mixture.normalise:
            top = top / jnp.sum(top, axis=-1, keepdims=True)
        chosen = jax.nn.one_hot(which, self.mixture.count, dtype=top.dtype)
        return jnp.sum(chosen * top[..., None], axis=-2)
