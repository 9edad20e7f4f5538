"""Registries know the package's own names unasked, and look at every value that they can read."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmerge.continual import registry
from jaxmerge.core.ranges import Count, NonNegative, Number, Positive, Share, checked
from jaxmerge.core.registry import REGISTRY
from jaxmerge.errors import closest

PACKAGE = Path(__file__).parents[1] / "jaxmerge"
KINDS = ("models", "problems", "evaluators", "optimisers", "methods")


def registered() -> dict[str, set[str]]:
    """Registry -> the names that the package enters, read off the source."""
    names: dict[str, set[str]] = {k: set() for k in (*KINDS, "register")}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for mark in getattr(node, "decorator_list", []):
                text = ast.unparse(mark).partition("(")[0].removesuffix(".register")
                if text in names and isinstance(node, ast.FunctionDef):
                    names[text].add(node.name)
    return names


def test_a_registry_knows_the_names_of_the_package_before_they_are_imported():
    """In a process that imports the registries alone: a miss, a look at all, what is near."""
    code = (
        "import json\n"
        "from jaxmerge.core.registry import REGISTRY as register, UnknownNameError\n"
        f"from jaxmerge.continual.registry import {', '.join(KINDS)}\n"
        "assert methods.get('ewc').__name__ == 'ewc' and 'er' in methods\n"
        "assert methods.get('none', 3) == 3 and register.get('ties')(0.1)\n"
        f"print(json.dumps({{k: sorted(globals()[k]) for k in {(*KINDS, 'register')}}}))\n"
        "try: models.get('mpl')\n"
        "except UnknownNameError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    names, word = done.stdout.splitlines()
    assert {k: set(v) for k, v in json.loads(names).items()} == registered()
    assert word == "No model is named 'mpl': did you mean mlp?"


FITS = [(NonNegative, 0.5), (NonNegative, 3), (Positive, 2), (Share, 1), (Share, 0.25), (Count, 7)]
NOT = [(NonNegative, -1), (Positive, 0.0), (Share, 1.5), (Count, 0), (Count, -3), (Share, -0.5)]
AS = {
    "numpy": lambda v: np.float32(v) if isinstance(v, float) else np.int64(v),
    "an array of numpy": np.asarray,
    "jax": jnp.asarray,
    "a half": lambda v: jnp.bfloat16(v) if isinstance(v, float) else jnp.int8(v),
}


@pytest.mark.parametrize("kind", AS)
def test_a_scalar_of_numpy_or_jax_is_the_number_that_it_is(kind):
    for hint, value in FITS:
        words, read = checked(AS[kind](value), hint)
        assert words is None
        assert read == value
        assert type(read) is type(checked(value, hint)[1]) or isinstance(value, float)
    for hint, value in NOT:
        assert checked(AS[kind](value), hint)[0] == checked(value, hint)[0] is not None


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("as_", [float, np.float32, np.float64, jnp.float32, jnp.bfloat16])
def test_no_setting_is_infinite_or_no_number(bad, as_):
    for hint in (NonNegative, Positive, Share, float, NonNegative | None):
        assert checked(as_(bad), hint)[0] is not None


def test_every_element_of_stacked_settings_is_looked_at_and_nothing_traced_is():
    stack = [np.float32([0.5, 1]), jnp.array([[0.0], [2.0]]), np.array([1, 2])]
    for values in stack:
        assert checked(values, NonNegative) == (None, values)
        worse = np.array(values)
        worse.flat[-1] = -1
        for one in (worse, jnp.asarray(worse)):
            assert checked(one, NonNegative)[0] == "a number from 0 on"
    assert checked(np.array([2, 3]), Count)[0]  # it decides a shape: there is one of it
    outside = lambda s: registry.methods.get("ewc")(strength=s).arguments["strength"]
    assert jax.jit(outside)(-1.0) == -1
    np.testing.assert_array_equal(jax.vmap(outside)(jnp.array([-1.0, 2])), [-1, 2])
    jax.eval_shape(outside, jax.ShapeDtypeStruct((), jnp.float32))
    assert checked(jax.ShapeDtypeStruct((3,), jnp.float32), NonNegative)[0] is None
    assert checked((0.5, 7), Number)[0] is None  # merges say their ranges themselves
    assert checked("anything", Number)[0] == "a number"


@pytest.mark.parametrize(
    "value", [np.array("x"), np.bool_(True), jax.random.key(0), np.array([True])]
)
def test_an_array_of_something_else_is_no_number(value):
    for hint in (NonNegative, Count, float, int):
        assert checked(value, hint)[0] is not None


def test_lists_of_numbers_are_looked_at_one_by_one():
    hint = Share | tuple[Share, ...]
    for value in (0.5, (0.5, 1), [1.0], np.float32([0.1, 0.2])):
        assert checked(value, hint)[0] is None
    for value in (2.0, (0.5, 2.0), ["x"], "x", (True,)):
        assert checked(value, hint)[0] == "a number in [0, 1] or a list, each a number in [0, 1]"


def test_the_closest_names_are_found_in_any_case():
    for registry_ in (REGISTRY, registry.methods, registry.models):
        for name in registry_:
            for spelt in (name.upper(), name.title(), name.swapcase()):
                assert name in closest(spelt, registry_), spelt
    assert closest("TIES", ["Ties", "ties"]) == "did you mean Ties?"  # nearer in case


@pytest.mark.parametrize(
    "made",
    [
        lambda: registry.methods.get("refresh")(registry.methods.get("gpm")()),
        lambda: registry.methods.get("gpm")((0.9, registry.methods.get("gpm")())),
        lambda: registry.methods.get("coso")(target=registry.methods.get("gpm")()),
    ],
)
def test_a_method_is_no_number_and_no_text(made):
    with pytest.raises(ValueError, match=r"must be .*, got .*gpm\(\)"):
        made()
