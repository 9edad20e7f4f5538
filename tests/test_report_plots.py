"""Pictures: something is drawn, nothing is clipped, words stay apart and readable, SVG repeats."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from report_results import results

from jaxmerge.report import canvas, plots, style, words
from jaxmerge.report.heatmaps import heatmaps
from jaxmerge.report.lines import Series, curves

NAMES = [
    "overview", "first_task", "accuracy_over_tasks", "accuracy_matrix", "merge_factor", "cosine",
    "sign_agreement", "magnitudes", "magmax_share",
]  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    return {p.name: p for p in plots.of(results())}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_every_picture_is_there(drawn):
    assert list(drawn) == NAMES


@pytest.mark.parametrize("theme", style.THEMES, ids=lambda t: t.name)
@pytest.mark.parametrize("name", NAMES)
def test_picture_is_drawn_and_not_clipped(drawn, name, theme):
    image = pixels(canvas.png(drawn[name].draw(theme), theme, dpi=72))
    surface = np.array([int(theme.surface[i : i + 2], 16) for i in (1, 3, 5)])
    ink = np.abs(image - surface).max(-1) > 24
    assert 0.02 < ink.mean() < 0.6  # neither blank nor covered
    edge = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    assert not edge.any()  # nothing runs out of the picture
    right, bottom = ink[:, ink.shape[1] // 2 :], ink[ink.shape[0] // 2 :]
    assert right.any()
    assert bottom.any()
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20  # colours, not two tones


@pytest.mark.parametrize("name", NAMES)
def test_words_do_not_overlap(drawn, name):
    figure = drawn[name].draw(style.LIGHT)
    figure.draw_without_rendering()
    with canvas.drawing(style.LIGHT):
        boxes = [(t.get_text(), t.get_window_extent().shrunk(0.94, 0.7)) for t in shown(figure)]
    limits = figure.bbox
    for text, box in boxes:
        assert limits.x0 <= box.x0, text
        assert box.x1 <= limits.x1, text
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        if first.width and second.width:
            assert not first.overlaps(second), f"{a!r} overlaps {b!r}"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("side", [1, 2, 7])
def test_words_of_heat_maps_below_each_other_do_not_touch(count, side):
    cells = np.linspace(0, 1, side * side).reshape(side, side).tolist()
    figure = heatmaps(
        {f"method {k}, sequential": cells for k in range(count)}, "title", "remark",
        xlabel="rate", ylabel="epochs", columns=[f"{10.0**-k:g}" for k in range(side)],
    )  # fmt: skip
    figure.draw_without_rendering()
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown(figure)]
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), f"{a!r} touches {b!r}"


@pytest.mark.parametrize("y", [[0.25, 0.25], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.01],
                               [-0.01, 0.012], [0.99, 0.9999], [-0.105, -0.1]])  # fmt: skip
def test_axes_hold_what_can_be_and_their_labels_are_whole(y):
    figure = curves({"": [Series("MagMax", [0, 1], y, [0.02, 0.02])]}, "title", "x")
    figure.draw_without_rendering()
    (ax,) = figure.axes
    low, high = ax.get_ylim()
    assert high - low >= 0.02 - 1e-9
    assert low <= min(y)
    assert max(y) <= high <= 1
    assert low >= 0 or min(y) < 0
    assert all(t.get_window_extent().x0 > 4 for t in shown(figure))
    assert all(t.get_clip_on() is False for t in ax.lines if t.get_label() == "MagMax")


def test_a_factor_is_not_said_to_be_best_where_all_are_alike():
    whole = results(seeds=2)
    title = words.factors(whole, [("MagMax", "sequential")])[0]
    assert "does best on validation" in title

    def alike(entry):
        if not entry.sweep:
            return entry
        level = [0.25] * len(entry.sweep.factors)
        return dataclasses.replace(entry, sweep=dataclasses.replace(entry.sweep, accuracy=level))

    seeds = [dataclasses.replace(s, entries=[*map(alike, s.entries)]) for s in whole.seeds]
    flat = dataclasses.replace(whole, seeds=seeds)
    title = words.factors(flat, [("MagMax", "sequential")])[0]
    assert title == "MagMax does equally well on validation at every factor"


def shown(figure):
    """The words of a figure that are drawn (ticks outside the axes' limits are not)."""
    words = [*figure.texts]
    for ax in figure.axes:
        words += [*ax.texts, ax.xaxis.label, ax.yaxis.label]
        words += [t for t in ax.get_children() if hasattr(t, "get_text") and t not in words]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            words += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    return [t for t in words if t.get_text().strip() and t.get_visible()]


def test_svg_repeats_byte_by_byte_and_holds_no_stamp(drawn):
    def once():
        p = {q.name: q for q in plots.of(results())}["accuracy_over_tasks"]
        return canvas.svg(p.draw(style.LIGHT), style.LIGHT, p.name, p.title)

    first, second = once(), once()
    assert first == second
    assert not re.search(r"<dc:|20\d\d-\d\d|Matplotlib|<metadata|<style", first)


def test_svg_ids_are_used_and_named_after_the_picture(drawn):
    p = drawn["overview"]
    text = canvas.svg(p.draw(style.DARK), style.DARK, "overview-dark", p.title)
    ids = re.findall(r'\bid="([^"]*)"', text)
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    assert ids
    assert all(i.startswith("overview-dark-") for i in ids)
    assert {a or b for a, b in used} == set(ids)


def test_svg_words_are_words_and_escaped():
    bad = '<script>alert(1)</script> $\\frac{1}$ & "x"'
    pictures = plots.of(results(label=bad))
    p = next(q for q in pictures if q.name == "accuracy_over_tasks")
    text = canvas.svg(p.draw(style.LIGHT), style.LIGHT, p.name, p.title)
    assert "<script" not in text
    root = ElementTree.fromstring(text)
    shown = "".join(root.itertext())
    assert "<script>" in shown  # as words, to be read
    assert root.get("role") == "img"
    assert root.get("aria-label") == p.title


def test_nothing_global_is_left_behind():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.of(results())[0].draw(style.DARK)
    assert dict(matplotlib.rcParams) == before


def test_one_task_one_seed_and_missing_figures_do_not_break():
    one = results(seeds=1, tasks=1)
    assert [p.name for p in plots.of(one) if p.draw(style.LIGHT)]
    bare = results(seeds=1)
    for run in bare.seeds:
        run.vectors = []
        for e in run.entries:
            e.sweep = None
    assert [p.name for p in plots.of(bare)] == NAMES[:4]
    empty = results(seeds=1)
    empty.seeds, empty.summary = [], []
    assert plots.of(empty) == []


def test_many_tasks_fit():
    many = results(seeds=1, tasks=30)
    for p in plots.of(many):
        image = pixels(canvas.png(p.draw(style.LIGHT), style.LIGHT, dpi=50))
        assert image.min() < 80


def test_matrix_shows_its_numbers_and_leaves_gaps():
    figure = heatmaps({"a": [[0.5, None], [0.25, 1.0]]}, "title")
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert texts == ["50", "25", "100"]
    assert figure.axes[0].collections[0].get_array().mask.tolist() == [
        [False, True],
        [False, False],
    ]


def test_curve_labels_stand_at_their_lines_in_order():
    lines = [Series(f"line {k}", [1, 2], [0.0, 0.5 + 0.001 * k], slot=k) for k in range(6)]
    figure = curves({"": lines}, "title", "x")
    at = [t.get_position()[1] for t in figure.axes[0].texts]
    assert at == sorted(at)
    assert at[0] > 0
    assert at[-1] < 1
    inches = figure.axes[0].get_position().height * figure.get_figheight()
    assert np.diff(at).min() * inches * 72 >= canvas.SMALL  # a line of words apart


@pytest.mark.parametrize(
    "places", [[0.0] * 5, [3.0, 1.0, 2.0], [9.0, 9.0, 9.0], [0.0, 0.1, 8.9, 9.0], [4.0]]
)
def test_spread_keeps_order_gap_and_limits(places):
    out = canvas.spread(places, 1.0, 0.0, 9.0)
    by_place = [out[i] for i in sorted(range(len(places)), key=lambda i: places[i])]
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(by_place))
    assert by_place[0] >= -1e-9
    assert by_place[-1] <= 9 + 1e-9


