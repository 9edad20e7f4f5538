"""Handwriting: stroke skeletons of digits, letters and signs, and how a hand varies them.

A skeleton is written on a 10 x 10 grid. ``"00 90,90 39"`` is a seven: points are two digits, column
then row (row 0 is the top), a stroke is a list of points joined by a smooth curve, a comma ends it.
A corner is therefore two strokes which share a point, and a stroke whose last point is its
first is a closed loop. Several skeletons of one character, separated by bars, are several ways to
write it: a four open or closed, a seven with or without a bar, a one with or without a flag.

``draw`` varies a skeleton as a hand would: every point moves a little (shared points together), the
drawing becomes wider or narrower, leans, and is bent by a smooth warp.
"""

from __future__ import annotations

import numpy as np

DIGITS = {
    "0": "50 20 03 06 29 59 86 83 50|50 32 25 38 59 68 75 62 50|60 20 03 06 29 69 96 83 50 31"
    "|40 11 04 17 49 78 95 81 40|70 30 04 07 29 59 85 82 60",
    "1": "50 59|60 39|22 50,50 59|22 50,50 59,29 89|13 50,50 59|31 50,50 59,39 79|04 60,60 69"
    "|03 60,60 49|50 59,39 79|05 50,50 59|14 50,50 59|15 60,60 69|24 60,60 69|13 50,50 59,19 99"
    "|04 50,50 59,29 89|23 40 50,50 58",
    "2": "12 30 60 81 83 55 09,09 99|12 30 60 82 64 28 07 16 38 68 98|02 20 70 82 74 36 09,09 69 98"
    "|11 30 70 83 56 19,19 98|10 50 82 74 47 19,19 89|13 31 61 73 46 18 06 26 48 79 98"
    "|12 40 72 64 19,19 79|01 40 72 74 29,29 88|02 30 61 63 19,19 69 88",
    "3": "11 30 60 81 73 44,44 75 87 69 39 08|10 80,80 44,44 75 87 69 39 08"
    "|11 40 71 73 54 34,54 76 78 49 18|11 40 71 63 44 35 44 65 87 59 18"
    "|20 60 82 64 34,34 64 86 68 39 09",
    "4": "10 15,15 85,62 69|60 06,06 96,60 69|50 06,06 86,53 59|20 14 36 85,71 69|10 05 26 86,80 69"
    "|30 05,05 95,63 69|20 06,06 96,62 59|70 06,06 96,70 69|21 05,05 85,81 39",
    "5": "80 20,20 14,14 44 75 86 78 49 08|20 13,13 43 74 86 68 39 08,20 80"
    "|80 30 12 34 65 77 59 18|90 30,30 24,24 53 85 87 59 19|10 14,14 43 74 77 49 09,10 70"
    "|80 20,20 24,24 64 86 68 39 19",
    "6": "70 30 04 07 29 69 87 65 35 06|60 24 07 19 59 87 75 44 16|70 15 08 39 78 76 54 15"
    "|50 13 07 29 69 86 64 24 06|40 14 07 29 59 77 65 35 17|80 40 13 07 39 69 86 64 34 16",
    "7": "00 90,90 39|00 90,90 39,25 75|00 90,90 64 49|02 00,00 90,90 49|01 30 90,90 55 39"
    "|01 00,00 90,90 49,25 85|00 80,80 49,35 75|02 20 90,90 55 39,35 85|00 90,90 39,15 85"
    "|02 10 80,80 49,25 75|00 80,80 39,05 75|10 80,80 54 59,35 85|01 20 70 64 49,24 84"
    "|03 00,00 80,80 55 49|00 80,80 64 59,34 95",
    "8": "50 20 12 34 65 87 69 29 07 25 64 82 70 50|50 21 23 54 73 71 50,54 16 28 59 88 86 54"
    "|80 40 12 34 75 87 59 18 26 54 82 80|70 30 12 34 65 77 59 29 17 35 74 81 70"
    "|40 21 33 54 76 68 39 18 26 54 72 61 40",
    "9": "83 60 20 03 15 45 83,83 79|81 50 11 13 35 65 82,81 89|82 50 12 24 54 82,82 86 59 19"
    "|70 20 03 25 64 80,80 49|80 40 12 14 45 73 80,80 87 59 29|71 40 11 23 44 72 71 75 39"
    "|82 50 11 14 44 82,82 79|81 40 12 24 64 82,82 86 58 28 08|80 30 12 24 74,80 85 78 49 18"
    "|71 30 02 14 54 72,81 86 68 39 09",
}

