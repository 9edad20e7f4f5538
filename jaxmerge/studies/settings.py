"""Plain settings read and changed: values of the command line, methods and merges by name.

Whatever does not fit is refused with all offenders at once and the closest names.  This is written
by hand, where results are read by pydantic (`jaxmerge.studies.conversion`): that checks values
against annotations, which a user's experiment need not have in full, and knows neither null that
takes a key out nor the closest names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from jaxmerge.continual.registry import methods
from jaxmerge.core.composition import chain
from jaxmerge.core.registry import get
from jaxmerge.core.specs import Spec
from jaxmerge.core.types import Merge
from jaxmerge.errors import listed, not_known
from jaxmerge.transforms.scaling import scale

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")
Built = TypeVar("Built")
TYPES = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
    list: "a list", tuple: "a list", dict: "a mapping of key: value pairs",
}  # fmt: skip


def changed(experiment: Settings, settings: Mapping[str, Any]) -> Settings:
    """The experiment with other settings; mappings are changed key by key, null takes one out.

    Args:
        experiment: a dataclass.
        settings: field -> value.

    Raises:
        ValueError: an unknown setting (the closest names are shown), one of another type, or a
            key to take out that is not there.

    >>> from jaxmerge.cli.quickstart import Quickstart
    >>> changed(Quickstart(), {"epochs": 5}).epochs
    5
    >>> streams = {"independent": None, "EWC": {"methods": ["ewc"]}}
    >>> list(changed(Quickstart(), {"streams": streams}).streams)
    ['sequential', 'EWC']
    >>> changed(Quickstart(), {"epoch": 5})
    Traceback (most recent call last):
    ValueError: No setting 'epoch': did you mean epochs?
    """
    absent: list[str] = []
    merged = {
        k: _deep(getattr(experiment, k), v, k, absent) if hasattr(experiment, k) else v
        for k, v in settings.items()
    }
    if absent:
        raise ValueError(listed(absent))
    return restored(experiment, merged)


def restored(experiment: Settings, settings: Mapping[str, Any]) -> Settings:
    """The experiment with settings as they were kept: what is given replaces what is there.

    Args:
        experiment: a dataclass.
        settings: field -> value.

    >>> from jaxmerge.cli.quickstart import Quickstart
    >>> restored(Quickstart(), {"epochs": 5}).epochs
    5
    """
    known = {f.name: str(f.type) for f in dataclasses.fields(experiment)}
    unknown = [k for k in settings if k not in known]
    if unknown:
        raise ValueError(not_known(unknown, known, "No setting "))
    typed, wrong = {}, []
    for k, v in settings.items():
        old = getattr(experiment, k)
        if isinstance(old, float) and isinstance(v, int) and not isinstance(v, bool):
            v = float(v)
        if isinstance(old, tuple) and isinstance(v, list):
            v = tuple(v)
        kinds = {kind.partition("[")[0].strip() for kind in known[k].split("|")}
        if old is not None and type(v) is not type(old) and type(v).__name__ not in kinds:
            names = {kind.__name__: words for kind, words in TYPES.items()} | {"None": "null"}
            words = list(dict.fromkeys(said for name, said in names.items() if name in kinds))
            words = words or [TYPES.get(type(old), type(old).__name__)]
            wrong.append(f"{k} is {' or '.join(words)}, got {v!r}")
        typed[k] = v
    if wrong:
        raise ValueError("; ".join(wrong) + ".")
    return dataclasses.replace(experiment, **typed)


def _deep(old: Any, new: Any, where: str, absent: list[str]) -> Any:
    if not isinstance(old, dict) or not isinstance(new, Mapping):
        return new
    gone = [k for k, v in new.items() if v is None and k not in old]
    if gone:
        absent.append(
            not_known(gone, old, f"null takes out what is there; {where} has no ").strip(".")
        )
    combined = {**old, **{k: _deep(old.get(k), v, f"{where}.{k}", absent) for k, v in new.items()}}
    return {k: v for k, v in combined.items() if v is not None}


def parsed(what: str, text: str) -> Any:
    """A value on the command line, as YAML reads it.

    >>> [parsed("--set x", text) for text in ("3", "1e-4", "[a, 2]", "null")]
    [3, 0.0001, ['a', 2], None]
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{what}: {text!r} is not a value (YAML).") from None
    if isinstance(value, str):  # YAML reads 1e-4 as a text
        with contextlib.suppress(ValueError):
            value = float(value)
    return value


