"""Old spellings work for one release, everywhere, with a warning that names the new one."""

from __future__ import annotations

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


def test_new_names_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for now in (*old_names.MERGES.values(), *old_names.METHODS.values()):
            assert now.name in jm.REGISTRY or now.name in methods
