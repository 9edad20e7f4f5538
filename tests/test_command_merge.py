"""`jaxmerge merge`: resolved recipes, --check, one line an error, devices, processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
import yaml
from safetensors.numpy import save_file
from small import ABC, SHAPES, run

import jaxmerge as jm
from jaxmerge.cli import convert, diff, inspect, lora
from jaxmerge.cli import merge as command
from jaxmerge.errors import UserError


@pytest.fixture
def family(tmp_path, monkeypatch):
    return small.write(tmp_path, monkeypatch)


def test_the_resolved_recipe_makes_the_same_bytes(family, monkeypatch, tmp_path):
    recipe = {**ABC, "method": {"dare": {"density": 0.5}}, "seed": 3}
    run(recipe, shard_size="1GB")
    for name in ("README.md", "config.json", "recipe.resolved.yaml"):
        assert (tmp_path / "out" / name).exists()
    shutil.copy("out/recipe.resolved.yaml", "again.yaml")
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    command.run("../again.yaml", "out", quiet=True)
    again = (tmp_path / "away/out/model.safetensors").read_bytes()
    assert again == (tmp_path / "out/model.safetensors").read_bytes()
    save_file(family["b"], tmp_path / "a" / "model.safetensors")
    with pytest.raises(UserError, match="not those that the resolved recipe names"):
        command.run("../again.yaml", "other", quiet=True)


def test_check_names_costs_and_mismatches(family, capsys):
    with open("r.yaml", "w") as file:
        yaml.safe_dump({**ABC, "method": "ties"}, file)
    command.run("r.yaml", None, check=True, json=True)
    report = json.loads(capsys.readouterr().out)
    size = sum(x.nbytes for x in family["base"].values())
    assert report["leaves"] == report["merged"] == len(SHAPES)
    assert report["parameters"] == size // 4
    assert report["write"] == size
    assert report["read"] == report["passes"] * 4 * size
    assert report["mismatches"] == []
    save_file({n: x for n, x in family["a"].items() if "norm" not in n}, "a/model.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        command.run("r.yaml", None, check=True, json=True)
    assert "norm" in capsys.readouterr().out


def test_the_command_line_ends_in_one_line(family, capsys, monkeypatch):
    from jaxmerge import cli

    with open("r.yaml", "w") as file:
        yaml.safe_dump({**ABC, "method": "mean"}, file)
    for arguments, code in (
        (["merge", "r.yaml", "out"], 0), (["merge", "r.yaml", "out"], 2),
        (["merge", "r.yaml", "out", "--force", "--json"], 0), (["merge", "none.yaml", "x"], 2),
        (["merge", "r.yaml", "y", "--dtype", "float3"], 2), (["inspect", "nothing"], 2),
        (["diff", "a", "a"], 0), (["diff", "a", "b", "--json"], 1),
        (["inspect", "a", "--norms"], 0),
        (["extract-lora", "base", "a", "ad", "--rank", "2"], 0),
        (["convert", "base+ad", "cv", "--dtype", "bfloat16"], 0),
        (["merge", "r.yaml", "z", "--devices", "99"], 2),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["jaxmerge", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        messages = capsys.readouterr()
        assert end.value.code == code, (arguments, messages)
        if code == 2:
            assert messages.err.startswith("error: ")
            assert messages.err.count("\n") == 1


def test_an_input_is_never_replaced(family, tmp_path):
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    Path("in").mkdir()
    Path("in/r.yaml").write_text(yaml.safe_dump({**ABC, "method": "mean"}))
    calls = [
        lambda: command.run(Path("in/r.yaml"), Path("base"), force=True, quiet=True),
        lambda: command.run(Path("in/r.yaml"), tmp_path, force=True, quiet=True),
        lambda: command.run(Path("in/r.yaml"), Path("in"), force=True, quiet=True),
        lambda: convert.run("a", Path("a"), dtype="float16", force=True, quiet=True),
        lambda: lora.run("base", "a", Path("a"), force=True, quiet=True),
        lambda: jm.merge_files(jm.magmax(), base="base", models=["a"], out="a", force=True),
    ]
    for call in calls:
        with pytest.raises(UserError, match="the place of an input"):
            call()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")} == before
    command.run(Path("in/r.yaml"), Path("out"), quiet=True)
    command.run(Path("out/recipe.resolved.yaml"), Path("out"), force=True, quiet=True)


def test_json_says_what_was_written(family, capsys):
    Path("r.yaml").write_text(yaml.safe_dump({**ABC, "method": "mean"}))
    reports = []
    for _ in range(2):
        command.run(Path("r.yaml"), Path("out"), resume=True, json=True, quiet=True)
        reports.append(json.loads(capsys.readouterr().out))
    assert reports[0]["written"] == sum(x.nbytes for x in family["base"].values())
    assert [t["finished_before"] for t in reports] == [False, True]
    assert reports[0]["out"] == reports[1]["out"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = (", r"r\.py, line 1: SyntaxError: '\(' was never closed"),
        ("x = 1\nrecipe = {'models': [y]}", r"r\.py, line 2: NameError: name 'y'"),
        ("x = 1", "sets no variable named recipe"),
    ],
)
def test_a_python_recipe_that_fails_is_told_with_its_line(family, text, message):
    Path("r.py").write_text(text)
    with pytest.raises(UserError, match=message):
        command.run(Path("r.py"), Path("out"), quiet=True)


def test_tables_cut_no_name_short(family, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "model.layers." + "very_" * 30 + "long.weight"
    for i, folder in enumerate(("a", "b")):
        save_file({name: np.full((2, 2), 1.0 + i, np.float32)}, f"{folder}/model.safetensors")
    inspect.run("a", norms=True)
    assert name in capsys.readouterr().out
    diff.run("a", "b")
    assert name in capsys.readouterr().out


def test_a_full_disk_ends_in_one_line_and_is_resumed(family, capsys, monkeypatch):
    import errno

    from jaxmerge import cli

    Path("r.yaml").write_text(yaml.safe_dump({**ABC, "method": "mean"}))
    want = run({**ABC, "method": "mean"}, "want")
    pwrite, room = os.pwrite, [900]

    def full(fd, data, offset):
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(sys, "argv", ["jaxmerge", "merge", "r.yaml", "out", "--quiet"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    message = capsys.readouterr().err
    assert end.value.code == 2
    assert message.count("\n") == 1
    assert "no space left on device" in message
    assert "What was done is kept" in message
    monkeypatch.setattr(os, "pwrite", pwrite)
    got = run({**ABC, "method": "mean"}, resume=True)
    assert {n: x.tobytes() for n, x in got.items()} == {n: x.tobytes() for n, x in want.items()}


def test_leaves_spread_over_devices(family):
    import jax

    want = run({**ABC, "method": "ties"})
    got = run({**ABC, "method": "ties"}, "spread", device="cpu", devices=len(jax.devices()))
    assert {n: x.tobytes() for n, x in got.items()} == {n: x.tobytes() for n, x in want.items()}


PROCESS = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_platforms", "cpu")
from jaxmerge.cli import merge
merge.run("recipe.yaml", "out2", shard_size="150", quiet=True)
"""