def only(given: object, known: Iterable[str], what: str) -> None:
    """Raise ValueError for keys that are not known, all of them named.

    Args:
        given: what stands where a mapping is expected.
        known: its keys.
        what: the message begins with.

    >>> only({"bach": 8}, ["batch"], "training has")
    Traceback (most recent call last):
    ValueError: training has no 'bach': did you mean batch?
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"expected key: value pairs, got {given!r}.")
    unknown = [k for k in given if k not in known]
    if unknown:
        raise ValueError(not_known(unknown, known, f"{what} no "))


def build_all(
    what: str, settings: Mapping[str, Any], build: Callable[[str, Any], Built]
) -> dict[str, Built]:
    """name -> what `build` makes of it; ValueError names everything that cannot be built.

    Args:
        what: the kind of thing, for messages.
        settings: name -> options.
        build: ``(name, options) -> thing``.

    >>> build_all("merge", {"a": 2}, lambda name, options: options + 1)
    {'a': 3}
    """
    results: dict[str, Built] = {}
    wrong = []
    for name, options in settings.items():
        try:
            results[name] = build(name, options)
        except (ValueError, TypeError, KeyError) as error:
            text = error.args[0] if isinstance(error, KeyError) else error
            wrong.append(f"{what} {name!r}: {str(text).rstrip('.')}")
    if wrong:
        raise ValueError(listed(wrong))
    return results


def methods_of(options: Mapping[str, Any]) -> tuple[Spec, ...]:
    """The methods of a stream's settings.

    ``strategy`` and ``settings`` are the spelling of version 0.1 for one method; they give a
    warning and will go with the next release.

    Args:
        options: of a stream, of which ``methods`` is read: names with their settings, or a list.

    Raises:
        ValueError: unknown methods or settings, values out of range, all of them named.

    >>> methods_of({"methods": {"si": {}, "er": {"size": 50}}})
    (si(), er(size=50))
    """
    asked = options.get("methods", [])
    if isinstance(asked, Mapping) and "method" not in asked:
        asked = [{"method": name, **_settings(name, x)} for name, x in asked.items()]
    if isinstance(asked, str | Mapping):
        asked = [asked]
    if not isinstance(asked, list | tuple):
        raise ValueError(f"methods are names with their settings, or a list, got {asked!r}.")
    if "strategy" in options or "settings" in options:
        if asked:
            raise ValueError("strategy is the old spelling of methods; give methods only.")
        asked = _of_one_strategy(options.get("strategy", "finetune"), options.get("settings") or {})
    specs, wrong = [], []
    for one in asked:
        try:
            specs.append(methods.from_settings(one))
        except (ValueError, TypeError) as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(listed(wrong))
    return tuple(specs)


def _of_one_strategy(name: Any, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The methods that the spelling of version 0.1 stands for; warns with the spelling of today."""
    if name == "finetune" and not settings:
        warnings.warn(
            "a stream without methods is fine-tuning now: leave strategy: finetune out; it goes "
            "with the next release.",
            FutureWarning,
            stacklevel=3,
        )
        return []
    warnings.warn(
        f"strategy and settings of a stream are now methods: {{{name!r}: {dict(settings)!r}}}; the "
        "old spelling goes with the next release. Settings mean what they do for the method today, "
        f"where the penalty of l2, ewc and mas has no factor 1/2 (see jaxmerge methods {name}).",
        FutureWarning,
        stacklevel=3,
    )
    return [{"method": name, **settings}]


def _settings(name: str, settings: Any) -> Mapping[str, Any]:
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"the settings of {name} are key: value pairs, got {settings!r}.")
    return settings or {}


def built(
    method: str | list[Any], arguments: Mapping[str, Any], factor: float | None = None
) -> Merge:
    """A merge from settings: a registered name with its arguments, or a list of stages.

    Args:
        method: a registered name, or a list of stages.
        arguments: of the registered method.
        factor: of the method, or of what a list of stages gives; None for its own.

    >>> built("ties", {"density": 0.1}, 0.5)
    ties(density=0.1, factor=0.5)
    """
    if isinstance(method, list):
        from jaxmerge.recipes.method_spec import build

        if arguments:
            raise ValueError(f"a list of stages takes no arguments beside it, got {[*arguments]}.")
        merge = build(method, 1, {})
        return merge if factor is None else chain(merge, scale(factor))
    if not isinstance(method, str):
        raise ValueError(f"a merge needs a method: a name or a list of stages, got {method!r}.")
    arguments = dict(arguments) if factor is None else {**arguments, "factor": factor}
    merge = get(method)(**arguments)
    if not isinstance(merge, Merge):
        raise ValueError(f"{method} changes one task vector; write [{method}, add] for a merge.")
    return merge
