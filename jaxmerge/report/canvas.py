"""A figure to draw on and how it is written: layout in inches, words that fit, clean SVG.

A figure is 5 inches wide with type of 9.5 to 12 points, so that it can be read when a phone shows
it at 368 pixels and when it is printed in one column.  Places are given in inches and words are
measured beforehand, so nothing overlaps and nothing is clipped.

Nothing here uses pyplot: figures are objects, the settings hold inside `drawing()` only.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from jaxmerge.report.style import LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.0  # inches; an SVG is 72 units to the inch, so 360 units wide
SMALL, BODY, TITLE = 9.5, 10.5, 12.0  # points
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"


@contextlib.contextmanager
def drawing(theme: Theme) -> Iterator[None]:
    """matplotlib's settings for one figure; the caller's are back afterwards.

    Labels are data: ``$`` starts no formula, and a character that no font has is no error.
    """
    import matplotlib

    settings: Any = {
        "font.family": ["DejaVu Sans"], "font.size": BODY, "text.parse_math": False,
        "text.color": theme.ink, "axes.labelcolor": theme.muted, "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.surface, "figure.facecolor": theme.surface,
        "savefig.facecolor": theme.surface, "xtick.color": theme.muted, "ytick.color": theme.muted,
        "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "axes.labelsize": SMALL,
        "xtick.major.size": 0, "ytick.major.size": 0, "axes.grid": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.linewidth": 0.8, "grid.color": theme.grid, "grid.linewidth": 0.8,
        "lines.linewidth": 1.8, "lines.solid_capstyle": "round", "axes.unicode_minus": True,
        "svg.fonttype": "none", "svg.hashsalt": "jaxmerge", "path.simplify": True,
    }  # fmt: skip
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s)Glyph .* missing")
        yield


def canvas(theme: Theme, height: float, title: str, remark: str = "") -> Figure:
    """An empty figure, `WIDTH` by `height` inches, its title and remark at the top left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = wrap(title, WIDTH - 0.2, TITLE, bold=True)
    remarks = wrap(remark, WIDTH - 0.2, SMALL) if remark else []
    head = (len(lines) * TITLE * 1.3 + len(remarks) * SMALL * 1.35 + 6) / 72
    figure = Figure(figsize=(WIDTH, round(height + head, 2)))
    FigureCanvasAgg(figure)
    y = figure.get_figheight() - 0.06
    for i, text in enumerate([*lines, *remarks]):
        size = TITLE if i < len(lines) else SMALL
        y -= size * 1.3 / 72
        figure.text(
            0.1 / WIDTH, y / figure.get_figheight(), text, size=size,
            weight="bold" if i < len(lines) else "normal",
            color=theme.ink if i < len(lines) else theme.muted,
        )  # fmt: skip
    return figure


def axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the lower left corner."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, bottom / h, width / w, height / h))


@functools.lru_cache(maxsize=4096)
def text_width(text: str, size: float, bold: bool = False) -> float:
    """Width of one line of text in inches."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans", weight=700 if bold else 400)))
    font.set_size(size, 72)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s)Glyph .* missing")
        font.set_text(text)
    return font.get_width_height()[0] / 64 / 72


def wrap(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Break a text into lines of at most `width` inches; one word is never broken, but cut."""
    lines, line = [], ""
    for word in text.split(" "):  # not at no-break spaces
        longer = f"{line} {word}".strip()
        if line and text_width(longer, size, bold) > width:
            lines.append(line)
            longer = word
        line = longer
    return [shorten(one, width, size, bold) for one in [*lines, line]]


def shorten(text: str, width: float, size: float, bold: bool = False) -> str:
    """Cut a text to `width` inches, with an ellipsis if something was cut."""
    if text_width(text, size, bold) <= width:
        return text
    text = text[:200]
    while text and text_width(text + "…", size, bold) > width:
        text = text[:-1]
    return text + "…"


def spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart: at least `gap` between any two, inside [low, high], as near as can be.

    >>> spread([0.0, 0.0, 5.0], 1.0, 0.0, 9.0)
    [0.0, 1.0, 5.0]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    groups: list[list[float]] = []  # [sum of wanted first places, count]
    for k in order:
        groups.append([places[k], 1])
        while len(groups) > 1:
            (a, n), (b, m) = groups[-2:]
            if a / n + n * gap <= b / m + 1e-12:
                break
            groups[-2:] = [[a + b - m * n * gap, n + m]]
    out, k, floor = [0.0] * len(places), 0, low
    for total, n in groups:
        first = max(floor, total / n)
        for j in range(int(n)):
            out[order[k]] = first + j * gap
            k += 1
        floor = first + n * gap
    ceiling = high
    for i in reversed(order):
        out[i] = min(out[i], ceiling)
        ceiling = out[i] - gap
    return out


def png(figure: Figure, theme: Theme = LIGHT, dpi: int = 200) -> bytes:
    """The picture as PNG, without a time stamp."""
    out = io.BytesIO()
    with drawing(theme):
        figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def svg(figure: Figure, theme: Theme, name: str, label: str) -> str:
    """The picture as an SVG element for a page: no ids but its own, no style for others, no stamp.

    Args:
        figure: what to write.
        theme: the theme it was drawn in.
        name: prefix of the ids that are referred to inside, so that many fit into one page.
        label: what a screen reader says.
    """
    out = io.StringIO()
    with drawing(theme):
        stamps = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", metadata=stamps)
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(out.getvalue())
    refs = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", out.getvalue()))
    _own_ids(root, refs, name)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": label, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")


def _own_ids(root: ElementTree.Element, refs: set[str], name: str) -> None:
    for element in root.iter():
        identity = element.attrib.pop("id", None)
        if identity in refs:
            element.attrib["id"] = f"{name}-{identity}"
        for key, value in element.attrib.items():
            if key == f"{{{XLINK}}}href" and value.startswith("#"):
                element.attrib[key] = f"#{name}-{value[1:]}"
            elif "url(#" in value:
                element.attrib[key] = value.replace("url(#", f"url(#{name}-")
            elif key in ("d", "x", "y", "transform", "points", "width", "height"):
                element.attrib[key] = re.sub(
                    r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), value
                )
