"""Old spellings work for one release, everywhere, with a warning that names the new one."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.continual.registry import methods
from jaxmerge.core import old_names
from jaxmerge.recipes.method_spec import build
from jaxmerge.studies.settings import built, methods_of

BASE = {"w": np.zeros(4, np.float32)}
MODELS = [{"w": np.float32([1, -2, 0, 3])}, {"w": np.float32([-3, 1, 0, 3])}]


@pytest.mark.parametrize("name", old_names.MERGES)
def test_an_old_name_of_a_merge_is_the_new_one(name):
    now = old_names.MERGES[name]
    expected = jm.get(now.name)(**now.given)
    with pytest.warns(FutureWarning, match=f"{name} is now {now.name}"):
        assert jm.get(name)() == expected
    with pytest.warns(FutureWarning, match=now.name):
        assert getattr(jm, name)() == expected
    with pytest.warns(FutureWarning, match=now.name):
        assert build(name, 2, BASE).spec == expected.spec
    with pytest.warns(FutureWarning, match=now.name):
        assert built(name, {}) == expected
    assert name not in jm.REGISTRY
    assert name not in dir(jm)


def test_old_arguments_keep_their_order():
    with pytest.warns(FutureWarning):
        assert jm.get("fisher_mean")(2.0, 1e-6) == jm.fisher_merging(2.0, floor=1e-6)
    with pytest.warns(FutureWarning):
        assert jm.get("continual_task_arithmetic")(0.1) == jm.task_arithmetic(0.1)
    with pytest.warns(FutureWarning), pytest.raises(TypeError, match="no setting 'factor'"):
        jm.get("random_mix")(factor=0.5)
    with pytest.warns(FutureWarning):
        old = jm.get("running_ema")(0.5)
    assert np.array_equal(
        jm.merge(old, BASE, MODELS)["w"], jm.merge(jm.ema(0.5), BASE, MODELS)["w"]
    )


@pytest.mark.parametrize("name", old_names.METHODS)
def test_an_old_name_of_a_method_is_the_new_one(name):
    now = old_names.METHODS[name].name
    with pytest.warns(FutureWarning, match=f"{name} is now {now}"):
        actual = methods.from_settings(name)
    assert actual == methods.get(now)()
    with pytest.warns(FutureWarning, match=now):
        assert methods_of({"methods": [name]}) == (actual,)


@pytest.mark.parametrize(
    ("name", "argument"), [(n, a) for n, gone in old_names.ARGUMENTS.items() for a in gone]
)
def test_an_old_argument_is_refused_with_what_it_is_today(name, argument):
    """Beside others that do not fit, and in each spelling of a stream."""
    today = re.escape(old_names.ARGUMENTS[name][argument])
    assert argument not in inspect.signature(methods.get(name)).parameters
    words = f"{name} has no setting '{argument}': {today}.*no setting 'strenth': did you mean stre"
    with pytest.raises(ValueError, match=words):
        methods.get(name)(**{argument: None, "strenth": 1})
    with pytest.raises(ValueError, match=today):
        methods_of({"methods": {name: {argument: None}}})
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match=today):
        methods_of({"strategy": name, "settings": {argument: None}})


def test_what_an_old_argument_is_today_exists():
    for name, gone in old_names.ARGUMENTS.items():
        known = {*inspect.signature(methods.get(name)).parameters, *methods}
        for text in gone.values():
            said = set(re.findall(r"\bit is (\w+)|the method (\w+)|(\w+)='", text))
            assert {w for words in said for w in words if w} <= known, text


def test_the_old_spelling_of_a_stream_is_shown_with_the_new_one(tmp_path):
    """By `jaxmerge run`, before anything is learnt."""
    (tmp_path / "old.py").write_text(
        "from jaxmerge.cli.quickstart import Quickstart\n"
        "STREAMS = {\n"
        "    'EWC': {'strategy': 'ewc', 'settings': {'strength': 3}},\n"
        "    'fine': {'strategy': 'finetune'},\n"
        "}\n"
        "get_config = lambda: Quickstart(streams=STREAMS, seeds=0)\n"
    )
    shown = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-m", "jaxmerge", "run", tmp_path / "old.py", "--out", tmp_path / "out"],
        capture_output=True, text=True, env=shown,
    )  # fmt: skip
    assert "warning: strategy and settings of a stream are now methods: {'ewc'" in done.stderr
    assert "{'strength': 3}}; the old spelling goes with the next release" in done.stderr
    assert "leave strategy: finetune out" in done.stderr
    assert "seeds must be at least 1, got 0" in done.stderr


def test_new_names_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for now in (*old_names.MERGES.values(), *old_names.METHODS.values()):
            assert now.name in jm.REGISTRY or now.name in methods
