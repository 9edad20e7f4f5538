"""Draws what a merge is: models times leaves, a fold down the rows, streamed along the columns.

    python experiments/draw_grid.py        # writes docs/images/grid.svg

The figures in the last row are computed: `jm.magmax(factor=1.0)` folds the rows above it, one entry
shown for each leaf.  The picture follows the reader's light or dark setting by itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

LEAVES = ("embed", "attn/query", "attn/out", "mlp/in", "mlp/out")
TASKS = (  # task vectors, one entry for each leaf
    (0.1, -0.7, 0.2, 0.4, -0.1),
    (-0.3, 0.2, 0.6, -0.1, 0.2),
    (0.9, 0.4, -0.5, 0.2, -0.3),
    (-0.2, 0.1, 0.3, -0.8, 0.5),
)
OUT = Path(__file__).parents[1] / "docs" / "images" / "grid.svg"

WIDTH, HEIGHT = 580, 432
LEFT, TOP, CELL_W, CELL_H, GAP = 116, 92, 86, 40, 6
STYLE = """
    text { font: 15px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #15191f; }
    .code { font: 14px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
    .soft { fill: #56606b; font-size: 14px; }
    .cell { fill: #f3f6fa; stroke: #d5dbe2; }
    .won { fill: #cfe0f5; stroke: #2a63b7; }
    .sum { fill: #2a63b7; stroke: #2a63b7; }
    .onsum { fill: #ffffff; font-weight: 600; }
    .line { stroke: #56606b; stroke-width: 1.5; fill: none; }
    .tip { fill: #56606b; }
    @media (prefers-color-scheme: dark) {
      text { fill: #eef1f4; }
      .soft { fill: #a3adb8; }
      .cell { fill: #1c2229; stroke: #39424c; }
      .won { fill: #1d3a5f; stroke: #3aafff; }
      .sum { fill: #3aafff; stroke: #3aafff; }
      .onsum { fill: #0b0e12; }
      .line { stroke: #a3adb8; }
      .tip { fill: #a3adb8; }
    }
"""


def merged() -> np.ndarray:
    """The merge itself, by the library."""
    import jaxmerge as jm

    base = {name: np.zeros(1, np.float32) for name in LEAVES}
    models = [
        {name: np.float32([value]) for name, value in zip(LEAVES, row, strict=True)}
        for row in TASKS
    ]
    out = jm.merge(jm.magmax(factor=1.0), base, models)
    return np.array([float(out[name][0]) for name in LEAVES])


def number(value: float) -> str:
    """+.9 and −.7, as they stand in a cell."""
    return f"{'−' if value < 0 else '+'}{abs(value):.1f}".replace("0.", ".")


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words at a place."""
    return f'  <text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def cell(column: int, y: float, value: float, kind: str, word: str = "") -> str:
    """One cell of the grid with its figure."""
    x = LEFT + column * (CELL_W + GAP)
    box = f'  <rect x="{x}" y="{y}" width="{CELL_W}" height="{CELL_H}" rx="6" class="{kind}"/>'
    return f"{box}\n{text(x + CELL_W / 2, y + 27, number(value), word, 'middle')}"


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """A line with a tip; horizontal or vertical."""
    (dx, dy) = (1, 0) if y0 == y1 else (0, 1)
    tip = [
        (x1, y1),
        (x1 - 9 * dx - 5 * dy, y1 - 9 * dy - 5 * dx),
        (x1 - 9 * dx + 5 * dy, y1 - 9 * dy + 5 * dx),
    ]
    points = " ".join(f"{x:g},{y:g}" for x, y in tip)
    return (
        f'  <path d="M{x0:g} {y0:g}L{x1 - 8 * dx:g} {y1 - 8 * dy:g}" class="line"/>\n'
        f'  <polygon points="{points}" class="tip"/>'
    )


def draw() -> str:
    """The whole picture."""
    result, rows = merged(), np.array(TASKS)
    right = LEFT + len(LEAVES) * (CELL_W + GAP) - GAP
    out = [
        text(LEFT, 24, "columns are read one by one: from files, one leaf at a time", "soft"),
        arrow(LEFT, 38, right, 38),
    ]
    for c, name in enumerate(LEAVES):
        x = LEFT + c * (CELL_W + GAP) + CELL_W / 2
        out.append(text(x, TOP - 14, name, "code", "middle"))
    for t, row in enumerate(TASKS):
        y = TOP + t * (CELL_H + GAP)
        out.append(text(44, y + 27, f"model {t + 1}"))
        for c, value in enumerate(row):
            won = np.isclose(value, result[c]) and abs(value) == np.abs(rows[:, c]).max()
            out.append(cell(c, y, value, "won" if won else "cell"))
    bottom = TOP + len(TASKS) * (CELL_H + GAP) - GAP
    out.append(arrow(24, TOP, 24, bottom + 96))
    turned = f'<g transform="rotate(-90 14 {(TOP + bottom) / 2 + 44:g})">'
    out.append(f"  {turned}")
    out.append(text(14, (TOP + bottom) / 2 + 44, "rows arrive over time", "soft", "middle"))
    out.append("  </g>")
    for c in range(len(LEAVES)):
        x = LEFT + c * (CELL_W + GAP) + CELL_W / 2
        out.append(arrow(x, bottom + 8, x, bottom + 48))
    y = bottom + 54
    out.append(text(44, y + 27, "merged"))
    out += [cell(c, y, value, "sum", "onsum") for c, value in enumerate(result)]
    lines = (
        "A fold down each column: init, update, update, …, finalize.",
        "Here MagMax: of each entry, the value that moved furthest.",
    )
    out += [text(44, y + CELL_H + 32 + 23 * k, line, "soft") for k, line in enumerate(lines)]
    body = "\n".join(out)
    return f"""<svg xmlns="http://www.w3.org/2000/svg"
  viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="what">
  <title id="what">A merge is a fold over a grid of models and leaves</title>
  <style>{STYLE}  </style>
{body}
</svg>
"""


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(draw(), encoding="utf-8")
    print(f"wrote {OUT}")
