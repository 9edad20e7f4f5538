"""The rules of the house: no circle, no arrow upwards, few files in the root, no facade inside."""

from __future__ import annotations

import ast
import functools
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


def test_every_room_is_on_the_map():
    between, _ = rooms(graph())
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = [r for r in between if f"{r}.__init__" in texts()]
    assert [r for r in folders if f"{r.split('.')[1]}/" not in text] == []
