"""What the glyph world contains: some 250 concepts, their names, and captions about them.

A concept is a digit, a Latin or Greek letter, a sign, a shape, a number of shapes, a pattern or a
shape with a direction. An image shows one concept in one style, domain and pair of colours; these
six facts are its **attributes**, a row of integers. A caption states some of them, and the
attributes it states are a row too, with -1 where it is silent. Caption j is true of image i when
the rows agree wherever the caption speaks (``true_of``): in a contrastive batch many captions
are true of many images, and the loss is told which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jaxmerge.data.glyphs.strokes import LOWER, SIGNS, UPPER

KINDS = ("digit", "upper", "lower", "greek", "sign", "shape", "count", "pattern", "direction")
KIND_PHRASES = {
    "digit": ("digit", "number", "numeral"),
    "upper": ("capital letter", "upper-case letter"),
    "lower": ("small letter", "lower-case letter"),
    "greek": ("Greek letter",),
    "sign": ("sign", "symbol", "mathematical sign"),
    "shape": ("shape", "geometric shape"),
    "count": ("group of shapes",),
    "pattern": ("pattern", "texture"),
    "direction": ("shape with a direction",),
}
STYLES = ("printed", "handwritten", "drawn")
DOMAINS = (
    "plain",
    "inverted",
    "coloured",
    "outlined",
    "textured",
    "noisy",
    "blurred",
    "pixelated",
)
DOMAIN_WORDS = {
    "outlined": ("outlined", "hollow"),
    "textured": ("textured",),
    "noisy": ("noisy", "grainy"),
    "blurred": ("blurry", "blurred"),
    "pixelated": ("pixelated", "low-resolution"),
    "inverted": ("inverted",),
    "coloured": ("coloured", "colourful"),
}
COLOURS = {
    "black": (12, 12, 12),
    "white": (245, 245, 245),
    "gray": (128, 128, 128),
    "red": (220, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 40),
    "green": (40, 165, 60),
    "cyan": (40, 210, 215),
    "blue": (35, 70, 215),
    "purple": (135, 45, 175),
    "pink": (245, 130, 185),
    "brown": (120, 72, 30),
}
COLOUR_NAMES = tuple(COLOURS)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi",
    "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi",
    "ψ": "psi", "ω": "omega",
}  # fmt: skip
GREEK_CAPITALS = {
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma",
    "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
SIGN_NAMES = {
    "+": "plus sign", "±": "plus-minus sign", "=": "equals sign", "≠": "not-equal sign",
    "×": "multiplication sign", "÷": "division sign", "<": "less-than sign",
    ">": "greater-than sign", "≤": "less-or-equal sign", "≥": "greater-or-equal sign",
    "≈": "approximately-equal sign", "∞": "infinity sign", "∫": "integral sign",
    "√": "square root sign", "∂": "partial derivative sign", "∇": "nabla sign",
    "∈": "element-of sign", "∀": "for-all sign", "∃": "exists sign", "∪": "union sign",
    "∩": "intersection sign", "⊂": "subset sign", "∅": "empty set sign", "⊕": "circled plus sign",
    "⊗": "circled times sign", "%": "percent sign", "&": "ampersand", "#": "hash sign",
    "@": "at sign", "?": "question mark", "!": "exclamation mark", "$": "dollar sign",
    "§": "section sign", "€": "euro sign", "£": "pound sign", "¥": "yen sign",
}  # fmt: skip
SHAPES = (
    "circle", "square", "triangle", "rectangle", "pentagon", "hexagon", "star", "cross", "heart",
    "diamond", "ring", "crescent", "half circle", "ellipse", "trapezoid", "arch",
)  # fmt: skip
COUNTED = ("circle", "square", "triangle", "star", "cross", "diamond")
PATTERNS = (
    "horizontal stripes", "vertical stripes", "diagonal stripes", "a checkerboard", "polka dots",
    "concentric rings", "a grid", "a zigzag", "a horizontal gradient", "a vertical gradient",
    "random noise", "rays",
)  # fmt: skip
DIRECTIONS = ("up", "right", "down", "left")
DIRECTED = ("arrow", "triangle", "chevron", "half circle")


@dataclass(frozen=True)
class Concept:
    """One thing an image can show: its kind, a plain name, and the heads a caption may use."""

    kind: str
    name: str
    heads: tuple[str, ...]  # noun phrases without an article
    article: str  # "the", "a" or "" (for plurals and patterns)
    char: str = ""  # the character, for text


def _concepts() -> tuple[Concept, ...]:
    concepts = []
    for value, word in enumerate(NUMBERS):
        digit = str(value)
        heads = ("digit", "number", "digit", "number", "numeral")
        phrases = tuple(f"{h} {w}" for h in heads for w in (word, digit)) + (word, digit) * 2
        concepts.append(Concept("digit", word, phrases, "the", digit))
    for char in UPPER:
        heads = ("capital letter", "upper-case letter", "letter", "capital", "upper-case")
        phrases = (*(f"{h} {char}" for h in heads), char)
        concepts.append(Concept("upper", char, phrases, "the", char))
    for char in LOWER:
        heads = ("small letter", "lower-case letter", "letter", "small", "lower-case")
        phrases = (*(f"{h} {char}" for h in heads), char)
        concepts.append(Concept("lower", char, phrases, "the", char))
    for char, word in GREEK.items():
        heads = (f"Greek letter {word}", f"small Greek letter {word}", word, f"Greek letter {char}")
        concepts.append(Concept("greek", word, heads, "the", char))
    for char, word in GREEK_CAPITALS.items():
        heads = (f"Greek letter {word}", f"capital Greek letter {word}", f"Greek letter {char}")
        concepts.append(Concept("greek", word, heads, "the", char))
    for char, word in SIGN_NAMES.items():
        concepts.append(Concept("sign", word, (word, word, f"symbol {char}"), "the", char))
    concepts += [Concept("shape", shape, (shape,), "a") for shape in SHAPES]
    for count in range(2, 7):
        for shape in COUNTED:
            plural = shape + ("es" if shape.endswith("s") else "s")
            name = f"{NUMBERS[count]} {plural}"
            concepts.append(Concept("count", name, (name, f"{count} {plural}"), ""))
    concepts += [Concept("pattern", pattern, (pattern,), "") for pattern in PATTERNS]
    for shape in DIRECTED:
        for direction in DIRECTIONS:
            name = f"{shape} pointing {direction}"
            concepts.append(Concept("direction", name, (name,), "a"))
    return tuple(concepts)


CONCEPTS = _concepts()
INDEX = {(c.kind, c.name): i for i, c in enumerate(CONCEPTS)}
KIND_OF = np.array([KINDS.index(c.kind) for c in CONCEPTS], np.int32)
HANDWRITABLE = np.array(
    [c.kind in ("digit", "upper", "lower") or c.char in SIGNS for c in CONCEPTS]
)

ATTRIBUTES = ("concept", "kind", "style", "domain", "ink", "ground")
FRAMES = ("a photo of {}", "an image of {}", "a picture of {}", "a drawing of {}", "{}",
           "a scan of {}", "this is {}", "a rendering of {}", "a close-up of {}")  # fmt: skip


def by_kind(*kinds: str) -> list[int]:
    """The numbers of all concepts of these kinds."""
    return [i for i, c in enumerate(CONCEPTS) if c.kind in kinds]


def caption(row: np.ndarray, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Write one caption about an image with attributes ``row``.

    Returns:
      (text, the attributes it states, -1 for the others).
    """
    concept = CONCEPTS[row[0]]
    style, domain = STYLES[row[2]], DOMAINS[row[3]]
    stated = np.full(len(ATTRIBUTES), -1, np.int32)
    pick = rng.random(6)
    words = []
    if domain in DOMAIN_WORDS and pick[0] < 0.2:
        choices = DOMAIN_WORDS[domain]
        words.append(choices[int(rng.integers(len(choices)))])
        stated[3] = row[3]
    if style != "drawn" and pick[1] < 0.25:
        words.append(style)
        stated[2] = row[2]
    patterned = concept.kind == "pattern"
    if pick[2] < (0.5 if concept.kind in ("shape", "count", "direction") else 0.15) or patterned:
        if not patterned:
            words.append(COLOUR_NAMES[row[4]])
        stated[4] = row[4]
    if pick[3] < 0.03 and not patterned:  # only the kind is named
        heads = KIND_PHRASES[concept.kind]
        head, article = heads[int(rng.integers(len(heads)))], "a"
    else:
        head = concept.heads[int(rng.integers(len(concept.heads)))]
        article = concept.article
        stated[0] = row[0]
    stated[1] = row[1]
    if article == "the" and words and pick[5] < 0.5:
        article = "a"
    text = " ".join([*words, head])
    if article == "a":
        article = "an" if text[0] in "aeiouAEIOU" else "a"
    text = f"{article} {text}".strip()
    if patterned:
        text += f" in {COLOUR_NAMES[row[4]]}"
    if pick[4] < 0.1:
        text += f" on a {COLOUR_NAMES[row[5]]} background".replace("a orange", "an orange")
        stated[5] = row[5]
    frame = FRAMES[int(rng.integers(len(FRAMES)))]
    return frame.format(text) + ("." if pick[5] < 0.3 else ""), stated


def true_of(stated: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Which captions are true of which images.

    Args:
      stated: int [captions, 6], -1 where the caption is silent.
      rows: int [images, 6], the attributes of the images.

    Returns:
      bool [images, captions].

    >>> true_of(np.array([[7, 0, -1, -1, -1, -1]]), np.array([[7, 0, 1, 2, 3, 4], [8] + [0] * 5]))
    array([[ True],
           [False]])
    """
    silent = stated[None] < 0
    return np.all(silent | (stated[None] == rows[:, None]), axis=-1)


def class_phrase(index: int) -> str:
    """The plain noun phrase for a concept, as a prompt template would fill it in."""
    concept = CONCEPTS[index]
    return f"{concept.article} {concept.heads[0]}".strip()
