"""The rules of the house: no circle, no arrow upwards, few files in the root, no facade inside."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from draw_layout import MAX_MODULES, PACKAGE, circles, imports, in_order, rooms, sources  # noqa: E402

FACADE = f"{PACKAGE}.api"


@functools.cache
def texts() -> dict[str, str]:
    """Module -> its text."""
    return sources(None)


@functools.cache
def graph() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    return imports(texts())


def test_no_module_imports_itself_through_others():
    modules = {m for m in graph() if f"{m}.__init__" not in texts()}
    assert circles({m: graph()[m] & modules for m in modules}) == []


def test_no_room_imports_one_that_stands_on_it():
    between, count = rooms(graph())
    order = in_order(between)
    assert [(a, b) for a, b in count if order.index(b) > order.index(a)] == []


def test_few_modules_lie_in_the_root():
    modules = sorted(p.name for p in (ROOT / PACKAGE).glob("*.py"))
    assert len(modules) <= MAX_MODULES, modules


def test_the_facade_is_not_imported_from_inside():
    wrong = []
    for name, text in texts().items():
        if name == f"{PACKAGE}.__init__":
            continue  # it is the facade
        for node in ast.walk(ast.parse(text)):  # examples in docstrings are no code
            if isinstance(node, ast.Import):
                taken = [a.name for a in node.names if a.name in (PACKAGE, FACADE)]
            elif isinstance(node, ast.ImportFrom) and node.module in (PACKAGE, FACADE):
                modules = (*graph(), f"{PACKAGE}.__version__")
                taken = [a.name for a in node.names if f"{node.module}.{a.name}" not in modules]
            else:
                continue
            wrong += [f"{name}, line {node.lineno}: {n}" for n in taken]
    assert wrong == [], "import these from the rooms that define them"


def on_the_map() -> dict[str, str]:
    """Room -> what the map in CONTRIBUTING.md says of it, in one line."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("```")[1]
    entries = re.split(rf"\n(?={PACKAGE}/|experiments/)", text)
    return {e.split()[0]: " ".join(e.split()) for e in entries if e.strip()}


def test_every_room_and_every_room_within_is_on_the_map():
    folders = {
        p.relative_to(ROOT).parent
        for p in (ROOT / PACKAGE).rglob("*")
        if p.suffix in (".py", ".json", ".yaml") and len(p.relative_to(ROOT).parts) > 2
    }
    entries = on_the_map()
    wrong = []
    for folder in sorted(folders):
        _, room, *within = folder.parts
        if room == "assets":
            within = []  # it has no code
        line = entries.get(f"{PACKAGE}/{room}/") or " ".join(entries.values())
        wrong += [str(folder) for name in [*within, room] if f"{name}/" not in line]
    assert wrong == [], "the map in CONTRIBUTING.md lacks these"
    gone = [e for e in entries if e.startswith(PACKAGE) and not (ROOT / e).is_dir()]
    assert gone == [], "the map names what is not there"


def test_no_file_is_long():
    """The number is in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    most = int(re.search(r"none of the package more than (\d+)", text).group(1))
    lines = {n: t.count("\n") for n, t in texts().items()}
    assert {n: k for n, k in lines.items() if k > most} == {}
    few = sum(k > 300 for k in lines.values())
    assert few < len(lines) / 10, "most have up to 300"
