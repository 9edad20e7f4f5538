"""The public API explains itself: each argument, an example that runs, types where there are types.

Public are the names of `jaxmerge.api`, the factories of every registry, and all that a page of the
reference (docs/api) shows.  A method of a class may be shown by the example of its class.  The
examples run with the other doctests of the suite.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import jaxmerge as jm
from jaxmerge.continual import methods, optimisers, problems, registry  # noqa: F401 - they register
from jaxmerge.core.registry import Registry
from jaxmerge.training import learner  # noqa: F401 - registers

PACKAGES = ["evaluation.metrics", "models.clip", "solvers", "statistics"]
PAGES = sorted((Path(__file__).parents[1] / "docs" / "api").glob("*.md"))
ENTRY = re.compile(r"^::: jaxmerge\.(\S+)\n(?:    options:\n      members: (.*)\n)?", re.MULTILINE)
SECTION = re.compile(r"^Args:\n((?P<indent> +).*\n(?:(?P=indent).*\n|\n)*)", re.MULTILINE)
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*):", re.MULTILINE)
# Data as recipes have it: mappings of names to anything, and lists of such.
OPEN = re.compile(r"Mapping\[str, Any\]|dict\[str, Any\]|Sequence\[Any\]|list\[Any\]")
ANYTHING = {"get": ["default has no type", "the result has no type"]}  # the default may be anything


def every() -> Iterator[object]:
    """All that is public, some of it twice."""
    yield from (getattr(jm, name) for name in jm.api.__all__)
    ours = lambda x: x.__module__.startswith("jaxmerge.continual.")  # tests register more
    for names in vars(registry).values():
        yield from filter(ours, names.values()) if isinstance(names, Registry) else ()
    for name in PACKAGES:
        module = importlib.import_module(f"jaxmerge.{name}")
        yield from (getattr(module, name) for name in module.__all__)
    for name, chosen in ENTRY.findall("".join(page.read_text() for page in PAGES)):
        if chosen != "false":
            module = importlib.import_module(f"jaxmerge.{name}")
            yield from (getattr(module, n) for n in re.findall(r"\w+", chosen) or own(module))


def own(module: ModuleType) -> list[str]:
    """The public names that a module defines, or exports."""
    here = lambda x: getattr(x, "__module__", None) == module.__name__
    defined = [name for name, x in vars(module).items() if name[0] != "_" and here(x)]
    return getattr(module, "__all__", defined)


def methods_of(kind: type) -> Iterator[Callable]:
    """The public methods and properties that a class defines itself."""
    for name, x in vars(kind).items():
        x = getattr(x, "fget", None) or getattr(x, "func", None) or getattr(x, "__func__", x)
        if name[0] != "_" and inspect.isfunction(x) and x.__module__ == kind.__module__:
            yield x


def public() -> dict[str, tuple[Callable, str]]:
    """Every public function, by where it is defined, with the example of its class."""
    out = {}
    for x in every():
        functions, example = [x], ""
        if inspect.isclass(x):
            functions, example = list(methods_of(x)), x.__doc__ or ""
        for f in filter(inspect.isroutine, functions):
            if inspect.unwrap(f).__name__ != "<lambda>":
                out[f"{f.__module__}.{f.__qualname__}"] = (f, example)
    return out


def missing(function: Callable, example: str = "") -> list[str]:
    """What the docstring and the annotations of a function leave unsaid."""
    function = inspect.unwrap(function)
    doc = inspect.getdoc(function) or ""
    section = SECTION.search(doc + "\n")
    explained = ", ".join(ARGUMENT.findall(inspect.cleandoc(section[1]))) if section else ""
    out = [] if ">>>" in doc + example else ["no example"]
    signature = inspect.signature(function)
    own = [k for i, k in enumerate(signature.parameters) if i or k not in ("self", "cls")]
    for name in own:
        p = signature.parameters[name]
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


PUBLIC = public()


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_functions_explain_themselves(name):
    function, example = PUBLIC[name]
    assert missing(function, example) == ANYTHING.get(function.__name__, [])


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
