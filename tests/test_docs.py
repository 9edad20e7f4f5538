"""The guides: every Python block runs, in order, page by page; every page is in the navigation."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import report_results
import yaml
from safetensors.numpy import load_file, save_file

import jaxmerge as jm
from jaxmerge import statistics
from jaxmerge.continual import registry
from jaxmerge.core.registry import Registry

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))
WITH_CODE = [  # one trains a CLIP; its methods run in test_guide_methods.py
    pytest.param(p, marks=pytest.mark.slow) if p == "continual.md" else p
    for p in PAGES
    if "```python" in (DOCS / p).read_text(encoding="utf-8")
]
REGISTRIES = [jm.REGISTRY, *(x for x in vars(registry).values() if isinstance(x, Registry))]


@pytest.mark.parametrize("page", WITH_CODE)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    known, scope = [set(names) for names in REGISTRIES], {}
    try:
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            exec(compile(block, page, "exec"), scope)
    finally:
        for names, before in zip(REGISTRIES, known, strict=True):
            for name in set(names) - before:
                del names[name]


@pytest.fixture
def models(tmp_path):
    """Three small checkpoints in Hugging Face's layout: models/base, models/a, models/b."""
    for seed, name in enumerate(("base", "a", "b")):
        rng = np.random.default_rng(seed)
        weights = {
            f"model.layers.{i}.{part}.weight": rng.normal(size=(8, 8)).astype(np.float32)
            for i in range(4)
            for part in ("self_attn.q_proj", "mlp.up_proj")
        }
        weights["model.norm.weight"] = rng.normal(size=8).astype(np.float32)
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        save_file(weights, folder / "model.safetensors")
        squares, code = {n: x * x for n, x in weights.items()}, statistics.weights_hash(weights)
        fisher = statistics.Statistic("fisher", squares, 1, code, {})
        statistics.save(fisher, folder / "fisher.safetensors")
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        config |= {"num_hidden_layers": 4, "hidden_size": 8}
        (folder / "config.json").write_text(json.dumps(config))
    return tmp_path


def recipes(page: str) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if recipes(p)])
def test_recipes_run(page, models):
    from jaxmerge.cli import merge

    base = load_file(models / "models" / "base" / "model.safetensors")
    for i, text in enumerate(recipes(page)):
        recipe, out = models / f"recipe{i}.yaml", models / f"out{i}"
        recipe.write_text(text)
        merge.run(recipe, out, quiet=True)
        merged = load_file(out / "model.safetensors")
        assert set(merged) == set(base), text
        assert any(not np.array_equal(merged[n], base[n]) for n in base), text


def test_both_forms_of_the_same_merge_agree(models):
    from jaxmerge.cli import merge

    outputs = []
    for i, text in enumerate(recipes("mergekit.md")):
        (models / "recipe.yaml").write_text(text)
        merge.run(models / "recipe.yaml", models / f"out{i}", quiet=True)
        outputs.append(load_file(models / f"out{i}" / "model.safetensors"))
    for name in outputs[0]:
        np.testing.assert_allclose(outputs[0][name], outputs[1][name], atol=1e-6)


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(tree):
        if isinstance(tree, str):
            return [tree]
        values = tree if isinstance(tree, list) else tree.values()
        return [p for value in values for p in pages(value)]

    assert sorted(pages(config["nav"])) == PAGES


def anchors(page: Path) -> set[str]:
    """Where a link to a page may lead: its headings, and modules and members of the reference."""
    text = page.read_text(encoding="utf-8")
    bare = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    plain = lambda heading: re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    slug = lambda heading: re.sub(r"[^\w\s-]", "", plain(heading)).strip().lower()
    headings = re.findall(r"^#+ (.*)$", bare, re.MULTILINE)
    found = {re.sub(r"[\s-]+", "-", slug(h)) for h in headings}
    for module, members in re.findall(
        r"^::: (\S+)\n(?:    options:\n      members: \[(.*)\])?", text + "\n", re.MULTILINE
    ):
        found |= {module, *(f"{module}.{m}" for m in members.split(", ") if m)}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    path = DOCS / page
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"\]\(([^)\s]+)\)", text)
    dead = []
    for link in inline + re.findall(r"^\[[^]]+\]: (\S+)", text, re.MULTILINE):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        leads = path.parent / target if target else path
        if not leads.exists() or (
            anchor and leads.suffix == ".md" and anchor not in anchors(leads)
        ):
            dead.append(link)
    assert not dead, f"{page}: {dead} lead nowhere"


