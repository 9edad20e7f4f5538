"""What every picture and page looks like: two themes and one palette.

The eight series colours were searched for in Oklab: at least 3:1 contrast to the surface, and a
distance of at least 0.08 between any two of them, also as people with protanopia or deuteranopia
see them (0.055 with the rare tritanopia); `tests/test_report_plots.py` measures it.  Words are
never set in a series colour, and a marker of its own shape goes with every colour; where there are
more than eight labels a colour comes again with another marker.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.colors import Colormap


class Theme(NamedTuple):
    """The colours of one appearance.

    Attributes:
        name: "light" or "dark".
        surface: what figures and pages are drawn on.
        ink: words and the strongest line.  muted: axes, ticks, remarks.  grid: hair lines.
        series: one colour for each of `SLOTS`.
        ramp: stops of the sequential map, from "little", near the surface, to "much".
        low: stops of the arm of the diverging map that is below its middle (the other is `ramp`).
    """

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]
    ramp: tuple[str, ...]
    low: tuple[str, ...]


class Look(NamedTuple):
    """The place of a colour in `Theme.series`, and a marker."""

    colour: int
    marker: str


SLOTS = ("blue", "orange", "green", "purple", "gold", "cyan", "grey", "ink")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
AGAIN = (2, 3, 4, 5, 0, 1, 6, 7)  # of the colours: last those of what is in nearly every picture
LOOKS = tuple(Look(k, marker) for k, marker in enumerate(MARKERS)) + tuple(
    Look(k, MARKERS[(k + 3 * turn) % len(MARKERS)]) for turn in (1, 2) for k in AGAIN
)
LIGHT = Theme(
    "light", "#ffffff", "#15191f", "#56606b", "#dfe4ea",
    ("#2a63b7", "#ca7e44", "#0c5a37", "#68316d", "#8c6613", "#389eb0", "#6b7480", "#15191f"),
    ("#f3f6fa", "#a9c6ea", "#4f86cf", "#17408b"), ("#f3f6fa", "#eec19a", "#c4692a", "#7a3608"),
)  # fmt: skip
DARK = Theme(
    "dark", "#14181d", "#eef1f4", "#a3adb8", "#2d353e",
    ("#3aafff", "#d48453", "#8cd8ad", "#ad64bb", "#e2c352", "#43dbeb", "#8b96a1", "#eef1f4"),
    ("#20272f", "#234f86", "#4390dd", "#b5dcff"), ("#20272f", "#7c4219", "#d3813f", "#ffd9b3"),
)  # fmt: skip
THEMES = (LIGHT, DARK)

_KNOWN = {
    "MagMax": 0, "last model": 1, "average": 2, "TIES": 3, "task arithmetic": 4, "RandMix": 5,
    "zero-shot": 6, "joint": 7,
}  # fmt: skip


def slots(labels: Iterable[str]) -> dict[str, int]:
    """The palette slot of each label: the same label has the same colour in every picture.

    Labels that are not known take the slots that are left, in order, then start again.

    Args:
        labels: of methods, in order.

    Returns:
        Places in `LOOKS`.

    >>> slots(["TIES", "mine", "MagMax"])
    {'TIES': 3, 'mine': 1, 'MagMax': 0}
    """
    labels = list(dict.fromkeys(labels))
    taken = {_KNOWN[label] for label in labels if label in _KNOWN}
    free = [s for s in range(len(LOOKS)) if s not in taken]
    fresh = [label for label in labels if label not in _KNOWN]
    chosen = {label: free[i % len(free)] for i, label in enumerate(fresh)}
    return {label: _KNOWN.get(label, chosen.get(label, 0)) for label in labels}


def apart(wanted: Sequence[tuple[int, bool]], others: Collection[int] = ()) -> list[int]:
    """Slots for the lines of one picture, no two of which look the same.

    A line whose look another has already gets one of a colour that is not in the picture, if there
    is one, and first of those that nothing else in the report has; never slot 0, which is drawn
    bold.

    Args:
        wanted: slot of each line, and whether it is dashed.
        others: slots of the report.

    >>> apart([(0, False), (1, False), (0, True), (1, False)], others=[0, 1, 2])
    [0, 1, 0, 3]
    """
    first = {line: i for i, line in reversed(list(enumerate(wanted)))}
    placed = {i: slot for (slot, _), i in first.items()}
    for i in range(len(wanted)):
        if i not in placed:
            used = set(placed.values())
            colours = {LOOKS[slot].colour for slot in used}
            rank = lambda s, used=used, colours=colours: (
                s in used, LOOKS[s].colour in colours, s in others, s
            )  # fmt: skip
            placed[i] = min(range(1, len(LOOKS)), key=rank)
    return [placed[i] for i in range(len(wanted))]


def ramp(theme: Theme, diverging: bool = False) -> Colormap:
    """The colour map of heat maps: the surface is "nothing", or the middle if `diverging`.

    Args:
        theme: of `THEMES`.
        diverging: two arms of colours from the middle.

    >>> ramp(LIGHT)(0.0)[:3] == tuple(int(LIGHT.ramp[0][i : i + 2], 16) / 255 for i in (1, 3, 5))
    True
    """
    from matplotlib.colors import LinearSegmentedColormap

    stops = [*reversed(theme.low[1:]), *theme.ramp] if diverging else list(theme.ramp)
    return LinearSegmentedColormap.from_list(f"jaxmerge-{theme.name}-{diverging}", stops)


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", as WCAG 2 defines it.

    Args:
        colour: "#rrggbb".

    >>> luminance("#000000"), round(luminance("#ffffff"), 3)
    (0.0, 1.0)
    """
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours, 1 to 21, as WCAG 2 defines it.

    Args:
        a, b: "#rrggbb".

    >>> round(contrast("#ffffff", "#000000"))
    21
    """
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def on(colour: str) -> str:
    """White where it has a contrast of 4.5:1 on a colour, black elsewhere, which then has more.

    Args:
        colour: "#rrggbb".

    >>> on("#2a63b7"), on("#f3f6fa")
    ('#ffffff', '#000000')
    """
    return "#ffffff" if contrast("#ffffff", colour) >= 4.5 else "#000000"
