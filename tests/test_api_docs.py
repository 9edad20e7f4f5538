"""The public API explains itself: each argument, an example that runs, types where there are types.

Public are the names of `jaxmerge.api`, the factories of every registry, and what the modules define
that are used by themselves.  The examples run with the other doctests of the suite.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

import jaxmerge as jm
from jaxmerge.continual import methods, optimisers, problems, registry  # noqa: F401 - they register
from jaxmerge.core.registry import Registry
from jaxmerge.training import learner  # noqa: F401 - registers

MODULES = [
    "evaluation.metrics",
    "models.clip",
    "solvers",
    "statistics",
    "data.folders",
    "data.npz",
    "data.registry",
    "data.sources",
    "data.splits",
    "data.text",
    "data.streams.blurry",
    "data.streams.hierarchy",
    "data.streams.plans",
    "data.streams.scenario",
    "continual.buffers",
    "continual.columns",
    "continual.contrast",
    "continual.drivers",
    "continual.operators",
    "continual.rotated",
    "continual.streams",
    "report.html",
    "report.plots",
    "report.style",
    "report.tables",
    "training.data_parallel",
    "continual.memories.anchor",
    "continual.memories.basis",
    "continual.memories.eight_bits",
    "continual.memories.feedback",
    "continual.memories.gaussians",
    "continual.memories.herding",
    "continual.memories.importance",
    "continual.memories.rate",
]
SECTION = re.compile(r"^Args:\n((?P<indent> +).*\n(?:(?P=indent).*\n|\n)*)", re.MULTILINE)
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*):", re.MULTILINE)
# Data as recipes have it: mappings of names to anything, and lists of such.
OPEN = re.compile(r"Mapping\[str, Any\]|dict\[str, Any\]|Sequence\[Any\]")
ANYTHING = {"get": ["default has no type", "the result has no type"]}  # the default may be anything


def every() -> Iterator[object]:
    """All that is public, some of it twice."""
    yield from (getattr(jm, name) for name in jm.api.__all__)
    ours = lambda x: x.__module__.startswith("jaxmerge.continual.")  # tests register more
    for names in vars(registry).values():
        yield from filter(ours, names.values()) if isinstance(names, Registry) else ()
    for name in MODULES:
        module = importlib.import_module(f"jaxmerge.{name}")
        yield from (getattr(module, name) for name in getattr(module, "__all__", own(module)))


def own(module: ModuleType) -> list[str]:
    """The public names that a module without ``__all__`` defines."""
    here = lambda x: getattr(x, "__module__", None) == module.__name__
    return [name for name, x in vars(module).items() if name[0] != "_" and here(x)]


def public() -> dict[str, Callable]:
    """Every public function, by where it is defined."""
    functions = (f for f in every() if inspect.isroutine(f))
    return {f"{f.__module__}.{f.__qualname__}": f for f in functions}


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
