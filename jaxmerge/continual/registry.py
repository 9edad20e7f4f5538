"""Methods, optimisers, problems, evaluators and models by name: specs, as merges are.

A registered factory returns a `Spec`: its name and arguments, printed, compared, and a pytree whose
floats are leaves.  Compiled code takes specs as arguments and builds inside, so that another
strength compiles nothing; `vmap` over strengths works.

    @methods.register
    def ewc(strength: NonNegative = 1.0, examples: Count = 200) -> Method: ...

    ewc(3)                                 # ewc(strength=3.0)
    ewc(3.0) == ewc(3.0)                   # True
    methods.from_settings("ewc", {"strength": 3})          # the same, from a settings file
    methods.from_settings({"method": "ewc", "strength": 3})

The signature is the schema: annotations such as `NonNegative` say the range, a ``Literal`` the
choices, and what does not fit is refused with all offenders and the closest names.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from jaxmerge.core.registry import Spec, Static, frozen
from jaxmerge.errors import closest, listed


class Range(NamedTuple):
    """What a number may be; said in words where it is refused.

    Attributes:
        words: such as "a number from 0 on".
        fits: whether a concrete value does.
        whole: the value is an int and decides a shape or a count, so that it is static.
    """

    words: str
    fits: Callable[[Any], bool]
    whole: bool = False


NonNegative = Annotated[float, Range("a number from 0 on", lambda v: v >= 0)]
Positive = Annotated[float, Range("a positive number", lambda v: v > 0)]
Share = Annotated[float, Range("a number in [0, 1]", lambda v: 0 <= v <= 1)]
Count = Annotated[int, Range("a whole number from 1 on", lambda v: v >= 1, whole=True)]


class Registry:
    """Factories of one kind by name.

    Args:
        kind: in messages and settings, such as "method".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.factories: dict[str, Callable[..., Spec]] = {}

    def register(self, factory: Callable | None = None, *, static: Iterable[str] = ()) -> Callable:
        """Register a factory; calling it then gives a `Spec`.

        Args:
            static: floats that must stay Python numbers inside compiled code.

        Raises:
            ValueError: the name is taken by another module.
        """
        if factory is None:
            return functools.partial(self.register, static=static)
        name, static = factory.__name__, frozenset(static)
        known = self.factories.get(name)
        if known is not None and inspect.unwrap(known).__module__ != factory.__module__:
            raise ValueError(f"A {self.kind} named {name!r} is registered already.")
        hints = typing.get_type_hints(factory, include_extras=True)
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def record(*args, **kwargs) -> Spec:
            wrong = [k for k in kwargs if k not in signature.parameters]
            if wrong:
                known = list(signature.parameters)
                raise ValueError(
                    listed(f"{name} has no setting {k!r}: {closest(k, known)}" for k in wrong)
                )
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values, wrong = {}, []
            for k, v in bound.arguments.items():
                problem, values[k] = _checked(v, hints.get(k))
                if problem:
                    wrong.append(f"{k} of {name} is {problem}, got {v!r}")
            if wrong:
                raise ValueError(listed(wrong))
            made = Spec(factory, {k: frozen(v, k in static) for k, v in values.items()})
            made.build()  # what else is wrong is said now
            return made

        self.factories[name] = record
        return record

    def __contains__(self, name: str) -> bool:
        return name in self.factories

    def __iter__(self):
        return iter(sorted(self.factories))

    def get(self, name: str) -> Callable[..., Spec]:
        """The factory of that name.

        Raises:
            ValueError: there is none; the closest names are given.
        """
        if not isinstance(name, str) or name not in self.factories:
            raise ValueError(
                f"No {self.kind} is named {name!r}: {closest(str(name), self.factories)}"
            )
        return self.factories[name]

    def from_settings(self, what: Any, settings: Mapping[str, Any] | None = None) -> Spec:
        """A spec from plain values.

        Args:
            what: a name, or a mapping with the name under the registry's kind
                (``{"method": "ewc", "strength": 3}``), or a spec, returned as it is.

        Raises:
            ValueError: an unknown name, unknown settings, values out of range.
        """
        if isinstance(what, Spec):
            return what
        if isinstance(what, Mapping):
            settings = {**what, **(settings or {})}
            what = settings.pop(self.kind, None)
        return self.get(what)(**(settings or {}))


def _checked(value: Any, hint: Any) -> tuple[str | None, Any]:
    """(what it should be, where it does not fit; the value, ints as floats where floats go)."""
    if hasattr(value, "dtype") or isinstance(value, Spec | Static):
        return None, value  # traced, or checked before
    options = get_args(hint) if get_origin(hint) in (typing.Union, type(int | None)) else (hint,)
    if value is None:
        allowed = hint is None or type(None) in options or hint is Any
        return (None if allowed else _words(options[0])), value
    options = [o for o in options if o is not type(None)]
    for option in options:
        base, ranges = _split(option)
        if base is Literal:
            if value in get_args(option):
                return None, value
        elif base is float and isinstance(value, int | float) and not isinstance(value, bool):
            if all(r.fits(value) for r in ranges):
                return None, float(value)
        elif base is int and type(value) is int:
            if all(r.fits(value) for r in ranges):
                return None, value
        elif (base is bool and isinstance(value, bool)) or base not in (float, int, bool):
            return None, value
    return " or ".join(_words(o) for o in options), value


def _split(option: Any) -> tuple[Any, list[Range]]:
    if get_origin(option) is Annotated:
        base, *extra = get_args(option)
        return base, [r for r in extra if isinstance(r, Range)]
    return (Literal if get_origin(option) is Literal else option), []


def _words(option: Any) -> str:
    base, ranges = _split(option)
    if base is Literal:
        return "one of " + ", ".join(map(repr, get_args(option)))
    if ranges:
        return ranges[0].words
    return {float: "a number", int: "a whole number", bool: "true or false"}.get(base, str(base))


methods = Registry("method")
optimisers = Registry("optimiser")
problems = Registry("problem")
evaluators = Registry("evaluator")
models = Registry("model")