def test_reference_names_modules_that_exist():
    import importlib.util

    for page in PAGES:
        for name in re.findall(r"^::: (\S+)", (DOCS / page).read_text(), re.MULTILINE):
            assert importlib.util.find_spec(name), f"{page}: {name}"


def test_results_page_shows_every_file(tmp_path):
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    assert "No results" in hooks["all_results"](tmp_path)
    report_results.results(seeds=1).to_json(tmp_path / "one.json")
    (tmp_path / "bench.json").write_text('{"schema": "another"}')
    text = hooks["all_results"](tmp_path)
    assert text.count("## quickstart") == 1
    assert text.count("<svg") == 18  # nine pictures, light and dark
    assert "| MagMax | sequential |" in text


def test_runs_of_one_experiment_have_headings_of_their_own(tmp_path):
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    one = report_results.results(seeds=1)
    small = dataclasses.replace(one, recipe={**one.recipe, "few": {"train": 3}})
    seed = dataclasses.replace(one.seeds[0], tasks=one.seeds[0].tasks[:2])
    short = dataclasses.replace(one, seeds=[seed], recipe={**one.recipe, "few": {"val": 1}})
    other = dataclasses.replace(one, experiment="another")
    heads = hooks["headings"]({"a": small, "b": short, "c": other})
    assert heads["c"] == "another"
    assert re.fullmatch(r"quickstart, 5 tasks, \d+ training examples a class", heads["a"])
    assert re.fullmatch(r"quickstart, 2 tasks, all training examples, \d+ a class", heads["b"])
    assert hooks["anchor"](heads["b"]).startswith("quickstart-2-tasks-all-")


def test_links_into_the_results_lead_to_a_heading():
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    heads = re.findall(r"^## (.*)$", (DOCS / "results.md").read_text(), re.MULTILINE)
    known = [hooks["anchor"](head) for head in heads]
    assert len(set(known)) == len(known)
    linked = re.findall(r"results\.md#([\w-]+)", (DOCS.parent / "README.md").read_text())
    assert linked
    assert set(linked) <= set(known)


def test_benchmarks_page_shows_what_a_script_wrote_or_the_rows(tmp_path):
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    assert "Nothing" in hooks["benchmarks"](tmp_path)
    report_results.results(seeds=1).to_json(tmp_path / "run.json")  # stands on the other page
    (tmp_path / "one.json").write_text('{"rows": [{"n": 1}]}')
    (tmp_path / "one.md").write_text("# One\n\nwords")
    (tmp_path / "two.json").write_text(
        '{"command": "python two.py", "methods": {"ties": {"jaxmerge": {"wall": 1.23456}}}}'
    )
    text = hooks["benchmarks"](tmp_path)
    assert re.findall("^## (.*)$", text, re.MULTILINE) == ["One", "two"]
    assert "* command: `python two.py`" in text
    assert "|  | jaxmerge wall |" in text
    assert "| ties | 1.23 |" in text


@pytest.mark.slow  # what others add to the code or to the results shows up here
def test_tables_in_the_markdown_files_are_up_to_date():
    hooks = runpy.run_path(str(DOCS / "hooks.py"))
    for page in hooks["FILLED"]:
        text = (DOCS / page).read_text(encoding="utf-8")
        assert hooks["fill"](text) == text, f"{page}: run python docs/hooks.py"


def test_pages_carry_their_tables():
    for page, row in (("choosing", "| `magmax` |"), ("results", "| MagMax | sequential |"),
                      ("benchmarks", "| ViT-B/32 |")):  # fmt: skip
        assert row in (DOCS / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="the docs extra is not installed")
    pytest.importorskip("material", reason="the docs extra is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    methods = (tmp_path / "site" / "choosing.html").read_text(encoding="utf-8")
    assert all(f">{n}</code>" in methods for n in ("magmax", "ties", "opcm"))
