"""Rotary position embeddings, with the scalings that stretch them over longer contexts.

A head's dimension i < d/2 is paired with i + d/2 and turned by the angle `position * inv_i`:

    (x1, x2) <- (x1 cos - x2 sin, x2 cos + x1 sin),   inv_i = theta^(-2i / d)

    linear    inv / factor
    dynamic   theta grows with the longest sequence, n > context:
              theta (factor n / context - factor + 1)^(d / (d - 2))
    llama3    long wavelengths divided by the factor, short ones kept, a ramp between
    yarn      the same with a ramp over dimensions; cos and sin times 0.1 ln(factor) + 1
    longrope  inv_i / short_i, or / long_i past the original context; cos and sin scaled

Sources: Su et al. 2021 (arXiv 2104.09864); Peng et al. 2023, YaRN (2309.00071); Ding et al. 2024,
LongRoPE (2402.13753); Llama 3.1 (2407.21783).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NEEDED = {
    # kind -> what config.json must say of it
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
OPTIONAL = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("factor", "attention_factor"),
}


def _finite(value: Any) -> bool:
    """Whether a setting of a rotation is a finite number, or a list of them."""
    values = value if isinstance(value, tuple) else (value,)
    return all(isinstance(x, int | float) and math.isfinite(x) for x in values)


@dataclass(frozen=True)
class Rope:
    """One rotation.

    Attributes:
      kind: a key of `NEEDED`.
      theta: the base of the wavelengths.
      width: how many dimensions of a head are turned; the others stay.
      context: positions that the model has.
      original: positions that it had before it was stretched.
      options: what else config.json says, by name.
    """

    kind: str = "default"
    theta: float = 10_000.0
    width: int = 64
    context: int = 2048
    original: int = 2048
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def from_hf(cls, settings: Mapping, depth: int, context: int, original: int | None) -> Rope:
        """Reads `rope_parameters` (or `rope_scaling`) of one kind of layers.

        Args:
          settings: with `rope_theta` and maybe `rope_type` (`type`), `partial_rotary_factor`, ...
          depth: width of a head.
          context, original: positions now, and before stretching where the config says it.
        """
        kind = settings.get("rope_type") or settings.get("type") or "default"
        kind = "longrope" if "long_factor" in settings else "default" if kind == "mrope" else kind
        if kind not in NEEDED:
            raise ValueError(f"rope_type {kind!r}, expected one of {', '.join(NEEDED)}")
        if missing := [name for name in NEEDED[kind] if settings.get(name) is None]:
            raise ValueError(f"rope_type {kind!r} without {', '.join(missing)}")
        named = [n for n in (*NEEDED[kind], *OPTIONAL.get(kind, ())) if settings.get(n) is not None]
        options = {
            n: tuple(settings[n]) if isinstance(settings[n], list) else settings[n] for n in named
        }
        numbers = {"rope_theta": settings["rope_theta"], **options}
        if wrong := [f"{n} is {x!r:.60}" for n, x in numbers.items() if not _finite(x)]:
            raise ValueError(f"{'; '.join(wrong)}, expected finite numbers")
        original = original or settings.get("original_max_position_embeddings") or context
        width = int(depth * (settings.get("partial_rotary_factor") or 1.0))
        rope = cls(kind, settings["rope_theta"], width, context, original, tuple(options.items()))
        if width % 2 or not 0 < width <= depth:
            raise ValueError(
                f"{width} of {depth} dimensions of a head are turned, not an even part"
            )
        for name in ("short_factor", "long_factor"):
            if kind == "longrope" and len(options[name]) != width // 2:
                raise ValueError(f"{name} of {len(options[name])} numbers, expected {width // 2}")
        return rope

    def frequencies(self, longest: jax.Array | int) -> tuple[jax.Array | np.ndarray, float]:
        """The inverse frequencies, float32 `[width / 2]`, and the factor on cos and sin.

        Args:
          longest: the greatest position in the batch, plus one; "dynamic" and "longrope" look.

        >>> Rope(width=4).frequencies(8)
        (array([1.  , 0.01], dtype=float32), 1.0)
        """
        options, inverse = dict(self.options), _inverse(self.theta, self.width)
        if self.kind == "linear":
            return inverse / np.float32(options["factor"]), 1.0
        if self.kind == "dynamic":
            return self._dynamic(options["factor"], longest), 1.0
        if self.kind == "llama3":
            return self._llama3(inverse, **options), 1.0
        if self.kind == "yarn":
            return self._yarn(inverse, options)
        if self.kind == "longrope":
            return self._longrope(inverse, options, longest)
        return inverse, 1.0

    def _dynamic(self, factor: float, longest) -> jax.Array:
        n = jnp.maximum(longest, self.context).astype(jnp.float32)
        grown = (factor * n / self.context - (factor - 1)) ** (self.width / (self.width - 2))
        exponent = jnp.arange(0, self.width, 2, dtype=jnp.float32) / self.width
        return 1.0 / (self.theta * grown) ** exponent

    def _llama3(self, inverse, factor, low_freq_factor, high_freq_factor) -> np.ndarray:
        wave = 2 * math.pi / inverse
        share = (self.original / wave - low_freq_factor) / (high_freq_factor - low_freq_factor)
        between = (1 - share) * inverse / factor + share * inverse
        scaled = np.where(wave > self.original / low_freq_factor, inverse / factor, between)
        scaled = np.where(wave < self.original / high_freq_factor, inverse, scaled)
        return scaled.astype(np.float32)

    def _yarn(self, inverse, options: Mapping) -> tuple[np.ndarray, float]:
        factor = options["factor"]

        def dimension(rotations: float) -> float:
            turns = self.original / (rotations * 2 * math.pi)
            return self.width * math.log(turns) / (2 * math.log(self.theta))

        low = dimension(options.get("beta_fast") or 32)
        high = dimension(options.get("beta_slow") or 1)
        if options.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.width - 1)
        high += 0.001 * (low == high)
        ramp = np.clip((np.arange(self.width // 2, dtype=np.float32) - low) / (high - low), 0, 1)
        scaled = inverse / factor * ramp + inverse * (1 - ramp)

        def growth(scale: float) -> float:
            return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

        scale = options.get("attention_factor")
        if scale is None and options.get("mscale") and options.get("mscale_all_dim"):
            scale = growth(options["mscale"]) / growth(options["mscale_all_dim"])
        return scaled.astype(np.float32), growth(1.0) if scale is None else float(scale)

    def _longrope(self, inverse, options: Mapping, longest) -> tuple[jax.Array, float]:
        factor = options.get("factor") or self.context / self.original
        scale = options.get("attention_factor")
        if scale is None:
            stretched = math.log(max(factor, 1.0)) / math.log(self.original)
            scale = math.sqrt(1 + stretched)
        short, long = (np.asarray(options[f"{n}_factor"], np.float32) for n in ("short", "long"))
        return jnp.where(longest > self.original, inverse / long, inverse / short), scale

    def table(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """cos and sin of every position, float32 `[*positions, width / 2]`."""
        inverse, scale = self.frequencies(jnp.max(positions) + 1)
        angles = positions[..., None].astype(jnp.float32) * jnp.asarray(inverse)[None, None]
        return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def _inverse(theta: float, width: int) -> np.ndarray:
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers = np.float64(theta) ** exponent.astype(np.float64)
    return np.float32(1) / powers.astype(np.float32)


def turn(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns `[batch, tokens, heads, depth]` by a table's angles `[batch, tokens, width / 2]`."""
    half = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = x[..., :half].astype(cos.dtype), x[..., half : 2 * half].astype(cos.dtype)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(t.astype(x.dtype) for t in turned), x[..., 2 * half :]], axis=-1)
