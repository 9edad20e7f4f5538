"""The table of docs/scaling.md from `results/placement.json`; `readme.py` puts it there."""

from __future__ import annotations

from typing import Any


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| Method | Kept | Gathered (longer axis) | Summed | Temporaries "
        "| Gathered (shorter axis) | Summed | Temporaries | Compilations |",
        "| :-- | :-: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for name, row in rows.items():
        every = [
            f"{row[place][k]:g}"
            for place in ("longer", "shorter")
            for k in ("gathered", "summed", "temporaries")
        ]
        again = f" + {row['again']}" if row["again"] else ""
        lines.append(
            f"| `{name}` | {'yes' if row['kept'] else 'no'} | {' | '.join(every)} | "
            f"{row['compiled']}{again} |"
        )
    return "\n".join(lines)
