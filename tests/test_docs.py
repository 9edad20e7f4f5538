"""The guides: every Python block runs, in order, page by page; every page is in the navigation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import jaxmerge as jm

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))
WITH_CODE = [
    pytest.param(p, marks=pytest.mark.slow) if p == "continual.md" else p  # it trains a model
    for p in PAGES
    if "```python" in (DOCS / p).read_text(encoding="utf-8")
]


@pytest.mark.parametrize("page", WITH_CODE)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    known, scope = set(jm.REGISTRY), {}
    try:
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            exec(compile(block, page, "exec"), scope)
    finally:
        for name in set(jm.REGISTRY) - known:
            del jm.REGISTRY[name]


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(tree):
        if isinstance(tree, str):
            return [tree]
        values = tree if isinstance(tree, list) else tree.values()
        return [p for value in values for p in pages(value)]

    assert sorted(pages(config["nav"])) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((DOCS / page).parent / target).exists(), target


def test_reference_names_modules_that_exist():
    import importlib.util

    for page in PAGES:
        for name in re.findall(r"^::: (\S+)", (DOCS / page).read_text(), re.MULTILINE):
            assert importlib.util.find_spec(name), f"{page}: {name}"
