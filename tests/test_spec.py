"""Specs: how a method prints, compares and is built again, perhaps with traced numbers."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

import jaxmerge as jm
from jaxmerge.core.stage_specs import spec_of

NAMES = [name for name, _ in laws.stages()]


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_builds_what_prints_the_same(name):
    stage = dict(laws.stages())[name]()
    assert repr(stage.spec) == repr(stage)
    again = stage.spec.build()
    assert type(again) is type(stage)
    leaves, tree = jax.tree.flatten(stage.spec)
    assert jax.tree.structure(dict(laws.stages())[name]().spec) == tree
    assert repr(jax.tree.unflatten(tree, leaves)) == repr(stage)


def test_only_arguments_that_differ_from_the_defaults_are_printed():
    assert repr(jm.ties()) == "ties()"
    assert repr(jm.ties(0.1)) == "ties(density=0.1)"
    assert repr(jm.chain(jm.trim(0.2), jm.add())) == "chain(trim(density=0.2), add())"
    assert repr(jm.stacked(lambda rows, ctx: rows[0])) == "Merge(...)"


def test_floats_are_leaves_and_the_rest_is_structure():
    one, two = jm.magmax(0.1).spec, jm.magmax(0.9).spec
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert jax.tree.leaves(two) == [0.9]
    assert jax.tree.structure(jm.ties(0.1).spec) != jax.tree.structure(jm.ties(scope="leaf").spec)


def test_a_traced_number_reaches_the_kernel():
    def run(factor):
        stage = spec_of(jm.scale(factor)).build()
        return stage.kernel(jnp.ones(2), None)

    np.testing.assert_array_equal(jax.jit(run)(3.0), [3, 3])


def test_two_factories_of_one_name_are_refused():
    def magmax() -> jm.Merge:
        return jm.add()

    with pytest.raises(ValueError, match="'magmax' is registered already"):
        jm.register(magmax)
    assert repr(jm.get("magmax")()) == "magmax()"


def test_a_file_under_two_names_is_one(tmp_path, monkeypatch):
    """As a script imports it, and a recipe that names it; another file of that name is another."""
    monkeypatch.setattr(jm.REGISTRY, "_factories", dict(jm.REGISTRY._factories))
    text = "import jaxmerge as jm\n\n@jm.register\ndef twice_the_mean():\n    return jm.mean()\n"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(text)

    def load(name, path):
        spec = importlib.util.spec_from_file_location(name, path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))

    load("own", tmp_path / "a" / "own.py")
    load("recipe_1_own", tmp_path / "a" / ".." / "a" / "own.py")
    with pytest.raises(ValueError, match="'twice_the_mean' is registered already"):
        load("recipe_2_own", tmp_path / "b" / "own.py")


@pytest.mark.parametrize("package", ["jaxmerge", "jaxmerge.folds", "jaxmerge.methods"])
def test_a_star_import_brings_no_modules(package):
    scope: dict = {}
    exec(f"from {package} import *", scope)
    del scope["__builtins__"]
    assert set(scope) == set(importlib.import_module(package).__all__)
    assert not [n for n, x in scope.items() if type(x) is type(pytest)]