UPPER = {
    "A": "09 40,40 89,16 76|09 12 40 72 89,06 86|09 50,50 99,25 85",
    "B": "10 19,10 50 72 64 14,14 64 86 78 49 19|10 19,10 60 72 44,14 44 76 78 49 19",
    "C": "82 60 30 03 06 29 69 87|81 40 13 06 39 78",
    "D": "10 19,10 40 82 87 49 19|10 19,00 50 83 86 49 09",
    "E": "80 10,10 19,19 89,14 64|81 40 11 23 54,54 14 06 29 88",
    "F": "80 10,10 19,14 64|00 90,20 29,24 74",
    "G": "82 50 20 03 06 29 59 87 85,85 55|82 40 03 06 39 78 85,85 55,85 89",
    "H": "10 19,80 89,14 84",
    "I": "40 49|40 49,20 60,29 69",
    "J": "70 77 59 29 07|70 77 59 29 07,30 90",
    "K": "10 19,80 14,14 89|10 19,80 15,34 89",
    "L": "10 19,19 89",
    "M": "09 00,00 46,46 90,90 99|09 10,10 45,45 80,80 99",
    "N": "09 00,00 89,89 80",
    "O": "40 11 04 17 49 78 95 81 40|50 20 03 06 29 59 86 83 50",
    "P": "10 19,10 60 82 74 45 15|10 19,00 50 82 64 14",
    "Q": "40 11 04 17 49 78 95 81 40,56 99|40 11 04 17 49 78 95 81 40,67 89",
    "R": "10 19,10 60 82 64 15,45 89|10 19,10 60 72 44 14,34 89",
    "S": "81 50 20 12 34 65 87 69 29 07|80 40 12 33 65 87 59 18",
    "T": "00 90,50 59|00 80,40 49",
    "U": "10 16 29 59 86 80|00 05 29 69 95 90",
    "V": "00 49,49 90|00 39,39 80",
    "W": "00 29,29 43,43 69,69 90|00 29,29 50,50 79,79 90",
    "X": "00 99,90 09|10 79,80 09",
    "Y": "00 44,90 44,44 49|00 45,90 29|00 54,90 54,54 59",
    "Z": "00 90,90 09,09 99|00 90,90 09,09 99,25 75",
}

LOWER = {
    "a": "72 40 12 06 18 49 76,70 79|11 40 71 79,74 34 06 18 49 77|82 50 13 07 39 68 82,82 87 99",
    "b": "10 19,15 43 74 86 68 49 18|20 17 39 69 87 74 44 16",
    "c": "72 40 11 04 07 39 78|82 50 13 06 29 69 87",
    "d": "80 89,85 53 24 16 18 49 87|80 87 99,85 54 25 17 39 69 86",
    "e": "15 85,85 82 50 20 04 07 29 69 88|06 54 82 60 20 04 08 39 87",
    "f": "81 60 42 49,24 74|70 41 39,15 65",
    "g": "82 50 22 14 36 66 83,80 87 69 29 08|81 50 21 13 35 65 82,81 86 59 19",
    "h": "10 19,15 44 74 86 89|20 19,16 44 65 69",
    "i": "43 49,40 41|43 48 69,40 41",
    "j": "53 57 39 19,50 51|63 67 49 28,60 61",
    "k": "10 19,73 16,36 79|10 19,64 16,26 79",
    "l": "40 49|40 47 69|16 50 40 37 49 68",
    "m": "02 09,04 22 43 49,44 62 83 89|12 09,05 32 43 39,44 72 83 89",
    "n": "12 19,15 42 73 79|12 19,15 43 74 78 99",
    "o": "40 11 04 17 49 78 95 81 40|50 20 03 06 29 59 86 83 50",
    "p": "10 19,12 40 71 73 55 14|20 09,13 50 72 64 35",
    "q": "80 89,82 50 21 13 35 65 83|70 79 97,71 40 11 13 34 72",
    "r": "12 19,15 33 62 82|13 19,16 44 63",
    "s": "81 50 20 12 34 65 87 69 29 07|80 40 12 33 65 87 59 18",
    "t": "40 47 69 88,13 73|40 49,13 73",
    "u": "12 17 39 69 86,82 89|02 06 29 59 85,82 87 99",
    "v": "00 49,49 90|00 38 90",
    "w": "00 29,29 43,43 69,69 90|00 18 39 53 69 88 90",
    "x": "00 99,90 09|10 79,80 09",
    "y": "00 45,90 29|11 15 36 75,80 87 59 18",
    "z": "00 90,90 09,09 99|10 80,80 19,19 89",
}

