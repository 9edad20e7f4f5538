"""Which drawings there are: concepts, styles, domains and colours, drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxmerge.data.glyphs.bank import Bank
from jaxmerge.data.glyphs.concepts import (
    CONCEPTS,
    DOMAINS,
    KIND_OF,
    KINDS,
    by_kind,
)
from jaxmerge.data.glyphs.render import BLACK, DOMAIN, DRAWN, HAND, RGB, WHITE, render

MIXTURE = {
    "digit": 0.30, "upper": 0.17, "lower": 0.15, "greek": 0.06, "sign": 0.07, "shape": 0.09,
    "count": 0.07, "pattern": 0.04, "direction": 0.05,
}  # fmt: skip
DOMAIN_SHARES = dict(zip(DOMAINS, (0.13, 0.15, 0.15, 0.08, 0.12, 0.08, 0.08, 0.21), strict=True))
HANDWRITTEN_SHARE = 0.65
_PAIRS = np.array(
    [
        (i, j)
        for i in range(len(RGB))
        for j in range(len(RGB))
        if np.linalg.norm(RGB[i] - RGB[j]) > 140
    ]
)


@dataclass(frozen=True)
class World:
    """A distribution over images and their attributes.

    Attributes:
      bank: the drawings.
      mixture: kind -> share of the images.
      domains: domain -> share.
      handwritten: share of handwriting among characters that can be handwritten.
    """

    bank: Bank
    mixture: dict[str, float] = field(default_factory=lambda: MIXTURE)
    domains: Mapping[Any, float] = field(default_factory=lambda: DOMAIN_SHARES)
    handwritten: float = HANDWRITTEN_SHARE

    def sample(self, rng: np.random.Generator, n: int, concepts=None, style: str | None = None):
        """Render ``n`` images.

        Args:
          concepts: int [n], what each image shows; drawn from the mixture by default.
          style: "printed" or "handwritten" where a concept has it.

        Returns:
          (images uint8 [n, 32, 32, 3], attributes int32 [n, 6]).
        """
        concepts = self.subjects(rng, n) if concepts is None else np.asarray(concepts)
        rows = np.zeros((n, 6), np.int32)
        rows[:, 0], rows[:, 1] = concepts, KIND_OF[concepts]
        drawing = np.zeros(n, np.int64)
        hand = rng.random(n) < (self.handwritten if style is None else style == "handwritten")
        place = rng.random(n)
        for i, concept in enumerate(concepts.tolist()):
            rows[i, 2], choices = self._choices(concept, bool(hand[i]))
            drawing[i] = choices[int(place[i] * len(choices))]
        rows[:, 3] = self._domains(rng, rows)
        rows[:, 4:] = _colours(rng, rows)
        return render(self.bank, drawing, rows, rng), rows

    def subjects(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw ``n`` concepts from the mixture."""
        shares = np.array([self.mixture.get(kind, 0.0) for kind in KINDS])
        kinds = rng.choice(len(KINDS), n, p=shares / shares.sum())
        members = [np.array(by_kind(kind)) for kind in KINDS]
        return np.array([rng.choice(members[k]) for k in kinds])

    def _choices(self, concept: int, hand: bool) -> tuple[int, np.ndarray]:
        if (concept, DRAWN) in self.bank.rows:
            return DRAWN, self.bank.rows[concept, DRAWN]
        style = HAND if hand and (concept, HAND) in self.bank.rows else 0
        if (concept, style) not in self.bank.rows:
            raise ValueError(
                f"the bank has no drawing of {CONCEPTS[concept].name!r}; build it with this concept"
            )
        return style, self.bank.rows[concept, style]

    def _domains(self, rng, rows):
        shares = np.array([self.domains.get(d, 0.0) for d in DOMAINS])
        chosen = rng.choice(len(DOMAINS), len(rows), p=shares / shares.sum())
        if len(self.domains) > 1:  # a pattern has no edge to trace and no ground to texture
            bare = rows[:, 1] == KINDS.index("pattern")
            unfit = np.isin(chosen, (DOMAIN["outlined"], DOMAIN["textured"]))
            chosen = np.where(bare & unfit, DOMAIN["coloured"], chosen)
        return chosen


def _colours(rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
    """Ink and ground of each image, int [n, 2]: far enough apart to be told from another."""
    n = len(rows)
    pairs = _PAIRS[rng.integers(len(_PAIRS), size=n)]
    grey = rng.random(n)
    domain = rows[:, 3]
    low = domain == DOMAIN["pixelated"]
    light = (domain == DOMAIN["inverted"]) | (low & (grey < 0.7))
    dark = (domain == DOMAIN["plain"]) | (low & (grey > 0.85))
    other = ~np.isin(domain, (DOMAIN["coloured"], DOMAIN["pixelated"]))
    light |= other & ~dark & (grey < 0.25)
    dark |= other & ~light & (grey > 0.75)
    pairs = np.where(light[:, None], (WHITE, BLACK), pairs)
    return np.where(dark[:, None], (BLACK, WHITE), pairs)
