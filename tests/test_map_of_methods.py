"""Every registered method has its place in both schemes of the surveys, and a link."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from jaxmerge import methods as merges
from jaxmerge.continual import methods as continual
from jaxmerge.core.registry import REGISTRY

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "rehearsal.md").read_text(encoding="utf-8")
MAP = PAGE.split("## The map")[1]
FAMILIES = {"regularisation", "replay", "optimisation", "representation", "architecture"}
SCHEME = re.compile(r"(internal: (pre-training|(after )?fine-tuning)|external: (retrieval|tools))$")
EVERY = {"families": {*continual.__all__}, "merges": {n for n in merges.__all__ if n in REGISTRY}}


def tables() -> dict[str, list[list[str]]]:
    """The cells of both tables, row by row, without their heads."""
    split = lambda text: [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    families, of_merges = MAP.split("\n| merges |")
    return {"families": split(families)[2:], "merges": split(of_merges)[1:]}


def test_every_method_is_on_the_map_once():
    for (kind, rows), column in zip(tables().items(), (2, 1), strict=True):
        placed = [n for cells in rows for n in re.findall(r"`(\w+)`", cells[column])]
        differs = sorted({*placed} ^ EVERY[kind])
        assert not differs, f"give {differs} a place under 'The map' of rehearsal.md, or remove it"
        assert len(placed) == len({*placed})


def test_every_method_is_placed_in_both_schemes():
    found = tables()
    assert {cells[0] for cells in found["families"]} - {""} == FAMILIES
    assert found["families"][0][0]  # a row without a family is of the one above
    for rows, width in zip(found.values(), (5, 3), strict=True):
        for cells in rows:
            assert len(cells) == width, cells
            below = "all merges below" in " ".join(cells)
            assert below or SCHEME.match(cells[-1]), f"{cells[-1]!r}: where does knowledge go?"


def test_every_name_leads_to_its_entry_in_the_reference():
    targets = dict(re.findall(r"^\[(\w+)\]: (\S+)$", MAP, re.MULTILINE))
    assert set(targets) == EVERY["families"] | EVERY["merges"]
    cells = [cell for rows in tables().values() for row in rows for cell in row]
    for cell in cells:
        bare = re.sub(r"\[`(\w+)`\]\[\1\]", "", cell)
        assert "`" not in bare, f"without a link: {cell}"
    for name, target in targets.items():
        page, _, anchor = target.partition("#")
        module, _, last = anchor.rpartition(".")
        assert last == name
        listed = re.search(rf"^::: {re.escape(module)}\n    options:\n      members: \[(.*)\]",
                           (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)  # fmt: skip
        members = listed[1].split(", ") if listed else []
        assert name in members, f"{page} has no entry {anchor}"
        assert callable(getattr(importlib.import_module(module), name))


def test_the_surveys_are_linked():
    for number in ("2302.00487", "2406.06391", "2404.16789"):
        assert f"[arXiv {number}](https://arxiv.org/abs/{number})" in MAP
