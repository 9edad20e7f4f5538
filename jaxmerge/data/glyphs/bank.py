"""A bank of drawings: each a distance field, computed once and rendered thousands of times.

A drawing is a 48 x 48 grid over [-1.25, 1.25]^2 (the glyph's box is [-1, 1]^2, y down) that holds
the signed distance to the edge of the ink (printed glyphs and shapes; negative inside) or
the distance to the pen's path (handwriting), as int8 in units of 1/160. From a
distance field the renderer gets any thickness, outlines and clean edges at any size for the price
of one bilinear look-up.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxmerge.core.draws import draws
from jaxmerge.data.glyphs import strokes
from jaxmerge.data.glyphs.concepts import (
    CONCEPTS,
    COUNTED,
    HANDWRITABLE,
    NUMBERS,
    STYLES,
    by_kind,
)

SIDE, EXTENT, UNIT = 48, 1.25, 160.0
FINE = 3 * SIDE  # the raster in which printed glyphs and shapes are drawn first
SHORT = set("acegmnopqrsuvwxyz")  # small letters without a part above their body

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "cmr10", "cmtt10", "cmb10", "cmti10",
)  # fmt: skip
HELD_OUT_FONTS = ("DejaVuSans-BoldOblique", "DejaVuSerif-Bold", "DejaVuSansMono-BoldOblique",
                  "STIXGeneralItalic", "cmss10")  # fmt: skip


@dataclass(frozen=True)
class Bank:
    """Drawings with their concept and style; ``rows[(concept, style)]`` lists where they are."""

    fields: np.ndarray  # int8 [n, 48, 48], distance * 160
    concept: np.ndarray  # int32 [n]
    style: np.ndarray  # int32 [n]
    rows: dict[tuple[int, int], np.ndarray]


def build(seed: int = 0, drawings: int = 40, fonts: tuple[str, ...] = FONTS, concepts=None) -> Bank:
    """Draw the bank.

    Args:
      seed: of the handwriting and of the layouts of shapes.
      drawings: handwritten drawings per character; digits get four times as many.
      fonts: file names (without .ttf) among those which matplotlib ships.
      concepts: numbers of the concepts wanted; all by default.

    Returns:
      A ``Bank``; about 2.3 kB a drawing and 1 ms a drawing.

    >>> bank = build(drawings=2, fonts=("DejaVuSans",), concepts=[0, 1])
    >>> bank.fields.shape[1:], sorted(set(bank.concept.tolist()))
    ((48, 48), [0, 1])
    """
    wanted = range(len(CONCEPTS)) if concepts is None else sorted(set(concepts))
    outlines, concept_of, style_of = [], [], []

    def add(field, index, how):
        outlines.append(quantise(field))
        concept_of.append(index)
        style_of.append(STYLES.index(how))

    for index in wanted:
        item = CONCEPTS[index]
        rng = draws(seed, index)
        if item.char:
            for font in fonts:
                field = printed(item.char, font)
                if field is not None:
                    add(field, index, "printed")
            if HANDWRITABLE[index]:
                for _ in range(drawings * (4 if item.kind == "digit" else 1)):
                    add(handwritten(item.char, rng), index, "handwritten")
        elif item.kind in ("shape", "direction", "count"):
            for _ in range(max(2, drawings // (2 if item.kind == "count" else 4))):
                add(_figure(item, rng), index, "drawn")
    fields = np.stack(outlines) if outlines else np.zeros((1, SIDE, SIDE), np.int8)
    concept, style = np.array(concept_of, np.int32), np.array(style_of, np.int32)
    rows = {
        (int(c), int(s)): np.flatnonzero((concept == c) & (style == s))
        for c, s in {*zip(concept.tolist(), style.tolist(), strict=True)}
    }
    drawn = STYLES.index("drawn")
    rows.update({(c, drawn): np.zeros(1, np.int64) for c in by_kind("pattern") if c in wanted})
    return Bank(fields, concept, style, rows)


def quantise(field: np.ndarray) -> np.ndarray:
    """Distances to int8 in units of 1/160, clipped at +-0.79."""
    return np.clip(np.rint(field * UNIT), -127, 127).astype(np.int8)


# ------------------------------------------------------------------------------- handwriting


def handwritten(char: str, rng: np.random.Generator) -> np.ndarray:
    """The distance to the pen's path of one writing of ``char``, float32 [48, 48]."""
    lines = strokes.draw(char, rng)
    if char in SHORT:
        lines = lines * rng.uniform(0.66, 0.9)
    (x0, y0), (dx, dy) = lines[:, 0].T, (lines[:, 1] - lines[:, 0]).T
    axis = ((np.arange(SIDE) + 0.5) / SIDE * 2 * EXTENT - EXTENT)[:, None]
    to_x, to_y = ((axis - start).astype(np.float32) for start in (x0, y0))  # [48, segments]
    dx, dy, long = (v.astype(np.float32) for v in (dx, dy, dx**2 + dy**2 + 1e-9))
    t = (to_x * dx / long)[None] + (to_y * dy / long)[:, None]  # [48 rows, 48 columns, segments]
    np.clip(t, 0, 1, out=t)
    gap = to_x[None] - t * dx
    t *= dy
    np.subtract(to_y[:, None], t, out=t)
    gap *= gap
    t *= t
    gap += t
    return np.sqrt(gap.min(-1))


# ------------------------------------------------------------------------------- print