@pytest.mark.parametrize("theme", style.THEMES, ids=lambda t: t.name)
def test_colours_can_be_told_apart_and_read(theme):
    assert all(style.contrast(c, theme.surface) >= 3 for c in theme.series)
    assert style.contrast(theme.ink, theme.surface) >= 7
    assert style.contrast(theme.muted, theme.surface) >= 4.5
    for name, view in VIEWS.items():
        seen = [oklab(view @ linear(c)) for c in theme.series]
        gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
        assert min(gaps) > (0.055 if name == "tritanopia" else 0.08)


def test_no_two_lines_look_the_same():
    assert len(set(style.LOOKS)) == len(style.LOOKS)
    labels = [*"abcdefghijklmnop", "MagMax", "last model"]
    assert len(set(style.slots(labels).values())) == len(labels)
    many = style.apart([(1, False)] * 9 + [(1, True)], others=range(8, 12))
    assert many[0] == many[-1] == 1
    assert len(set(many)) == 9
    assert len({style.LOOKS[slot].colour for slot in many}) == 8
    assert 0 not in many  # drawn bold: of MagMax alone


@pytest.mark.parametrize("theme", style.THEMES, ids=lambda t: t.name)
@pytest.mark.parametrize("diverging", [False, True])
def test_words_on_heat_maps_can_be_read(theme, diverging):
    from matplotlib.colors import to_hex

    colours = [to_hex(style.ramp(theme, diverging)(x)) for x in np.linspace(0, 1, 101)]
    assert min(style.contrast(style.on(c), c) for c in colours) >= 4.5
    ends = [style.contrast(c, theme.surface) for c in colours[50:]]
    assert ends == sorted(ends)  # more is always further from the surface


def matrix(rows: str) -> np.ndarray:
    return np.array([[float(v) for v in row.split()] for row in rows.split(";")])


# How people with two kinds of cones see: Machado, Oliveira and Fernandes 2009, severity 1.
VIEWS = {
    "all cones": np.eye(3),
    "deuteranopia": matrix(
        "0.367322 0.860646 -0.227968; 0.280085 0.672501 0.047413; -0.011820 0.042940 0.968881"
    ),
    "protanopia": matrix(
        "0.152286 1.052583 -0.204868; 0.114503 0.786281 0.099216; -0.003882 -0.048116 1.051998"
    ),
    "tritanopia": matrix(
        "1.255528 -0.076749 -0.178779; -0.078411 0.930809 0.147602; 0.004733 0.691367 0.303900"
    ),
}


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Oklab (Ottosson 2020) of linear sRGB."""
    lms = matrix(
        "0.41222147 0.53633254 0.05144599; 0.21190350 0.68069955 0.10739696;"
        "0.08830246 0.28171884 0.62997870"
    )
    lab = matrix(
        "0.21045426 0.79361779 -0.00407205; 1.97799850 -2.42859221 0.45059371;"
        "0.02590404 0.78277177 -0.80867577"
    )
    return lab @ np.cbrt(lms @ np.clip(rgb, 0, 1))
