"""Nobody gets in: what settings, names and tables hold is refused in one line, at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from hostile import recipe, two_models
from safetensors.numpy import save_file

from jaxmerge.cli import merge as command
from jaxmerge.errors import UserError
from jaxmerge.io import places
from jaxmerge.io.sources import open_source
from jaxmerge.io.untrusted import printable, read_json


@pytest.fixture
def two(tmp_path):
    return two_models(tmp_path)


def test_json_of_another_kind_is_one_line(tmp_path):
    for text, says in (("[1]", "holds a list; expected an object"), ("{", "not JSON"),
                       ("[" * 100_000, "not JSON|nested"), ("\udce9", "UTF-8")):  # fmt: skip
        (tmp_path / "x.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match=says) as caught:
            read_json(tmp_path / "x.json")
        assert str(caught.value).startswith(str(tmp_path / "x.json"))
        assert len(str(caught.value)) < 400


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    assert printable("a\x1b[2Jb\x07") == "a\\x1b[2Jb\\x07"
    save_file({"a\x1b[2Jb": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="control characters"):
        open_source(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_control_characters_of_results_are_refused(tmp_path, suffix, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    import fuzz_data

    from jaxmerge.studies import cells, result_store

    results = fuzz_data.results()
    results.seeds[0].entries[0].label = "a\x1b[2Jb"
    if suffix == "json":
        results.to_json(tmp_path / "r.json")
    else:
        pytest.importorskip("pyarrow")
        result_store.write(tmp_path, cells.cells(results), "r")
    with pytest.raises(UserError, match=r"control characters: 'a\\x1b\[2Jb'"):
        result_store.read(tmp_path / f"r.{suffix}")


def test_names_are_no_markup_of_the_terminal(tmp_path, capsys):
    from jaxmerge.cli.inspect import run as inspect

    name = "model.layers.0.mlp.[red]up[/blue].weight"
    save_file({name: np.ones((2, 2), np.float32)}, tmp_path / "m.safetensors")
    inspect(str(tmp_path / "m.safetensors"))
    assert name in capsys.readouterr().out


def test_headings_and_cards_are_quoted():
    from jaxmerge.recipes.card import _code, longest_run
    from jaxmerge.report.tables import plain_line, plain_markdown

    assert plain_line("a\n\\input{x}\x1b") == "a \\input{x}\\x1b"
    assert plain_markdown("# <b>[x](y)") == r"\# \<b\>\[x\](y)"
    assert _code("a``b") == "``` a``b ```"
    assert longest_run("x````y", "`") == 4


def test_messages_do_not_repeat_what_fills_a_screen(two):
    for more in ({"method": "a" * 5000}, {"models": ["b" * 5000]}, {"dtype": "c d " * 3000}):
        with pytest.raises(UserError) as caught:
            command.run(recipe(two, **more), None, check=True)
        assert len(str(caught.value)) < 3600
        assert "characters)" in str(caught.value)


@pytest.mark.parametrize("models", [None, "a", 3, {"a": 1}, [["a"]], [None]])
def test_models_of_another_kind_are_one_line(two, models):
    with pytest.raises(UserError, match=r"r.yaml: models must be a list"):
        command.run(recipe(two, models=models), None, check=True)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"rules": {"only": [None]}, "method": "average"}, "regular expression must be text"),
        ({"rules": [{"match": 3, "method": "average"}]}, "regular expression must be text"),
        ({"merge_method": "slerp", "slices": 7}, "slices must be a list"),
        ({"merge_method": "linear", "slices": "x"}, "slices must be a list"),
        ({"rules": {"only": "mlp"}, "method": {"scale": {"factor": 10**400}}}, "must be a number"),
    ],
)
def test_parts_of_another_kind_are_one_line(two, wrong, says):
    both = {"base": "base", "models": ["a"]} if "rules" in wrong else {"base_model": "base"}
    (two / "r.yaml").write_text(yaml.safe_dump(both | wrong))
    with pytest.raises(UserError, match=f"r.yaml: .*{says}"):
        command.run(two / "r.yaml", None, check=True)


@pytest.mark.parametrize(
    "text, says",
    [
        ("[" + "1," * 500_000 + "1]", "more than 200,000 values"),
        ("".join(f"k{i}: 1\n" for i in range(90_000)), "and 89,992 more"),
        ("#" * (1 << 20) + "\n", "a recipe has at most 1,048,576"),
    ],
)
def test_a_recipe_of_a_megabyte_is_refused_at_once(tmp_path, text, says, monkeypatch):
    from jaxmerge import errors
    from jaxmerge.recipes.native import load

    looked_up = []
    nearest = errors.difflib.get_close_matches
    count = lambda *a, **k: looked_up.append(a) or nearest(*a, **k)
    monkeypatch.setattr(errors.difflib, "get_close_matches", count)
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        load(tmp_path / "r.yaml")
    assert len(looked_up) < 10  # a hint for every one of 90,000 keys took ten seconds


def test_a_journal_is_bounded(tmp_path):
    place = places.Place(tmp_path / ".out.partial")
    with open(tmp_path / ".out.partial" / "journal.jsonl", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"journal\.jsonl has 1,099,511,627,776 bytes"):
        place.read("journal.jsonl")
    place.close()


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("t.jsonl", "[" * 100_000, "line 1 is nested too deeply"),
        ("t.jsonl", "[1]", "line 1 holds a list"),
        ("t.csv", "text,label\n" + '"' + "a\n" * 10, "lack|no rows"),
    ],
)
def test_tables_that_are_none(tmp_path, name, text, says):
    from jaxmerge.data.tables import table

    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}.*({says})"):
        table(tmp_path / name)


def test_tables_of_long_texts_and_lines_of_unicode(tmp_path):
    from jaxmerge.data.tables import table

    texts = ["x " * 100_000, *(f"a\u2028b {i}" for i in range(19))]
    rows = [json.dumps({"text": t, "label": str(i % 2)}, ensure_ascii=False)
            for i, t in enumerate(texts)]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "t.csv").write_text(
        "\n".join(["text,label", *(f'"{t}",{i % 2}' for i, t in enumerate(texts))]),
        encoding="utf-8",
    )
    for name in ("t.jsonl", "t.csv"):
        assert len(table(tmp_path / name).labels) == 20
