"""The glyph world: images with captions, and streams of tasks, made by a program.

Digits, letters, signs, shapes, counts, patterns and directions, printed in the fonts that
matplotlib ships or written by hand, in eight domains (plain, inverted, coloured, outlined,
textured, noisy, blurred, pixelated). ``mini``, the CLIP in jaxmerge/assets/mini, is pre-trained
on it.

Read ``concepts`` (what there is and how it is named), ``strokes`` (handwriting), ``bank``
(drawings as distance fields), ``render`` (images from drawings), ``suites`` (tasks), in this
order; ``vocabulary`` is the tokenizer that goes with them.

>>> import numpy as np
>>> from jaxmerge.data import glyphs
>>> world = glyphs.World(glyphs.build(drawings=2, concepts=range(10)), mixture={"digit": 1.0})
>>> rng = np.random.default_rng(0)
>>> images, attributes = world.sample(rng, 4)
>>> images.shape, images.dtype
((4, 32, 32, 3), dtype('uint8'))
>>> text, stated = glyphs.caption(attributes[0], rng)
"""

from jaxmerge.data.glyphs.bank import FONTS, HELD_OUT_FONTS, Bank, build
from jaxmerge.data.glyphs.concepts import (
    CONCEPTS,
    DOMAINS,
    KINDS,
    Concept,
    by_kind,
    caption,
    class_phrase,
    true_of,
)
from jaxmerge.data.glyphs.suites import (
    Split,
    Task,
    class_incremental,
    domain_incremental,
    eight_tasks,
    make_task,
)
from jaxmerge.data.glyphs.world import World

__all__ = [
    "CONCEPTS",
    "DOMAINS",
    "FONTS",
    "HELD_OUT_FONTS",
    "KINDS",
    "Bank",
    "Concept",
    "Split",
    "Task",
    "World",
    "build",
    "by_kind",
    "caption",
    "class_incremental",
    "class_phrase",
    "domain_incremental",
    "eight_tasks",
    "make_task",
    "true_of",
]
