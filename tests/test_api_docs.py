"""The public API explains itself: each argument, an example that runs, types where there are types.

Public are the names of `jaxmerge.api`, the factories of every registry, and what the packages list
that are used by themselves.  The examples run with the other doctests of the suite.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import ModuleType

import pytest

import jaxmerge as jm
from jaxmerge import solvers, statistics
from jaxmerge.continual import buffers, columns, methods, optimisers, problems, registry  # noqa: F401 - they register
from jaxmerge.core.registry import Registry
from jaxmerge.data import folders, npz, sources, splits, text
from jaxmerge.data import registry as datasets
from jaxmerge.data.streams import blurry, hierarchy, plans, scenario
from jaxmerge.evaluation import metrics
from jaxmerge.models import clip
from jaxmerge.training import learner  # noqa: F401 - registers

PACKAGES = (
    blurry, buffers, clip, columns, folders, hierarchy, metrics, npz, plans, sources, splits,
    scenario, solvers, statistics, text,
    datasets,
)  # fmt: skip

SECTION = re.compile(r"^Args:\n((?P<indent> +).*\n(?:(?P=indent).*\n|\n)*)", re.MULTILINE)
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*):", re.MULTILINE)
# Data as recipes have it, a mapping of names to anything; keywords and arguments passed on.
OPEN = re.compile(r"Mapping\[str, Any\]|dict\[str, Any\]|Sequence\[Any\]")
ANYTHING = {"get": ["default has no type", "the result has no type"]}  # the default may be anything


def public() -> dict[str, Callable]:
    """Every public function, by where it is defined."""
    every = [getattr(jm, name) for name in jm.api.__all__]
    for names in (r for r in vars(registry).values() if isinstance(r, Registry)):
        every += names.values()
    for package in PACKAGES:
        every += [getattr(package, name) for name in getattr(package, "__all__", own(package))]
    functions = (f for f in every if inspect.isroutine(f))
    return {f"{f.__module__}.{f.__qualname__}": f for f in functions}


def own(module: ModuleType) -> list[str]:
    """The public names that a module without ``__all__`` defines."""
    here = lambda x: getattr(x, "__module__", None) == module.__name__
    return [name for name, x in vars(module).items() if name[0] != "_" and here(x)]


def missing(function: Callable) -> list[str]:
    """What the docstring and the annotations of a function leave unsaid."""
    function = inspect.unwrap(function)
    doc = inspect.getdoc(function) or ""
    section = SECTION.search(doc + "\n")
    explained = ", ".join(ARGUMENT.findall(inspect.cleandoc(section[1]))) if section else ""
    out = [] if ">>>" in doc else ["no example"]
    signature = inspect.signature(function)
    for name, p in signature.parameters.items():
        if name not in explained.split(", "):
            out.append(f"Args lacks {name}")
        if p.annotation is p.empty or (p.kind is not p.VAR_KEYWORD and vague(p.annotation)):
            out.append(f"{name} has no type")
    if signature.return_annotation is signature.empty or vague(signature.return_annotation):
        out.append("the result has no type")
    return out


def vague(annotation: str) -> bool:
    """Whether an annotation says `Any` where a type could stand."""
    return bool(re.search(r"\bAny\b", OPEN.sub("", re.sub(r"Callable\[.*\]", "", annotation))))


@pytest.mark.parametrize("name", sorted(public()))
def test_public_functions_explain_themselves(name):
    function = public()[name]
    assert missing(function) == ANYTHING.get(function.__name__, [])


def test_what_is_left_unsaid_is_noticed():
    def merge(base, models: Any, key: Leaves = None):  # noqa: F821
        """Merge.

        Args:
            base, key: trees.
        """

    assert missing(merge) == [
        "no example", "base has no type", "Args lacks models", "models has no type",
        "the result has no type",
    ]  # fmt: skip
