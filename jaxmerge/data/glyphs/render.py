"""From drawings to images: a vectorised renderer for whole batches, in numpy.

`jaxmerge.data.glyphs.world` chooses what is drawn; ``render`` looks the drawings up
in the bank through a random affine map and a slow warp, turns distance into ink (any thickness,
or an outline), blurs or pixelates, and puts colours on. 32 x 32 x 3 uint8, several thousand
images a second on one core.

The domain "pixelated" is what a coarse scanner sees: the 32 x 32 bitmap is averaged over blocks
to 8 x 8 (now and then 16 x 16), rounded to 17 grey levels and enlarged again.
"""

from __future__ import annotations

import functools

import numpy as np

from jaxmerge.data.glyphs.bank import EXTENT, SIDE, UNIT, Bank
from jaxmerge.data.glyphs.concepts import (
    COLOUR_NAMES,
    COLOURS,
    CONCEPTS,
    DOMAINS,
    KINDS,
    PATTERNS,
    STYLES,
)

SIZE = 32
DOMAIN = {name: i for i, name in enumerate(DOMAINS)}
RGB = np.array(list(COLOURS.values()), np.float32)
BLACK, WHITE = COLOUR_NAMES.index("black"), COLOUR_NAMES.index("white")
HAND, DRAWN = STYLES.index("handwritten"), STYLES.index("drawn")


@functools.cache
def _resize(source: int, target: int, how: str) -> np.ndarray:
    """The matrix [target, source] of PIL's resampling along one axis."""
    from PIL import Image

    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC,
               "nearest": Image.Resampling.NEAREST}  # fmt: skip
    eye = Image.fromarray(np.eye(source, dtype=np.float32))
    return np.asarray(eye.resize((source, target), filters[how]))


def _slow(rng: np.random.Generator, n: int, knots: int = 4) -> np.ndarray:
    """Smooth random fields float32 [n, 32, 32] with values of the order of one."""
    m = _resize(knots, SIZE, "bicubic")
    return m @ rng.standard_normal((n, knots, knots), np.float32) @ m.T


def _normal(rng, n, scale):
    return np.clip(rng.standard_normal(n, np.float32), -2.3, 2.3) * np.float32(scale)


def _uniform(rng, n, low, high):
    return (low + (high - low) * rng.random(n, np.float32)).astype(np.float32)