SIGNS = {
    "+": "04 94,50 59|05 95,40 49",
    "=": "03 93,06 96|02 92,07 97",
    "×": "00 99,90 09|11 88,81 18",
    "÷": "05 95,41 52,47 58|05 95,50 51,59 58",
    "<": "81 05,05 88",
    ">": "01 85,85 08",
    "?": "12 30 60 81 74 55 56,58 59",
    "!": "50 56,58 59",
    "∞": "45 22 04 27 45 72 94 77 45",
    "√": "05 15,15 39,39 60,60 90",
    "π": "02 20 90,30 39,60 67 79",
    "α": "91 67 39 07 04 21 51 77 98",
    "β": "09 13 30 61 63 34,34 75 77 58 27",
    "γ": "02 21 45 49 68 55 90",
    "δ": "70 30 22 65 77 59 18 25 54",
    "θ": "40 12 07 49 77 72 40,05 85",
    "λ": "00 20 89,54 09",
    "μ": "00 09,06 38 67 71,70 78 99",
    "σ": "90 40 13 07 39 67 64 40",
    "φ": "40 49,42 14 17 48 77 74 42",
    "ω": "10 04 08 28 46 45 46 68 87 93 80",
    "ε": "81 40 12 44,44 06 18 49 88",
    "Σ": "80 00,00 55,55 09,09 89",
    "Δ": "40 09,09 99,99 40",
    "Π": "00 90,20 29,70 79",
    "Ω": "09 39,39 06 12 40 72 86 59,59 99",
    "Γ": "19 10,10 80",
    "Λ": "09 40,40 89",
}

SKELETONS = {**DIGITS, **UPPER, **LOWER, **SIGNS}


def parse(text: str) -> list[list[np.ndarray]]:
    """Parse the skeletons of one character.

    Args:
      text: alternatives separated by ``|``, strokes by ``,``, points (column, row) by a space.

    Returns:
      For each alternative its strokes, float arrays [points, 2] of (x, y) in [0, 1].

    >>> [stroke.tolist() for stroke in parse("00 90,90 09")[0]]
    [[[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]
    """
    return [
        [
            np.array([(int(p[0]) / 9, int(p[1]) / 9) for p in stroke.split()])
            for stroke in alternative.split(",")
        ]
        for alternative in text.split("|")
    ]


def smooth(points: np.ndarray, pieces: int = 6) -> np.ndarray:
    """A Catmull-Rom curve through ``points`` [n, 2]; closed when the last point is the first."""
    if len(points) == 2:
        return points
    if np.allclose(points[0], points[-1]):
        before, after = points[-2], points[1]
    else:
        before, after = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    p = np.concatenate([[before], points, [after]])
    t = np.arange(pieces)[:, None, None] / pieces
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    return np.concatenate([curve.transpose(1, 0, 2).reshape(-1, 2), points[-1:]])


def draw(char: str, rng: np.random.Generator) -> np.ndarray:
    """Write ``char`` once, as line segments.

    Returns:
      float array [segments, 2, 2] (segment, end, xy), the larger side of the box around it spans
      [-1, 1] and its centre is the origin; y points down.

    Raises:
      KeyError: no skeleton is known for ``char``.
    """
    alternatives = parse(SKELETONS[char])
    strokes = alternatives[rng.integers(len(alternatives))]
    sizes = [len(s) for s in strokes]
    points, where = np.unique(np.concatenate(strokes), axis=0, return_inverse=True)
    points = points + rng.normal(0, rng.uniform(0.01, 0.055), points.shape)
    points[:, 0] *= rng.uniform(0.5, 1.05)
    strokes = np.split(points[where.reshape(-1)], np.cumsum(sizes)[:-1])
    curves = [smooth(s) for s in strokes]
    curves = [_reach(c, rng) for c in curves]
    lines = np.concatenate([np.stack([c[:-1], c[1:]], 1) for c in curves])
    return fit(_bend(lines, rng))


def _reach(curve: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move the ends of an open curve along its direction: a hand over- and undershoots."""
    if np.allclose(curve[0], curve[-1]) and len(curve) > 2:
        return curve
    curve = curve.copy()
    for end, inner in ((0, 1), (-1, -2)):
        direction = curve[end] - curve[inner]
        length = np.linalg.norm(direction) + 1e-6
        curve[end] += direction / length * np.clip(rng.normal(0, 0.03), -0.5 * length, 0.09)
    return curve


def _bend(lines: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lean by a random slant, rotate a little, and add two slow waves to the plane."""
    x, y = lines[..., 0], lines[..., 1]
    x = x + rng.normal(0.08, 0.2) * (0.5 - y)
    angle = rng.normal(0, 0.07)
    x, y = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    wave = rng.normal(0, 0.02, 4)
    phase = rng.uniform(0, 2 * np.pi, 4)
    dx = wave[0] * np.sin(4 * y + phase[0]) + wave[1] * np.sin(5 * x + phase[1])
    dy = wave[2] * np.sin(4 * x + phase[2]) + wave[3] * np.sin(5 * y + phase[3])
    return np.stack([x + dx, y + dy], -1)


def fit(lines: np.ndarray) -> np.ndarray:
    """Centre the drawing and scale its larger side to [-1, 1]."""
    low, high = lines.min((0, 1)), lines.max((0, 1))
    return (lines - (low + high) / 2) * (2 / max((high - low).max(), 1e-6))
