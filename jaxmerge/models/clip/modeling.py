"""CLIP's two towers and the pure functions over them.

Image tower: patches x kernel, a class token in front, learnt positions, a layer norm, pre-norm
blocks, a layer norm of the class token, a projection. Text tower: tokens and positions, causal
pre-norm blocks, a layer norm, the state at the end-of-text token, a projection.

    x <- x + attn(norm1(x));  x <- x + mlp(norm2(x))

Only one token of the last states is read, so the last block computes no other: its query, its
output and its MLP see one token an image or text, its keys and values all of them.

`init`, `image_features` and `text_features` are the border: parameters are a flat mapping name ->
array such as `"vision/block_03/attn/query/kernel"` (kernels `[in, out]`), the config is static.

Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
2021 (arXiv 2103.00020), sections 2.4 and 2.5.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxmerge.core.types import Array, Leaves
from jaxmerge.models.attention import Attention
from jaxmerge.models.clip.config import Config
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


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, tower, config: Config, rngs: nnx.Rngs | None):
        std = tower.width**-0.5
        std_in = std * (2 * tower.layers) ** -0.5
        self.norm1 = LayerNorm(tower.width, config.eps)
        self.attn = Attention(tower.width, tower.heads, std_in, std, rngs)
        self.norm2 = LayerNorm(tower.width, config.eps)
        self.mlp = Mlp(tower.width, tower.hidden, config.activation, std * 2**-0.5, std_in, rngs)

    def __call__(
        self, x: jax.Array, compute: Compute, only: int | jax.Array | None = None, **which
    ) -> jax.Array:
        """States to states; with `only` the states `[batch, 1, width]` of that token alone."""
        source = normed = self.norm1(x)
        if only is not None:
            x, normed = _pick(x, only), _pick(normed, only)
        x = x + self.attn(normed, compute, source=source, **which)
        return x + self.mlp(self.norm2(x))


def _pick(x: jax.Array, token: int | jax.Array) -> jax.Array:
    """One token of each row of `[batch, tokens, width]`: the same one, or one for each row."""
    if isinstance(token, int):
        return x[:, token : token + 1]
    return jnp.take_along_axis(x, token[:, None, None], axis=1)


class Patch(nnx.Module):
    """Patches to tokens: a convolution whose stride is its size, as one matrix product."""

    def __init__(self, patch: int, width: int, rngs: nnx.Rngs | None):
        self.kernel = normal(rngs, 0.02, patch, patch, 3, width)

    def __call__(self, images: jax.Array) -> jax.Array:
        patch, _, channels, width = self.kernel[...].shape
        batch, height, wide, _ = images.shape
        rows, columns = height // patch, wide // patch
        x = images.reshape(batch, rows, patch, columns, patch, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch * rows * columns, -1)
        x = x @ self.kernel[...].reshape(-1, width).astype(x.dtype)
        return x.reshape(batch, rows * columns, width)


class VisionTower(nnx.Module):
    """Images `[batch, side, side, 3]` -> features `[batch, projection_dim]`."""

    def __init__(self, config: Config, rngs: nnx.Rngs | None):
        tower = config.image_tower
        self.class_token = normal(rngs, tower.width**-0.5, tower.width)
        self.patch = Patch(tower.patch, tower.width, rngs)
        self.position = normal(rngs, 0.02, tower.tokens, tower.width)
        self.pre_norm = LayerNorm(tower.width, config.eps)
        add_blocks(self, tower.layers, lambda: Block(tower, config, rngs))
        self.post_norm = LayerNorm(tower.width, config.eps)
        if config.projection_dim is not None:
            self.projection = Dense(
                tower.width, config.projection_dim, tower.width**-0.5, rngs, bias=False
            )
        self.config = config

    def __call__(self, images: jax.Array, compute: Compute) -> jax.Array:
        tower = self.config.image_tower
        images = images.astype(compute.dtype)
        x = self.patch(images)
        first = self.class_token[...].astype(x.dtype)[None, None]
        first = jnp.broadcast_to(first, (x.shape[0], 1, tower.width))
        x = jnp.concatenate([first, x], axis=1) + self.position[...].astype(x.dtype)[None]
        x = run_blocks(blocks_of(self, tower.layers), self.pre_norm(x), compute, last={"only": 0})
        x = self.post_norm(x[:, 0])
        return self.projection(x) if hasattr(self, "projection") else x


class TextTower(nnx.Module):
    """Token ids `[batch, tokens]` -> features `[batch, projection_dim]`."""

    def __init__(self, config: Config, rngs: nnx.Rngs | None):
        tower = config.text_tower
        self.token = normal(rngs, 0.02, tower.vocab, tower.width)
        self.position = normal(rngs, 0.01, tower.context, tower.width)
        add_blocks(self, tower.layers, lambda: Block(tower, config, rngs))
        self.final_norm = LayerNorm(tower.width, config.eps)
        if config.projection_dim is not None:
            self.projection = Dense(
                tower.width, config.projection_dim, tower.width**-0.5, rngs, bias=False
            )
        self.config = config

    def __call__(self, tokens: jax.Array, compute: Compute) -> jax.Array:
        tower = self.config.text_tower
        length = tokens.shape[1]
        x = jnp.take(self.token[...], tokens, axis=0) + self.position[...][None, :length]
        end = jnp.argmax(tokens if tower.eos == 2 else tokens == tower.eos, axis=1)
        last = {"only": end, "keep": jnp.arange(length)[None] <= end[:, None]}
        x = x.astype(compute.dtype)
        x = run_blocks(blocks_of(self, tower.layers), x, compute, last=last, causal=True)
        x = self.final_norm(x[:, 0])
        return self.projection(x) if hasattr(self, "projection") else x


_TOWERS = {"vision": VisionTower, "text": TextTower}


def _present(config: Config) -> list[str]:
    return [which for which in _TOWERS if getattr(config, which) is not None]


def init(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Random parameters, distributed as CLIP's (the scales of section 2.5's code release).

    Args:
      config: the architecture.
      key: PRNG key.

    >>> from jaxmerge.models.clip.config import Vision
    >>> small = Vision(image=16, patch=8, width=16, layers=1, heads=2, hidden=32)
    >>> params = init(Config(small, None, projection_dim=8), jax.random.key(0))
    >>> params["vision/patch/kernel"].shape
    (8, 8, 3, 16)
    """
    params = {}
    for which, key_tower in zip(_TOWERS, jax.random.split(key, len(_TOWERS)), strict=True):
        if which in _present(config):
            tower = parameters(_TOWERS[which](config, nnx.Rngs(params=key_tower)))
            params |= {f"{which}/{name}": leaf for name, leaf in tower.items()}
    if config.vision is not None and config.text is not None:
        params["logit_scale"] = jnp.asarray(config.logit_scale, jnp.float32)
    return dict(sorted(params.items()))