def render(
    bank: Bank, drawing: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Render drawings ``drawing`` int [n] of the bank as images with the attributes ``rows``.

    Returns:
      uint8 [n, 32, 32, 3].
    """
    n = len(drawing)
    domain, style, kind = rows[:, 3], rows[:, 2], rows[:, 1]
    coverage = _coverage(bank, drawing, domain, style, kind, rng)
    patterned = np.flatnonzero(kind == KINDS.index("pattern"))
    if len(patterned):
        names = [CONCEPTS[rows[i, 0]].name for i in patterned]
        coverage[patterned] = _patterns([PATTERNS.index(p) for p in names], rng)
    coverage = _degrade(coverage, domain, rng)
    ink = RGB[rows[:, 4]] + _normal(rng, (n, 3), 14)
    ground = RGB[rows[:, 5]] + _normal(rng, (n, 3), 14)
    grey = np.asarray(np.isin(rows[:, 4:], (BLACK, WHITE)).all(1))
    ink = np.where(grey[:, None], ink[:, :1], ink)
    ground = np.where(grey[:, None], ground[:, :1], ground)
    pure = (domain == DOMAIN["pixelated"]) & grey
    exact = np.where(rows[:, 4:] == WHITE, 255.0, 0.0).astype(np.float32)
    ink = np.where(pure[:, None], exact[:, :1], ink)
    ground = np.where(pure[:, None], exact[:, 1:], ground)
    back = np.broadcast_to(ground[:, None, None], (n, SIZE, SIZE, 3)).astype(np.float32)
    busy = np.flatnonzero(domain == DOMAIN["textured"])
    if len(busy):
        weave = _patterns(rng.integers(len(PATTERNS), size=len(busy)), rng)[..., None]
        shade = _uniform(rng, (len(busy), 1, 1, 3), -75, 75)
        back = back.copy()
        back[busy] += weave * shade
    images = back + coverage[..., None] * (ink[:, None, None] - back)
    rough = np.flatnonzero(domain == DOMAIN["noisy"])
    if len(rough):
        level = _uniform(rng, (len(rough), 1, 1, 1), 15, 55)
        images[rough] += level * rng.standard_normal((len(rough), SIZE, SIZE, 3), np.float32)
        salt = rng.random((len(rough), SIZE, SIZE), np.float32)
        share = _uniform(rng, (len(rough), 1, 1), 0, 0.04)
        images[rough] = np.where((salt < share)[..., None], 255, images[rough])
        images[rough] = np.where((salt > 1 - share)[..., None], 0, images[rough])
    return np.clip(images + 0.5, 0, 255).astype(np.uint8)


def _coverage(bank, drawing, domain, style, kind, rng) -> np.ndarray:
    """How much of each pixel is ink, float32 [n, 32, 32] in [0, 1]."""
    n = len(drawing)
    low = domain == DOMAIN["pixelated"]
    steady = np.isin(kind, [KINDS.index("count"), KINDS.index("direction")])
    hand = style == HAND
    pen = np.where(hand, _uniform(rng, n, 0.05, 0.19), _uniform(rng, n, -0.03, 0.03))
    pen = np.where(low & hand, _uniform(rng, n, 0.09, 0.23), pen)
    fill = _uniform(rng, n, 0.9, 1.05) / (1 + np.maximum(pen, 0))
    scale = np.where(low, fill, _uniform(rng, n, 0.5, 0.92))
    scale = np.where(kind == KINDS.index("count"), _uniform(rng, n, 0.75, 0.97), scale)
    room = np.where(low, 0.06, np.maximum(0.95 - scale, 0.03))
    shift = (rng.random((2, n), np.float32) * 2 - 1) * room
    angle = _normal(rng, n, 0.13) * np.where(low | steady, 0.6, 1)
    shear, aspect = _normal(rng, n, 0.12), np.exp(_normal(rng, n, 0.1))
    axis = ((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1)[None]
    px = axis - shift[0][:, None]
    py = axis - shift[1][:, None]
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    coefficients = ((cos + shear * sin) / aspect, (sin - shear * cos) / aspect * -1,
                    -sin * aspect, cos * aspect)  # fmt: skip
    a, b, c, d = (v[:, None].astype(np.float32) for v in coefficients)
    bend = (_uniform(rng, n, 0, 0.05) * np.where(hand, 1.3, 1))[:, None, None]
    x = (a * px)[:, None, :] + (b * py)[:, :, None] + bend * _slow(rng, n)
    y = (c * px)[:, None, :] + (d * py)[:, :, None] + bend * _slow(rng, n)
    distance = _look_up(bank.fields, drawing, x, y)
    uneven = np.where(hand, _uniform(rng, n, 0, 0.3), 0)[:, None, None]
    distance -= pen[:, None, None].astype(np.float32) * np.clip(
        1 + uneven * _slow(rng, n), 0.6, 1.5
    )
    pixels = distance * (scale * SIZE / 2)[:, None, None].astype(np.float32)
    traced = (domain == DOMAIN["outlined"])[:, None, None]
    width = _uniform(rng, (n, 1, 1), 0.45, 0.9)
    pixels = np.where(traced, np.abs(pixels) - width, pixels)
    return np.clip(0.5 - pixels, 0, 1).astype(np.float32)


def _look_up(fields: np.ndarray, drawing: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear look-up of the distance at positions x, y [n, 32, 32] of the glyph's plane."""
    to_cells = np.float32(SIDE / (2 * EXTENT))
    far_u = (x + np.float32(EXTENT)) * to_cells - np.float32(0.5)
    far_v = (y + np.float32(EXTENT)) * to_cells - np.float32(0.5)
    u, v = np.clip(far_u, 0, SIDE - 1.001), np.clip(far_v, 0, SIDE - 1.001)
    beyond = (np.abs(far_u - u) + np.abs(far_v - v)) / to_cells
    i, j = u.astype(np.int32), v.astype(np.int32)
    u -= i
    v -= j
    at = (drawing[:, None, None] * (SIDE * SIDE)).astype(np.int64) + (j * SIDE + i)
    flat = fields.reshape(-1)
    f00, f01 = flat[at].astype(np.float32), flat[at + 1].astype(np.float32)
    at += SIDE
    f10, f11 = flat[at].astype(np.float32), flat[at + 1].astype(np.float32)
    f00 += u * (f01 - f00)
    f10 += u * (f11 - f10)
    f00 += v * (f10 - f00)
    return f00 * np.float32(1 / UNIT) + beyond


def _degrade(coverage: np.ndarray, domain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur the images of the domain "blurred"; average, round and enlarge those "pixelated"."""
    soft = np.flatnonzero(domain == DOMAIN["blurred"])
    if len(soft):
        sigma = _uniform(rng, (len(soft), 1, 1), 0.7, 2.0)
        gap = np.arange(SIZE)[:, None] - np.arange(SIZE)[None]
        kernel = np.exp(-0.5 * (gap[None] / sigma) ** 2).astype(np.float32)
        kernel /= kernel.sum(-1, keepdims=True)
        coverage[soft] = kernel @ coverage[soft] @ kernel.transpose(0, 2, 1)
    coarse = np.flatnonzero(domain == DOMAIN["pixelated"])
    grid = np.where(rng.random(len(coarse)) < 0.8, 8, 16)
    how = rng.choice(("bicubic", "bilinear", "nearest"), len(coarse), p=(0.5, 0.35, 0.15))
    for cells in (8, 16):
        block = SIZE // cells
        for name in ("bicubic", "bilinear", "nearest"):
            rows = coarse[(grid == cells) & (how == name)]
            if len(rows):
                small = coverage[rows].reshape(-1, cells, block, cells, block).mean((2, 4))
                small = np.rint(small * 16) / np.float32(16)
                m = _resize(cells, SIZE, name)
                coverage[rows] = np.clip(m @ small @ m.T, 0, 1)
    return coverage


def _patterns(which, rng: np.random.Generator) -> np.ndarray:
    """Patterns float32 [n, 32, 32] in [0, 1]; ``which`` are numbers into ``PATTERNS``."""
    which = np.asarray(which)
    n = len(which)
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    tilt = _normal(rng, (n, 1, 1), 0.06)
    x = axis[None, None, :] + tilt * axis[None, :, None]
    y = axis[None, :, None] - tilt * axis[None, None, :]
    rate = _uniform(rng, (n, 1, 1), 6, 15)
    phase = _uniform(rng, (n, 1, 1), 0, 6.28)
    side = np.where(rng.random((n, 1, 1)) < 0.5, 1, -1)
    cx, cy = x + _normal(rng, (n, 1, 1), 0.2), y + _normal(rng, (n, 1, 1), 0.2)
    edge = lambda wave: np.clip(0.5 + 2.5 * wave, 0, 1)
    sx, sy = np.sin(rate * x + phase), np.sin(rate * y + phase)
    formulas = (
        lambda: edge(sy),
        lambda: edge(sx),
        lambda: edge(np.sin(0.72 * rate * (x + side * y) + phase)),
        lambda: edge(4 * sx * sy),
        lambda: edge(sx * sy * 2 - 0.7 + 0 * x) + edge(-2.0 + 0 * x),
        lambda: edge(np.sin(rate * np.hypot(cx, cy) + phase)),
        lambda: edge(np.maximum(sx, sy) * 2 - 1.6),
        lambda: edge(np.sin(rate * y + 2.2 * np.abs((rate * x / 3.14) % 2 - 1) + phase)),
        lambda: np.clip(0.5 + 0.6 * side * x, 0, 1),
        lambda: np.clip(0.5 + 0.6 * side * y, 0, 1),
        lambda: rng.random((n, SIZE, SIZE), np.float32),
        lambda: edge(np.sin(np.rint(rate * 0.7) * np.arctan2(cy, cx) + phase)),
    )
    result = np.zeros((n, SIZE, SIZE), np.float32)
    for number in np.unique(which):
        full = np.broadcast_to(formulas[number](), result.shape)
        rows = which == number
        result[rows] = full[rows]
    return result
