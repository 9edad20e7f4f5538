"""`jaxmerge methods [NAME]`: what can be written in a recipe or in an experiment, by its name."""

from __future__ import annotations

import inspect
import json as jsonlib
import re
from collections.abc import Callable
from typing import Any

from jaxmerge.continual import registry as learning
from jaxmerge.core.registry import REGISTRY, Registry, UnknownNameError
from jaxmerge.errors import closest

Entry = dict[str, Any]

KINDS = {
    "method": "Published methods",
    "merge": "Merges: a chain takes exactly one",
    "transform": "Transforms: before the merge on every task vector, after it on the result",
    "composition": "Composition",
    "learning": "Continual learning: what is added to fine-tuning",
    "optimiser": "Optimisers of fine-tuning",
    "problem": "Problems: what is learnt",
    "evaluator": "Metrics of a problem",
    "model": "Models for fine-tuning",
}
# Of continual learning: kind -> its registry, and the setting of an experiment that names one.
SETTINGS = {
    "learning": (learning.methods, "streams.STREAM.methods={NAME: {}}"),
    "optimiser": (learning.optimisers, "optimiser={NAME: {}}"),
    "problem": (learning.problems, "problem={NAME: {}}"),
    "evaluator": (learning.evaluators, "problem.classification.metrics=[NAME]"),
    "model": (learning.models, "network={NAME: {}}"),
}


def run(name: str | None = None, *, json: bool = False) -> None:
    """Print the table of methods, or one method's page."""
    if name is not None:
        entry = describe(name)
        print(jsonlib.dumps(entry, indent=2) if json else page(entry))
        return
    entries = [describe(n) for registry in REGISTRIES for n in registry]
    if json:
        print(jsonlib.dumps(entries, indent=2))
        return
    from rich.table import Table

    from jaxmerge.cli import terminal

    console = terminal.console()
    for kind, title in KINDS.items():
        table = Table("name", "what it does", "memory", title=title, title_justify="left")
        for e in entries:
            if e["kind"] == kind:
                table.add_row(e["name"], e["summary"], e["memory"] or "")
        console.print(table)
    console.print("`jaxmerge methods NAME` explains one, with its arguments.")


REGISTRIES = (REGISTRY, *(registry for registry, _ in SETTINGS.values()))


def registry_of(name: str) -> Registry:
    """The registry that knows a name, old ones too.

    Raises:
        UnknownNameError: none does; the closest names of all are given.
    """
    for registry in REGISTRIES:
        if name in registry or name in registry.old:
            return registry
    known = [n for registry in REGISTRIES for n in registry]
    raise UnknownNameError(f"No method is named {name!r}: {closest(name, known)}")


def describe(name: str) -> Entry:
    """What a registry knows about a factory: kind, signature, summary, memory, docstring.

    Raises:
        UnknownNameError: no method has that name.

    Example:
        >>> entry = describe("magmax")
        >>> entry["kind"], entry["signature"], entry["memory"]
        ('method', 'magmax(factor=0.5)', '1 x the model, however many models')
    """
    registry = registry_of(name)
    factory = registry.get(name)
    doc = inspect.getdoc(factory) or ""
    memory = re.search(r"^Memory: (.*?)(?:\.?\n\n|\.?\Z)", doc, re.MULTILINE | re.DOTALL)
    return {
        "name": name,
        "kind": _kind(factory, registry),
        "signature": f"{name}({', '.join(settings(factory))})",
        "summary": doc.split("\n\n")[0].replace("\n", " "),
        "memory": " ".join(memory.group(1).split()) if memory else None,
        "doc": doc,
    }


def settings(factory: Callable) -> list[str]:
    """The arguments of a factory with their defaults; a default that is a function by its name.

    Example:
        >>> import jaxmerge as jm
        >>> settings(jm.ties)[:2], settings(jm.iso_c)[-1]
        (['density=0.2', 'factor=1.0'], 'leaves=by_kernel')
    """
    lines = []
    for p in inspect.signature(factory).parameters.values():
        named = callable(p.default) and p.default is not p.empty
        lines.append(
            f"{p.name}={p.default.__name__}" if named else str(p.replace(annotation=p.empty))
        )
    return lines


def _kind(factory: Callable, registry: Registry) -> str:
    if kinds := [kind for kind, (own, _) in SETTINGS.items() if own is registry]:
        return kinds[0]
    package = factory.__module__.removeprefix("jaxmerge.").split(".")[0]
    by_package = {"methods": "method", "combine": "composition"}
    returns = str(inspect.signature(factory).return_annotation)
    plain = "merge" if returns.endswith("Merge") else "transform"
    return by_package.get(package, plain)


def page(entry: Entry) -> str:
    """One method for reading, with a line that uses it."""
    use = f"In a recipe:\n    method: {entry['name']}"
    if entry["kind"] in SETTINGS:
        given = SETTINGS[entry["kind"]][1].replace("NAME", entry["name"])
        use = f"In an experiment:\n    jaxmerge run EXPERIMENT --set '{given}'"
    return f"{entry['signature']}\n\n{entry['doc']}\n\n{use}\n"
