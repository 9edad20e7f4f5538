"""Trees over classes, by name: which class stands under which group, checked once.

`hierarchy` makes of groups the tree that `jaxmerge.data.streams.hierarchy.expansion` and its
relatives take.  Groups of data sets: `GTSRB` and `CALTECH101` here, those of CLINC150 in
`jaxmerge.data.text.clinc150_domains`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxmerge.errors import closest, listed

Level = Mapping[str, Sequence[str]]  # group -> the names one level below


class Hierarchy(NamedTuple):
    """A tree over classes.

    Attributes:
        tree: int [classes, depth]: the label of each class on each level, the coarsest first; the
            last level numbers the classes themselves.
        names: of the labels, all levels in turn, the coarsest first: the columns of a head.
    """

    tree: np.ndarray
    names: tuple[str, ...]


def hierarchy(classes: Sequence[str], *levels: Level) -> Hierarchy:
    """Classes under groups, the groups under others, as deep as levels are given.

    Args:
        classes: names of the finest classes, in the order of their labels, each once.
        levels: each maps groups to the names one level below: the first to the classes, the next
            to the groups of the first, and so on up.

    Returns:
        The tree; labels of a level are numbered in the order of its mapping.

    Raises:
        ValueError: a class that is named twice, has no group or several, a member that is no class,
            a group without members, members that are no list; all of them in one line.

    >>> kinds = {"cat": ["lion", "tiger"], "boat": ["ferry"]}
    >>> tree = hierarchy(["ferry", "lion", "tiger"], kinds, {"animal": ["cat"], "thing": ["boat"]})
    >>> tree.names
    ('animal', 'thing', 'cat', 'boat', 'ferry', 'lion', 'tiger')
    >>> tree.tree.tolist()
    [[1, 1, 0], [0, 0, 1], [0, 0, 2]]
    >>> hierarchy(["ferry", "lion"], {"cat": ["lions"]})
    Traceback (most recent call last):
    ValueError: cat has 'lions', which is no class: did you mean lion?; 'ferry' is in no group; ...
    """
    if isinstance(classes, str) or not _names(classes):
        raise ValueError(f"classes are a list of names, got {classes!r}.")
    below = tuple(classes)
    wrong = [f"{n!r} is the name of {k} classes" for n, k in Counter(below).items() if k > 1]
    columns, names = [np.arange(len(below))], below
    for level in levels:
        wrong += _unfit(below, level)
        if wrong:
            raise ValueError(listed(wrong))
        of = {name: g for g, members in enumerate(level.values()) for name in members}
        above = np.array([of[name] for name in below])
        columns.insert(0, above[columns[0]])
        below, names = tuple(level), (*level, *names)
    if wrong or not len(below):
        raise ValueError(listed(wrong or ["a hierarchy has one class or more, got none"]))
    return Hierarchy(np.stack(columns, 1), names)


def _names(given: object) -> bool:
    """Whether something is a collection of names."""
    return isinstance(given, Collection) and all(isinstance(n, str) for n in given)


def _unfit(below: Sequence[str], level: Level) -> list[str]:
    """What is wrong with one level of groups over the names below it."""
    if not isinstance(level, Mapping):
        return [f"a level maps groups to lists of names, got {type(level).__name__}"]
    names = lambda x: not isinstance(x, str) and _names(x) and len(x) > 0
    if odd := [g for g, members in level.items() if not names(members)]:
        return [f"{g} has {level[g]!r}, expected a list of one or more names" for g in odd]
    if not _names(level):
        return [f"groups are names, got {', '.join(map(repr, level))}"]
    counts = [(g, n, k) for g, members in level.items() for n, k in Counter(members).items()]
    if twice := [f"{g} has {n!r} {k} times" for g, n, k in counts if k > 1]:
        return twice
    groups: dict[str, list[str]] = {}
    for group, members in level.items():
        for name in members:
            groups.setdefault(name, []).append(group)
    unknown = {name: at for name, at in groups.items() if name not in below}
    hints = [closest(str(name), below) for name in unknown]
    wrong = [  # the classes that there are are said once
        f"{' and '.join(at)} has {name!r}, which is no class"
        + f": {hint}" * (hint not in hints[:i])
        for i, ((name, at), hint) in enumerate(zip(unknown.items(), hints, strict=True))
    ]
    wrong += [f"{name!r} is in no group" for name in below if name not in groups]
    return wrong + [
        f"{name!r} is in {len(at)} groups, {', '.join(at)}"
        for name, at in groups.items()
        if len(at) > 1
    ]


# By shape and colour, which say what a sign does: a red ring, a red triangle on its base, a blue
# disc, a disc with a grey bar, or a form of its own (diamond, triangle on its tip, octagon, red
# disc).  Names are those of `jaxmerge.data.registry.entry("gtsrb")`.
GTSRB: Level = {
    "prohibitory": (
        "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70",
        "speed limit 80", "speed limit 100", "speed limit 120", "no passing",
        "no passing for trucks", "no vehicles", "no trucks",
    ),
    "danger": (
        "priority at the next crossing", "danger", "curve to the left", "curve to the right",
        "double curve", "bumpy road", "slippery road", "road narrows on the right", "road work",
        "traffic lights ahead", "pedestrians", "children crossing", "bicycles crossing",
        "ice and snow", "wild animals crossing",
    ),
    "mandatory": (
        "turn right ahead", "turn left ahead", "straight ahead only", "straight ahead or right",
        "straight ahead or left", "keep right", "keep left", "roundabout",
    ),
    "derestriction": (
        "end of speed limit 80", "end of all limits", "end of no passing",
        "end of no passing for trucks",
    ),
    "of its own form": ("priority road", "yield", "stop", "no entry"),
}  # fmt: skip

# By hand, by what a picture shows: a figure of an animal is a figure, extinct animals are animals.
# Names are those of openai/CLIP's list of prompts (one of them has two spaces).
CALTECH101: Level = {
    "mammal": (
        "leopard", "beaver", "body of a cougar cat", "face of a cougar cat", "dalmatian", "dolphin",
        "elephant", "gerenuk", "hedgehog", "kangaroo", "llama", "okapi", "panda", "platypus",
        "rhino", "wild cat",
    ),
    "bird": ("emu", "flamingo", "head of a flamingo", "ibis", "pigeon", "rooster"),
    "reptile": (
        "brontosaurus", "stegosaurus", "crocodile", "head of a  crocodile", "hawksbill",
    ),
    "sea animal": (
        "bass", "sea horse", "octopus", "nautilus", "starfish", "crab", "crayfish", "lobster",
        "trilobite",
    ),
    "insect or arachnid": ("ant", "butterfly", "dragonfly", "mayfly", "scorpion", "tick"),
    "plant or food": (
        "bonsai", "joshua tree", "lotus", "sunflower", "water lilly", "strawberry", "pizza",
    ),
    "person": ("off-center face", "centered face", "brain"),
    "figure or sign": (
        "buddha", "garfield", "snoopy (cartoon beagle)", "dollar bill", "stop sign",
        "yin and yang symbol",
    ),
    "vehicle": (
        "motorbike", "airplane", "side of a car", "ferry", "helicopter", "ketch", "schooner",
        "wheelchair", "inline skate",
    ),
    "musical instrument": (
        "accordion", "electric guitar", "euphonium", "grand piano", "mandolin", "saxophone",
    ),
    "device": (
        "binocular", "camera", "cellphone", "gramophone", "headphone", "laptop", "metronome",
        "watch",
    ),
    "household": (
        "barrel", "ceiling fan", "chair", "chandelier", "cup", "ewer", "lamp", "menorah",
        "soccer ball", "umbrella", "windsor chair",
    ),
    "tool or weapon": ("anchor", "cannon", "revolver", "scissors", "stapler", "wrench"),
    "building": ("minaret", "pagoda", "pyramid"),
}  # fmt: skip
