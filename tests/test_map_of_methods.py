"""Every registered method has its place on the page of the surveys' families."""

from __future__ import annotations

import re
from pathlib import Path

from jaxmerge import methods as merges
from jaxmerge.continual import methods as continual
from jaxmerge.core.registry import REGISTRY

PAGE = Path(__file__).parents[1] / "docs" / "rehearsal.md"


def test_every_method_is_on_the_map_once():
    text = PAGE.read_text(encoding="utf-8").split("## The map")[1]
    families, of_merges = text.split("| merges | methods |")
    lines = [line.split("|") for line in families.splitlines() if line.startswith("|")]
    placed = [n for cells in lines for n in re.findall(r"`(\w+)`", cells[3])]
    differs = sorted({*placed} ^ {*continual.__all__})
    assert not differs, f"give {differs} a place under 'The map' of docs/rehearsal.md, or remove it"
    assert len(placed) == len({*placed})
    rows = [line for line in of_merges.splitlines() if line.startswith("|")]
    placed = [n for line in rows for n in re.findall(r"`(\w+)`", line)]
    differs = sorted({*placed} ^ {n for n in merges.__all__ if n in REGISTRY})
    assert not differs, f"give {differs} a place under 'The map' of docs/rehearsal.md, or remove it"
    assert len(placed) == len({*placed})