def param_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of the architecture; nothing is allocated.

    Args:
      config: the architecture.

    >>> from jaxmerge.models.clip.config import Vision
    >>> tower = Vision(image=16, patch=8, width=16, layers=1, heads=2, hidden=32)
    >>> config = Config(tower, None, projection_dim=8)
    >>> param_shapes(config)["vision/projection/kernel"]
    (16, 8)
    """
    by_name = {
        f"{which}/{name}": shape
        for which in _present(config)
        for name, shape in shapes(_TOWERS[which], config).items()
    }
    if config.vision is not None and config.text is not None:
        by_name["logit_scale"] = ()
    return dict(sorted(by_name.items()))


def _run(which: str, config: Config, params: Mapping, inputs, compute: Compute) -> jax.Array:
    prefix = f"{which}/"
    own = {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}
    try:
        return _forward(which, config, own, inputs, compute)
    except (KeyError, ValueError) as error:
        raise type(error)(f"{which} tower: {error.args[0]}") from None


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _forward(which: str, config: Config, params: dict, inputs, compute: Compute) -> jax.Array:
    return bind(_TOWERS[which], config, params)(inputs, compute).astype(jnp.float32)


def image_features(
    config: Config, params: Leaves, images: jax.Array, *, compute: Compute = Compute()
) -> jax.Array:
    """Features of images, not normalised. Compiled once for each config and shape.

    Args:
      config: the architecture (static).
      params: flat mapping; only names under `vision/` are read.
      images: floats `[batch, side, side, 3]`, already normalised as `preprocess` does.
      compute: dtype, form of the attention, scan, remat (static).

    Returns:
      float32 `[batch, projection_dim]`.

    Raises:
      ValueError: no vision tower; images of another shape; parameters of another shape.
      TypeError: images that are not floats.
      KeyError: parameters that are missing.

    >>> from jaxmerge.models.clip.config import Vision
    >>> tower = Vision(image=16, patch=8, width=16, layers=1, heads=2, hidden=32)
    >>> config = Config(tower, None, projection_dim=8)
    >>> params = init(config, jax.random.key(0))
    >>> image_features(config, params, jnp.zeros((2, 16, 16, 3))).shape
    (2, 8)
    """
    if config.vision is None:
        raise ValueError("images given to a model without vision tower (config.vision is None)")
    side = config.vision.image
    check_inputs("images", images, compute)
    if images.ndim != 4 or images.shape[1:] != (side, side, 3):
        raise ValueError(
            f"images: found shape {images.shape}, expected (batch, {side}, {side}, 3);"
            " clip.preprocess makes them"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"images: found dtype {images.dtype}, expected normalised floats; clip.preprocess"
            " makes them"
        )
    return _run("vision", config, params, images, compute)


def text_features(
    config: Config, params: Leaves, tokens: Array, *, compute: Compute = Compute()
) -> jax.Array:
    """Features of texts, not normalised. Compiled once for each config and shape.

    Args:
      config: the architecture (static).
      params: flat mapping; only names under `text/` are read.
      tokens: integers `[batch, length]`, `length <= context`, each row with its end-of-text token.
      compute: as for `image_features`.

    Returns:
      float32 `[batch, projection_dim]`.

    Raises:
      ValueError: no text tower; tokens longer than the context or not a matrix; ids outside of the
        vocabulary (looked for in numpy arrays only: a look at the device would wait for it).
      TypeError: tokens that are not integers.
      KeyError: parameters that are missing.

    >>> from jaxmerge.models.clip.config import Text
    >>> tower = Text(vocab=50, context=8, width=16, layers=1, heads=2, hidden=32, bos=48, eos=49)
    >>> config = Config(None, tower, projection_dim=8)
    >>> text_features(config, init(config, jax.random.key(0)), jnp.array([[48, 7, 49]])).shape
    (1, 8)
    """
    if config.text is None:
        raise ValueError("text given to a model without text tower (config.text is None)")
    context = config.text.context
    check_inputs("tokens", tokens, compute)
    if tokens.ndim != 2 or tokens.shape[1] > context:
        raise ValueError(f"tokens: found shape {tokens.shape}, expected (batch, at most {context})")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens: found dtype {tokens.dtype}, expected integers")
    check_ids(tokens, config.text.vocab)
    return _run("text", config, params, tokens, compute)
