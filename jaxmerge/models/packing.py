"""Sentences without their padding: all tokens of a batch in one row, and the way there and back.

A batch `[sentences, length]` filled up to its longest sentence is often half padding.  Everything
in a transformer but attention treats each token by itself, so those parts run on the tokens alone,
`[tokens, width]`, and attention spreads its three inputs out again.  Results and gradients are
those of the padded batch.

    spread(x)[s, i] = x[back[s, i]]       gather(y)[t] = y.flat[at[t]]

`at` and `back` are inverse to each other, so each is the derivative of the other: no scatter-add.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmerge.core.types import Array


class Packed(NamedTuple):
    """A batch of token ids and where its tokens are; leading axes of steps are allowed.

    Attributes:
      tokens: int32 `[..., sentences, length]`, filled up with the padding id.
      at: int32 `[..., T]`, the position in `tokens`, flattened, of each token; `sentences x length`
        (which is outside) where nothing is left.
      back: int32 `[..., sentences, length]`, the place in `at`; T where `tokens` is padding.
    """

    tokens: Array
    at: Array
    back: Array

    @property
    def position(self) -> jax.Array:
        """int32 `[..., T]`, the place of each token in its sentence."""
        return self.at % self.tokens.shape[-1]


def bucket(count: int, parts: int) -> int:
    """The least size that holds `count`, with `parts` sizes between one power of two and the next.

    >>> [bucket(n, 2) for n in (5, 9, 13, 17, 25)], [bucket(n, 4) for n in (353, 400)]
    ([6, 12, 16, 24, 32], [384, 448])
    """
    step = max(1, 2 ** (max(1, count - 1).bit_length() - 1) // parts)
    return -(-count // step) * step


def pack(tokens: np.ndarray, pad: int) -> Packed:
    """Packs a batch, on the host.

    T is rounded up to one of four sizes between powers of two, the length to one of two, so that
    few shapes are compiled.

    Args:
      tokens: int `[..., sentences, length]`, each row filled up at its end.
      pad: the id of padding.

    >>> packed = pack(np.array([[5, 6, 0, 0], [7, 0, 0, 0]]), pad=0)
    >>> packed.at.tolist(), packed.back.tolist()
    ([0, 1, 2], [[0, 1], [2, 3]])
    """
    real = tokens != pad
    length = min(bucket(int(real.sum(-1).max(initial=1)), 2), tokens.shape[-1])
    tokens, real = tokens[..., :length], real[..., :length]
    flat = real.reshape(-1, real.shape[-2] * length)
    total = bucket(int(flat.sum(1).max(initial=1)), 4)
    back = np.where(flat, np.cumsum(flat, 1) - 1, total)
    at = np.full((len(flat), total), flat.shape[1])
    rows, places = np.nonzero(flat)
    at[rows, back[rows, places]] = places
    lead = tokens.shape[:-2]
    return Packed(
        tokens.astype(np.int32),
        at.reshape(*lead, total).astype(np.int32),
        back.reshape(tokens.shape).astype(np.int32),
    )


def spread(x: jax.Array, packed: Packed) -> jax.Array:
    """`[T, width]` -> `[sentences, length, width]`, zero where there is padding."""
    return _take(x, packed.back.reshape(-1), packed.at).reshape(*packed.tokens.shape, -1)


def gather(y: jax.Array, packed: Packed) -> jax.Array:
    """`[sentences, length, width]` -> `[T, width]`, zero where nothing is left."""
    return _take(y.reshape(-1, y.shape[-1]), packed.at, packed.back.reshape(-1))


@jax.custom_vjp
def _take(x, index, inverse):
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _forward(x, index, inverse):
    return _take(x, index, inverse), (index, inverse)


def _backward(saved, g):
    index, inverse = saved
    return _take(g, inverse, index), None, None


_take.defvjp(_forward, _backward)
