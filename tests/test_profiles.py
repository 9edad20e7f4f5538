"""Traces: stages by name in compiled programs, --profile writes a trace."""

from __future__ import annotations

import gzip
import json

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

import jaxmerge as jm
from jaxmerge.cli import app

BASE = {"w": np.ones((4, 3), np.float32)}


@pytest.mark.parametrize("name", ["ties", "magmax", "opcm", "dare"])
def test_every_stage_is_named_in_the_program(name):
    method = jm.get(name)()
    base = {"fc/kernel": np.ones((4, 3), np.float32)}
    run = jax.jit(lambda b, m, key: jm.merge(method, b, [m, m], key=key))
    text = run.lower(base, base, jax.random.key(0)).as_text(debug_info=True)
    stages = {
        "ties": ("trim", "disjoint_mean", "scale"), "magmax": ("max_magnitude", "scale"),
        "opcm": ("keep_mean_norm",), "dare": ("drop_random", "scale"),
    }  # fmt: skip
    for stage in stages[name]:
        assert f'("{stage}/' in text, stage


def test_a_command_leaves_a_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for n, value in (("base", 0.0), ("one", 1.0)):
        save_file({"w": BASE["w"] + value}, f"{n}.safetensors")
    recipe = {"base": "base.safetensors", "models": ["one.safetensors"], "method": "magmax"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    app(["merge", "r.yaml", "out", "-q", "--profile", "trace"], standalone_mode=False)
    assert "trace: trace (tensorboard" in capsys.readouterr().err
    (trace,) = (tmp_path / "trace").rglob("*.trace.json.gz")
    with gzip.open(trace) as file:
        assert json.load(file)["traceEvents"]
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        app(["merge", "r.yaml", "other", "-q", "--profile", "file"], standalone_mode=False)
    assert not (tmp_path / "other").exists()