@functools.cache
def printed(char: str, font: str) -> np.ndarray | None:
    """The signed distance to a printed character; None when the font lacks it."""
    glyph = _glyph(char, font)
    if glyph is None:
        return None
    height, width = glyph.shape
    canvas = np.zeros((FINE, FINE), bool)
    top, left = (FINE - height) // 2, (FINE - width) // 2
    canvas[top : top + height, left : left + width] = glyph
    return signed_distance(canvas)


@functools.cache
def _font(name: str, size: int):
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.exists():
        raise ValueError(f"no font {name!r} among those of matplotlib; known: {FONTS}")
    return ImageFont.truetype(str(path), size), set(FT2Font(str(path)).get_charmap())


@functools.cache
def _glyph(char: str, name: str, size: int = 150) -> np.ndarray | None:
    """The character's ink, cropped, bool; capitals are about 2 / 2.5 of the canvas high."""
    font, known = _font(name, size)
    if ord(char) not in known or (name.startswith("cm") and ord(char) > 126):
        return None
    mask = font.getmask(char)
    pixels = np.array(mask, np.uint8).reshape(mask.size[1], mask.size[0]) > 127
    ys, xs = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not len(ys):
        return None
    if max(np.ptp(ys), np.ptp(xs)) > 0.86 * FINE:
        return _glyph(char, name, int(size * 0.8))
    return pixels[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]


def signed_distance(ink: np.ndarray) -> np.ndarray:
    """Signed distance (negative inside) of a bool raster [144, 144], sampled down to [48, 48]."""
    from scipy.ndimage import distance_transform_edt

    outside, inside = (np.asarray(distance_transform_edt(x)) for x in (~ink, ink))
    field = (outside - inside) * (2 * EXTENT / FINE)
    step = FINE // SIDE
    return field[step // 2 :: step, step // 2 :: step].astype(np.float32)


# ------------------------------------------------------------------------------- shapes


def _polygon(sides: int, turn: float = 0.0) -> np.ndarray:
    angle = np.arange(sides) * 2 * np.pi / sides + turn - np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _inside(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Even-odd rule: which of the positions (x, y) lie inside the polygon."""
    odd = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        crosses = (y0 > y) != (y1 > y)
        odd ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0 + 1e-12) + x0)
    return odd


def shape_ink(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which positions (x right, y down) the shape called ``name`` covers in the box [-1, 1]^2.

    Raises:
      KeyError: no such shape.
    """
    r = np.hypot(x, y)
    star = _polygon(10)
    star[1::2] *= 0.45
    polygons = {
        "square": np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
        "rectangle": np.array([(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)]),
        "triangle": _polygon(3) + np.array((0, 0.2)),
        "pentagon": _polygon(5),
        "hexagon": _polygon(6, np.pi / 6),
        "star": star,
        "diamond": np.array([(0, -1), (0.65, 0), (0, 1), (-0.65, 0)]),
        "trapezoid": np.array([(-0.5, -0.6), (0.5, -0.6), (1, 0.6), (-1, 0.6)]),
        "chevron": np.array([(0, -0.9), (0.9, 0.3), (0.9, 0.9), (0, -0.2), (-0.9, 0.9),
                             (-0.9, 0.3)]),
        "arrow": np.array([(0, -1), (0.75, -0.15), (0.25, -0.15), (0.25, 1), (-0.25, 1),
                           (-0.25, -0.15), (-0.75, -0.15)]),
    }  # fmt: skip
    if name in polygons:
        return _inside(polygons[name], x, y)
    formulas = {
        "circle": lambda: r < 0.95,
        "ellipse": lambda: np.hypot(x, y / 0.55) < 1,
        "ring": lambda: (r < 1) & (r > 0.55),
        "cross": lambda: (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 1),
        "heart": lambda: (
            (1.15 * x) ** 2 + (-1.15 * y - np.sqrt(abs(1.15 * x)) * 0.75 + 0.1) ** 2 < 1
        ),
        "crescent": lambda: (r < 1) & (np.hypot(x - 0.45, y) > 0.8),
        "half circle": lambda: (np.hypot(x, y - 0.45) < 1) & (y < 0.45),
        "arch": lambda: (np.hypot(x, y - 0.4) < 1) & (np.hypot(x, y - 0.4) > 0.5) & (y < 0.4),
    }
    return formulas[name]()


def _figure(item, rng: np.random.Generator) -> np.ndarray:
    """The signed distance to a shape, a shape with a direction, or several shapes."""
    axis = (np.arange(FINE) + 0.5) / FINE * 2 * EXTENT - EXTENT
    x, y = np.meshgrid(axis, axis)
    if item.kind == "shape":
        return signed_distance(shape_ink(item.name, x, y))
    if item.kind == "direction":
        shape, direction = item.name.split(" pointing ")
        turn = ("up", "right", "down", "left").index(direction) * np.pi / 2
        return signed_distance(shape_ink(shape, x * np.cos(turn) + y * np.sin(turn),
                                         y * np.cos(turn) - x * np.sin(turn)))  # fmt: skip
    word, plural = item.name.split(" ", 1)
    shape = next(s for s in COUNTED if plural.startswith(s))
    count = NUMBERS.index(word)
    cells = 2 if count <= 4 else 3
    places = rng.permutation(cells * cells)[:count]
    ink = np.zeros(x.shape, bool)
    for place in places:
        size = rng.uniform(0.7, 0.88) / cells
        centre = (np.array(divmod(int(place), cells)) + 0.5) * 2 / cells - 1
        centre = centre + rng.uniform(-1, 1, 2) * 0.12 / cells
        ink |= shape_ink(shape, (x - centre[0]) / size, (y - centre[1]) / size)
    return signed_distance(ink)