def test_two_processes_write_one_output(family):
    want = {}
    Path("recipe.yaml").write_text(yaml.safe_dump({**ABC, "method": "ties"}))
    command.run("recipe.yaml", "out", shard_size="150", quiet=True)
    for path in Path("out").glob("model*"):
        want[path.name] = path.read_bytes()
    assert len(want) > 4
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    children = [
        subprocess.Popen([sys.executable, "-c", PROCESS], env=env | {"JAX_PROCESS_ID": str(i)})
        for i in range(2)
    ]
    assert [child.wait(timeout=240) for child in children] == [0, 0]
    assert {p.name: p.read_bytes() for p in Path("out2").glob("model*")} == want
    assert not list(Path(".").glob(".out2*"))


START = """
import sys
from jaxmerge import cli
def call(*arguments):
    sys.argv = ["jaxmerge", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code
    print(*sys.modules)
call("inspect", "base")
call("merge", "mean.py", "--check", "--json")
call("merge", "ties.py", "out", "--quiet")
"""
UNUSED = {  # the first six were imported all the same
    "regex", "jax.extend", "jax.experimental.pallas", "jaxmerge.io.gguf", "jaxmerge.io.adapters",
    "jaxmerge.io.pickles", "jaxmerge.api", "jaxmerge.continual", "jaxmerge.solvers", "flax",
    "optax", "orbax", "gguf", "scipy", "sklearn", "tokenizers", "matplotlib", "PIL", "jinja2",
    "jaxmerge.recipes.mergekit", "jaxmerge.statistics",
}  # fmt: skip


def test_a_command_imports_nothing_that_it_does_not_use(family):
    for method in ("mean", "ties"):
        Path(f"{method}.py").write_text(f"recipe = {ABC | {'method': method}!r}")
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    tables = [set(line.split()) for line in done.stdout.splitlines() if line.startswith("sys ")]
    inspected, checked, merged = tables
    assert inspected & (UNUSED | {"jax", "yaml"}) == set()
    assert checked & (UNUSED | {"yaml", "jaxmerge.transforms", "jaxmerge.methods"}) == set()
    assert merged & UNUSED == set()
    assert "yaml" in merged, "the resolved recipe is written with it"


GARBAGE = """
import gc, sys
from jaxmerge.__main__ import main
sys.argv = ["jaxmerge", "merge", "recipe.py", "--check", "--json"]
try:
    main()
except SystemExit:
    print(gc.isenabled(), len(gc.get_objects()) < gc.get_freeze_count())
"""


def test_what_a_command_imports_is_not_looked_through_for_garbage(family):
    Path("recipe.py").write_text(f"recipe = {ABC | {'method': 'mean'}!r}")
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True True"
