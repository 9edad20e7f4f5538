"""The glyph world as streams of classification tasks, for experiments with continual learning.

- ``class_incremental``: 62 classes (digits, capitals, small letters) dealt to tasks at random;
- ``domain_incremental``: the same classes again and again, from domain to domain;
- ``eight_tasks``: eight label sets: digits, capitals, small letters, Greek, signs, shapes, counts,
  patterns.

Every image is new to ``mini``: the fonts are those held out of its pre-training, and the
handwriting is drawn afresh, for each split with a seed of its own. The same arguments give the same
arrays. Class names are phrases a prompt template can take, such as "the capital letter A".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmerge.core.draws import draws
from jaxmerge.data.glyphs import bank as banks
from jaxmerge.data.glyphs.concepts import DOMAINS, by_kind, class_phrase
from jaxmerge.data.glyphs.world import DOMAIN_SHARES, World

EIGHT = {
    "digits": ("digit",),
    "capitals": ("upper",),
    "small letters": ("lower",),
    "Greek letters": ("greek",),
    "signs": ("sign",),
    "shapes": ("shape", "direction"),
    "counts": ("count",),
    "patterns": ("pattern",),
}
_SEEDS = {"train": 501, "validation": 502, "test": 503}


@dataclass(frozen=True)
class Split:
    """Images uint8 [n, 32, 32, 3] and labels int32 [n], numbers into the task's class names."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Task:
    """One task of a stream."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split


def make_task(
    name: str,
    concepts,
    sizes: tuple[int, int, int] = (40, 10, 20),
    seed: int = 0,
    domains: Mapping[str, float] | None = None,
) -> Task:
    """Render a task.

    Args:
      concepts: numbers of the concepts which are its classes, in the order of the labels.
      sizes: images a class in train, validation and test.
      seed: of the drawings and of everything else.
      domains: domain -> share; all of them by default.

    Raises:
      ValueError: no concepts, a concept twice, or an unknown domain.

    >>> task = make_task("two digits", [3, 8], sizes=(4, 2, 2))
    >>> task.class_names, task.train.images.shape, task.test.labels.tolist()
    (('the digit three', 'the digit eight'), (8, 32, 32, 3), [0, 0, 1, 1])
    """
    concepts = [int(c) for c in concepts]
    if not concepts or len(set(concepts)) < len(concepts):
        raise ValueError(f"task {name!r}: expected distinct concepts, found {concepts}")
    shares: Mapping[Any, float] = DOMAIN_SHARES if domains is None else domains
    if unknown := sorted(set(shares) - set(DOMAINS)):
        raise ValueError(f"task {name!r}: unknown domains {unknown}, expected some of {DOMAINS}")
    splits = []
    for size, stream in zip(sizes, _SEEDS.values(), strict=True):
        drawn = banks.build(
            seed * 1000 + stream, max(1, min(8, size)), banks.HELD_OUT_FONTS, concepts
        )
        labels = np.repeat(np.arange(len(concepts), dtype=np.int32), size)
        rng = draws(seed, stream, *concepts)
        images, _ = World(drawn, domains=shares).sample(rng, len(labels),
                                                         np.array(concepts)[labels])  # fmt: skip
        splits.append(Split(images, labels))
    return Task(name, tuple(class_phrase(c) for c in concepts), *splits)


def class_incremental(
    tasks: int = 10, seed: int = 0, sizes: tuple[int, int, int] = (40, 10, 20), classes=None
) -> list[Task]:
    """Classes dealt to ``tasks`` tasks in an order drawn from ``seed``.

    Args:
      classes: numbers of concepts; digits, capitals and small letters (62) by default.

    Raises:
      ValueError: fewer classes than tasks.
    """
    classes = by_kind("digit", "upper", "lower") if classes is None else list(classes)
    if not 1 <= tasks <= len(classes):
        raise ValueError(
            f"found {tasks} tasks, expected 1 to {len(classes)}, the classes there are"
        )
    order = draws(seed).permutation(classes)
    return [
        make_task(f"classes {number}", part, sizes, seed)
        for number, part in enumerate(np.array_split(order, tasks))
    ]


def domain_incremental(
    seed: int = 0,
    sizes: tuple[int, int, int] = (40, 10, 20),
    classes=None,
    domains: tuple[str, ...] = DOMAINS,
) -> list[Task]:
    """The same classes (the 62 characters by default), one domain after the other."""
    classes = by_kind("digit", "upper", "lower") if classes is None else list(classes)
    return [make_task(domain, classes, sizes, seed, {domain: 1.0}) for domain in domains]


def eight_tasks(seed: int = 0, sizes: tuple[int, int, int] = (40, 10, 20)) -> list[Task]:
    """Eight tasks with different label sets, 10 to 36 classes each."""
    return [make_task(name, by_kind(*kinds), sizes, seed) for name, kinds in EIGHT.items()]
